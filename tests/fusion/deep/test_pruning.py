"""Heads of attention are worth what finite differences say they are, and a head that is cut out is one whose gate is 0."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from stages.datasets.records import Ragged, Records
from stages.fusion import forms
from stages.fusion.deep.cross_attention import CrossAttention
from stages.fusion.deep.maths import graph, pruning
from stages.fusion.deep.maths.encoder import Encoding, Padded
from stages.fusion.deep.maths.graph import Attending, Scorer
from tests.fusion.synthetic import records

WIDTHS = {"image": 12, "series": 6}
GIVEN = records(1, 24, widths=WIDTHS, tokens=20)
TARGET = torch.arange(24) % 3
SIZES = {"encoding": Encoding(width=16, heads=4, sensor_layers=2, sensor_ffn=32, patch=4), "features": 24, "heads": 4, "ffn": 32}
KINDS = {"joint": {}, "per modality": {"layers": 1, "style": "per_modality"}, "asked by sensors": {"layers": 1, "query": "series"}}


def formed(kind: str = "joint") -> Scorer:
    detector = CrossAttention(**SIZES, **KINDS[kind]).open(WIDTHS, classes=["normal", *WIDTHS])
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.mul_(2)  # so that heads differ
    return forms.scorer(detector, forms.lengths(detector, GIVEN))


def exact(form: Scorer) -> Scorer:
    """In double precision, so that what differs is no rounding."""
    form.double().fed = lambda given: [one.double() if one.is_floating_point() else one for one in Scorer.fed(form, given)]
    return form


def test_all_attention_of_a_network_is_found():
    names = list(pruning.layers(formed()))
    assert (
        len(names) == 6 and sum("adapters.of_series" in name for name in names) == 2
    )  # two layers of the sensors, and 2 x 2 of the fusion
    assert len(pruning.layers(formed("per modality"))) == 2 + 2 * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_is_cut_out_is_one_whose_gate_is_0(kind):
    """For every layer of every kind of attention, alone and together; with fewer weights by exactly those of the heads."""
    form = exact(formed(kind))
    for number, (name, part) in enumerate(pruning.layers(form).items()):
        gone = [[1], [0, 3], [0, 1, 2]][number % 3]
        part.gate = torch.tensor([float(head not in gone) for head in range(4)], dtype=torch.float64)
        expected = form(*form.fed(GIVEN))
        part.gate = None
        made = pruning.without(form, {name: gone})
        for one, other in zip(made(*form.fed(GIVEN)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        width = part.query.in_features
        bias = sum(layer.bias is not None for layer in (part.query, part.key, part.value))
        assert _size(form) - _size(made) == len(gone) * width // 4 * (4 * width + bias)
        assert (made(*form.fed(GIVEN))[0] - form(*form.fed(GIVEN))[0]).abs().max() > 1e-5  # the head did something


def test_cutting_leaves_the_form_as_it_was_and_nothing_is_cut_of_no_share():
    form = formed()
    before = {name: value.clone() for name, value in form.state_dict().items()}
    worth = pruning.importance(form, [(GIVEN, TARGET)])
    assert pruning.least(worth, 0.0) == {}
    same = pruning.without(form, {})
    assert all(torch.equal(one, other) for one, other in zip(same(*same.fed(GIVEN)), form(*form.fed(GIVEN)), strict=True))
    pruning.without(form, pruning.least(worth, 0.5))
    assert all(torch.equal(value, before[name]) for name, value in form.state_dict().items())
    assert all(part.gate is None for part in pruning.layers(form).values())


@pytest.mark.parametrize("float_target", [False, True])
def test_the_slope_of_a_gate_is_what_finite_differences_say(float_target):
    form = exact(formed())
    target = (TARGET > 0).double() if float_target else TARGET
    found, step = pruning.slopes(form, GIVEN, target), 1e-4
    for name, part in pruning.layers(form).items():
        for head in range(4):
            said = []
            for sign in (1, -1):
                part.gate = torch.ones(4, dtype=torch.float64)
                part.gate[head] += sign * step
                said.append(pruning.losses(form, GIVEN, target))
            part.gate = None
            np.testing.assert_allclose(found[name][:, head].numpy(), ((said[0] - said[1]) / (2 * step)).numpy(), rtol=1e-3, atol=1e-6)


def test_importance_is_the_mean_absolute_slope_over_records_and_of_length_1_in_each_layer():
    form = formed()
    worth = pruning.importance(form, [(GIVEN, TARGET)])
    for name, slope in pruning.slopes(form, GIVEN, TARGET).items():
        mean = slope.abs().mean(0)  # records that pull in two directions do not cancel
        torch.testing.assert_close(worth[name], mean / mean.square().sum().sqrt())
        assert float(worth[name].square().sum()) == pytest.approx(1)


def test_batches_do_not_change_what_a_head_is_worth():
    form = formed()
    whole = pruning.importance(form, [(GIVEN, TARGET)])
    for name, worth in pruning.importance(form, [(GIVEN.take(some), TARGET[some]) for some in ([*range(7)], [*range(7, 24)])]).items():
        torch.testing.assert_close(worth, whole[name])


def test_the_heads_worth_least_go_over_all_layers_but_never_the_last_of_one():
    worth = {"a": torch.tensor([0.9, 0.1, 0.2]), "b": torch.tensor([0.01, 0.02])}
    assert pruning.least(worth, 0.2) == {"b": [0]}
    assert pruning.least(worth, 0.4) == {"a": [1], "b": [0]}  # b's other head is worth less, but it is its last
    assert pruning.least(worth, 0.6) == {"a": [1, 2], "b": [0]}
    assert pruning.least(worth, 0.99) == {"a": [1, 2], "b": [0]}  # five of five would be all
    with pytest.raises(ValueError, match="at least one of its heads, all 2 were to go"):
        pruning.cut(Attending(2, *(nn.Linear(4, 4) for _ in range(4))), [0, 1])


class Planted(Scorer):
    """One layer of attention whose heads each read one column; only head 2 has a way to the score."""

    def __init__(self) -> None:
        super().__init__({"a": 4}, {"a": 3})
        self.attention = Attending(4, *(nn.Linear(4, 4) for _ in range(4)))
        with torch.no_grad():
            for part in (self.attention.query, self.attention.key, self.attention.value):
                part.weight.copy_(torch.eye(4))
                part.bias.zero_()
            self.attention.out.weight.copy_(torch.diag(torch.tensor([0.02, 0.01, 3.0, 0.04])))
            self.attention.out.bias.zero_()

    def judge(self, tokens: dict[str, Padded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        read, _ = self.attention(tokens["a"].values[:, :1], tokens["a"].values, tokens["a"].mask)
        score = read[:, 0].sum(1)
        return score, torch.stack([torch.zeros_like(score), score], 1), read[:, 0]


def test_where_one_head_is_all_that_matters_it_is_worth_most_and_the_order_is_that_of_taking_heads_out():
    """By brute force: how much the mean loss of each record changes when each head alone is cut."""
    form, generator = Planted(), torch.Generator().manual_seed(0)
    values = torch.rand(60 * 3, 4, generator=generator) - 0.5
    given = Records([f"r{one}" for one in range(60)], torch.zeros(60), {"a": Ragged(values, torch.zeros(180), torch.arange(0, 183, 3))})
    with torch.no_grad():
        target = (form(*form.fed(given))[0] > 0).float()
        whole = pruning.losses(form, given, target)
        changed = torch.stack([(pruning.losses(_cut(form, head), given, target) - whole).abs().mean() for head in range(4)])
    (worth,) = pruning.importance(form, [(given, target)]).values()
    assert int(worth.argmax()) == 2 and worth[2] > 0.99
    assert worth.argsort().tolist() == changed.argsort().tolist() == [1, 0, 3, 2]
    assert pruning.least({"attention": worth}, 0.75) == {"attention": [0, 1, 3]}


def test_a_form_with_fewer_heads_in_some_layers_is_a_graph_like_any():
    import onnxruntime

    form = formed()
    made = pruning.without(form, {next(iter(pruning.layers(form))): [0], list(pruning.layers(form))[-1]: [1, 2]})
    content, whole = graph.onnx_bytes(made, {}, "tracing"), graph.onnx_bytes(form, {}, "tracing")
    score = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
        ["score"], graph.feed(GIVEN, made.widths, made.lengths)
    )[0]
    assert np.abs(score - made(*made.fed(GIVEN))[0].numpy()).max() < 1e-4
    assert len(content) < len(whole)


def _size(form: nn.Module) -> int:
    return sum(one.numel() for one in form.parameters())


def _cut(form: Scorer, head: int) -> Scorer:
    made = copy.deepcopy(form)
    pruning.cut(made.attention, [head])
    return made
