"""The Perceiver and the baselines as graphs: their scores, whatever is missing, however many records there are and however long they are padded."""

import io
import itertools
from functools import cache

import numpy as np
import pytest
import torch

from stages.datasets.records import Ragged, Records
from stages.fusion import forms
from stages.fusion.deep.maths import graph, pruning
from stages.fusion.deep.paper_baseline import PaperBaseline
from stages.fusion.deep.process_to_result import ProcessToResult
from stages.fusion.perceiver_moe import PerceiverMoE
from stages.training import Run
from tests.fusion.perceiver.made_records import SMALL
from tests.fusion.synthetic import records

WIDTHS = {"image": 12, "video": 9, "audio": 10, "series": 6}
TRAIN, GIVEN = records(0, 60, widths=WIDTHS, tokens=20, anomalous=0.3), records(1, 40, widths=WIDTHS, tokens=20)
QUICK = {"steps": 6}
KINDS = {
    "experts": (PerceiverMoE, SMALL | {"gate": "softmax"}),
    "one weight": (PerceiverMoE, SMALL | {"share_weights": True, "blocks": 3, "gate": "sigmoid"}),
    "distances": (PerceiverMoE, SMALL | {"gate": "laplace", "max_tokens": 5}),
    "uniform": (PerceiverMoE, SMALL | {"routing": "uniform"}),
    "dense": (PerceiverMoE, SMALL | {"ffn": "dense"}),
    "predicted": (ProcessToResult, {"hidden": 16}),
    "without sensors": (ProcessToResult, {"hidden": 16, "sensors": "no such modality", "process": ("video",)}),
    "reconstructed": (PaperBaseline, {"audio_width": 12, "audio_code": 3, "video_widths": [8, 4], "clock_s": 10.0, "window_s": 4.0}),
}
EXPORTED = ("experts", "predicted", "reconstructed")


@cache
def fitted(kind: str):
    """A detector and its form; what is shared is not changed."""
    made, options = KINDS[kind]
    detector = made(**options, **QUICK).fit(TRAIN, GIVEN, Run(seed=0, quiet=True))
    return detector, forms.scorer(detector, forms.lengths(detector, TRAIN, GIVEN))


def seen(form: graph.Scorer, given: Records) -> np.ndarray:
    return form(*form.fed(given))[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_scores_as_the_detector_whatever_is_missing(kind):
    detector, form = fitted(kind)
    assert not isinstance(detector, PerceiverMoE) or detector.log_weight > 0.5, "faults are rarer here, and the score takes that back"
    for names in itertools.chain.from_iterable(itertools.combinations(WIDTHS, count) for count in range(1, 5)):
        left = GIVEN.only(names)
        left = left.take(left.present.any(1).nonzero()[:, 0].tolist())
        expected = detector.score(left).numpy()
        assert np.abs(seen(form, left) - expected).max() < 1e-5 * max(1, np.abs(expected).max()), names


@pytest.mark.parametrize("kind", KINDS)
def test_more_padding_changes_nothing(kind):
    detector, form = fitted(kind)
    if kind == "distances":  # it reads five tokens, of however many
        assert set(form.lengths.values()) == {5}
        return
    wide = forms.scorer(detector, {name: length + 7 for name, length in form.lengths.items()})
    np.testing.assert_allclose(seen(wide, GIVEN), seen(form, GIVEN), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [kind if kind in EXPORTED else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_an_onnx_file_gives_the_scores_for_any_number_of_records(kind):
    import onnxruntime

    detector, form = fitted(kind)
    exact = graph.onnx_bytes(form, {}, "tracing")
    small = onnxruntime.InferenceSession(graph.int8_bytes(exact, {}), providers=["CPUExecutionProvider"])
    opened = onnxruntime.InferenceSession(exact, providers=["CPUExecutionProvider"])
    for count in (1, 2, 40):
        feed, expected = graph.feed(GIVEN.take(range(count)), form.widths, form.lengths), detector.score(GIVEN.take(range(count))).numpy()
        score, logits, features = opened.run(list(graph.OUTPUTS), feed)
        assert np.abs(score - expected).max() < 1e-4 * max(1, np.abs(expected).max())
        assert len(logits) == len(features) == count
        assert np.isfinite(small.run(["score"], feed)[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_program_of_torch_export_takes_any_number_of_records(kind, recwarn):
    detector, form = fitted(kind)
    content = io.BytesIO()
    torch.export.save(graph.program(form), content)
    content.seek(0)
    program = torch.export.load(content).module()
    for count in (1, 3, 40):
        given = GIVEN.take(range(count))
        torch.testing.assert_close(program(*form.fed(given))[0], detector.score(given), rtol=1e-4, atol=1e-5)
    assert not [one for one in recwarn if "complete tensor" in str(one.message)]  # of weights that are views of others


def test_the_logits_of_the_perceiver_are_its_two_labels():
    _, form = fitted("experts")
    score, logits, features = form(*form.fed(GIVEN))
    torch.testing.assert_close(logits.softmax(1)[:, 1], score.sigmoid())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(40))


def test_the_worst_stretch_of_padded_tokens_is_that_of_ragged_ones():
    """Windows that begin in a record, times that repeat, a record of one token and one of none."""
    from stages.fusion.deep.maths.encoder import padded
    from stages.fusion.deep.maths.ragged import worst_stretch

    time = torch.tensor([0.0, 0.1, 0.1, 0.5, 0.9, 0.4, 0.2, 0.3, 0.35])
    ragged = Ragged(torch.rand(9, 1), time, torch.tensor([0, 5, 5, 6, 9]))
    expected = worst_stretch(ragged.values[:, 0], ragged.time, ragged.lengths.tolist(), 0.15)
    for most in (5, 9):
        given = padded(ragged, 5)
        given = type(given)(*(torch.nn.functional.pad(one, (*(0, 0) * (one.dim() - 2), 0, most - 5)) for one in given))
        torch.testing.assert_close(forms.worst_of(given.values[..., 0], given, 0.15), expected)


def test_heads_of_the_perceiver_can_go_too():
    """One whose gate is 0 is one that is cut out, in each layer of attention, also in a block that is read twice."""
    for kind in ("experts", "one weight"):
        _, form = fitted(kind)
        found = pruning.layers(form)
        assert len(found) == 2 * 2 + 1  # two blocks that read and talk, and the readout
        for name, part in found.items():
            part.gate = torch.tensor([1.0, 0.0])
            expected = seen(form, GIVEN)
            part.gate = None
            np.testing.assert_allclose(seen(pruning.without(form, {name: [1]}), GIVEN), expected, rtol=1e-5, atol=1e-5)
        worth = pruning.importance(form, [(GIVEN, GIVEN.label.float())])
        assert all(float(one.square().sum()) == pytest.approx(1, abs=1e-5) for one in worth.values())


def test_every_form_says_what_its_score_is():
    said = {kind: fitted(kind)[1].meaning for kind in EXPORTED}
    assert (
        said["experts"] == "log odds of any fault"
        and "its process predicts" in said["predicted"]
        and "reconstruction" in said["reconstructed"]
    )


def test_a_form_leaves_the_detector_as_it_was():
    for kind in ("experts", "predicted", "reconstructed"):
        detector, _ = fitted(kind)
        before = {name: value.clone() for name, value in detector.state_dict().items()}
        forms.scorer(detector, forms.lengths(detector, TRAIN)).double()
        assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
        assert any(parameter.requires_grad for parameter in detector.parameters())
