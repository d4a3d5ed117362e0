"""A detector as a graph: the same scores for any number of records, with any modality missing, padded as far as one likes."""

import json
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from stages import fusion
from stages.fusion import forms
from stages.fusion.deep.cross_attention import CrossAttention
from stages.fusion.deep.gated import GatedFusion
from stages.fusion.deep.late import LateFusion
from stages.fusion.deep.maths import graph
from stages.fusion.deep.maths.encoder import Encoding
from stages.fusion.deep.maths.learning import Learning
from stages.fusion.deep.maths.network import Network
from stages.fusion.deep.mid import MidFusion
from stages.fusion.deep.unimodal import UnimodalNetwork
from stages.training import Run
from stages.types import Refusal
from tests.fusion.synthetic import records

WIDTHS = {"image": 12, "audio": 10, "series": 6}
GIVEN = records(1, 40, widths=WIDTHS, tokens=20)
SIZES = {"encoding": Encoding(width=16, heads=2, sensor_layers=2, sensor_ffn=32, patch=4), "features": 24}
KINDS = {
    "cross": (CrossAttention, {"heads": 2, "ffn": 32}),
    "per modality": (CrossAttention, {"heads": 2, "ffn": 32, "layers": 1, "style": "per_modality"}),
    "asked by sensors": (CrossAttention, {"heads": 2, "ffn": 32, "layers": 1, "query": "series"}),
    "mid": (MidFusion, {}),
    "gated": (GatedFusion, {}),
    "late": (LateFusion, {}),
    "alone": (UnimodalNetwork, {"modality": "series"}),
}


def opened(kind: str = "cross"):
    made, options = KINDS[kind]
    detector = made(**SIZES, **options).open(WIDTHS, classes=["normal", *WIDTHS])
    for network in detector.modules():
        if isinstance(network, Network):
            network.encoder.standardise([records(0, 40, widths=WIDTHS, tokens=20)])
    if kind == "late":  # as if it had learnt on validation what each modality is worth, and how sure
        detector.weight.copy_(torch.tensor([0.6, 0.4, 0.0]))
        for scale, member in zip((0.5, 2.0, 3.0), detector.members.values(), strict=True):
            member.scale.fill_(scale)
    if kind == "alone":
        detector.prior = torch.tensor([0.0, -1.0, -2.0, -0.5])
    return detector


@cache
def exported(kind: str = "cross"):
    """A detector, its graph and its file; what is shared is not changed."""
    made = forms.scorer(detector := opened(kind), forms.lengths(detector, GIVEN))
    return detector, made, graph.onnx_bytes(made, {"classes": detector.classes}, "tracing")


def run(content: bytes, feed: dict) -> list[np.ndarray]:
    import onnxruntime

    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(list(graph.OUTPUTS), feed)


def fed(made: graph.Scorer, given=GIVEN) -> list[torch.Tensor]:
    feed = graph.feed(given, made.widths, made.lengths)
    return [torch.from_numpy(feed[name]) for name in made.inputs]


def test_a_graph_takes_records_in_the_order_of_its_inputs():
    _, made, _ = exported("mid")
    assert all(torch.equal(one, other) for one, other in zip(made.fed(GIVEN), fed(made), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_out_network_is_the_network(kind):
    detector = opened(kind)
    made = forms.scorer(detector, forms.lengths(detector, GIVEN))
    score, logits, features = made(*fed(made))
    told = detector.classify(GIVEN)
    for one, other in ((score, detector.score(GIVEN)), (logits, told.logits), (features, told.features)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [kind if kind in ("cross", "mid", "late", "alone") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_an_onnx_file_gives_the_scores_of_the_detector_for_any_number_of_records(kind):
    detector, made, content = exported(kind)
    for count in (1, 2, 40):
        given = GIVEN.take(range(count))
        score, logits, features = run(content, graph.feed(given, made.widths, made.lengths))
        assert np.abs(score - detector.score(given).numpy()).max() < 1e-4
        assert logits.shape == (count, 4) and features.shape == (count, 72 if kind == "late" else 24)
        assert np.abs(logits - detector.classify(given).logits.numpy()).max() < 1e-4


def test_the_same_detector_gives_the_same_bytes():
    detector, made, content = exported("mid")
    assert content == graph.onnx_bytes(made, {"classes": detector.classes}, "tracing")


@pytest.mark.parametrize("kind", ["cross", "late", "alone"])
def test_every_subset_of_modalities_goes_through_the_file_as_through_the_detector(kind):
    """Also those of weight 0 in late fusion, which then count alike, and records without the one modality that a network alone reads."""
    detector, made, content = exported(kind)
    for names in (["image"], ["series"], ["audio", "series"]):
        left = GIVEN.only(names)
        left = left.take(left.present.any(1).nonzero()[:, 0].tolist())
        dropped = left._replace(tokens={name: left.tokens[name] for name in names})
        for given in (left, dropped):
            score = run(content, graph.feed(given, made.widths, made.lengths))[0]
            assert np.abs(score - detector.score(left).numpy()).max() < 1e-4, names


def test_more_padding_changes_nothing_and_of_too_many_tokens_evenly_spaced_ones_are_read():
    detector = opened()
    longest = forms.lengths(detector, GIVEN)
    assert longest == {name: max(1, int(one.lengths.max())) for name, one in GIVEN.tokens.items()}
    wide = forms.scorer(detector, {name: length + 9 for name, length in longest.items()})
    torch.testing.assert_close(wide(*fed(wide))[0], detector.score(GIVEN), rtol=1e-5, atol=1e-5)
    few = CrossAttention(**SIZES | {"encoding": SIZES["encoding"].model_copy(update={"max_tokens": 5})}, heads=2, ffn=32).open(
        WIDTHS, classes=["normal", "b"]
    )
    assert set(forms.lengths(few, GIVEN).values()) == {5}
    short = forms.scorer(few, forms.lengths(few, GIVEN))
    torch.testing.assert_close(short(*fed(short))[0], few.score(GIVEN), rtol=1e-5, atol=1e-5)


def test_the_transformer_is_that_of_pytorch_and_does_not_see_what_is_masked():
    layers = opened().network.encoder.adapters["of_series"].layers
    tokens, mask = torch.randn(3, 7, 16), torch.rand(3, 7) > 0.4
    mask[:, 0] = True
    expected = layers(tokens, src_key_padding_mask=~mask)
    found = graph.Transformer(layers)(tokens, src_key_padding_mask=~mask)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-5)
    other = torch.where(mask[..., None], tokens, torch.full_like(tokens, 9.0))
    torch.testing.assert_close(graph.Transformer(layers)(other, src_key_padding_mask=~mask)[mask], found[mask])


def test_the_file_says_what_it_is_and_8_bit_weights_too():
    import onnx

    detector, _, exact = exported("mid")
    about = {"classes": detector.classes}
    for content, said in ((exact, about), (graph.int8_bytes(exact, about | {"weights": "int8"}), about | {"weights": "int8"})):
        (entry,) = onnx.load_from_string(content).metadata_props
        assert entry.key == "assay" and json.loads(entry.value) == said


def test_8_bit_weights_are_smaller_and_close():
    detector = CrossAttention(encoding=Encoding(width=96, heads=4, sensor_layers=1, sensor_ffn=192), features=128, heads=4, ffn=256)
    detector.open(WIDTHS, classes=["normal", "b"])
    made = forms.scorer(detector, forms.lengths(detector, GIVEN))
    exact = graph.onnx_bytes(made, {}, "tracing")
    small = graph.int8_bytes(exact, {})
    expected, found = detector.score(GIVEN).numpy(), run(small, graph.feed(GIVEN, made.widths, made.lengths))[0]
    assert len(small) < 0.5 * len(exact)
    assert 0 < np.abs(found - expected).max() < 0.3 * expected.std()


@pytest.mark.slow
def test_what_learnt_from_normal_records_scores_by_its_bank():
    learning = Learning(normal_only=True, epochs=1, steps=2)
    detector = CrossAttention(**SIZES, heads=2, ffn=32, layers=1, learning=learning)
    detector.fit(records(0, 40, widths=WIDTHS, tokens=20), GIVEN, Run(seed=0, quiet=True))
    made = forms.scorer(detector, forms.lengths(detector, GIVEN))
    content = graph.onnx_bytes(made, {}, "tracing")
    score = run(content, graph.feed(GIVEN, made.widths, made.lengths))[0]
    assert np.abs(score - detector.score(GIVEN).numpy()).max() < 1e-4


def test_exporting_leaves_the_detector_as_it_was():
    detector = opened("mid")
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    graph.onnx_bytes(forms.scorer(detector, forms.lengths(detector, GIVEN)), {}, "tracing")
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    assert all(parameter.requires_grad for parameter in detector.network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("made", [LateFusion, UnimodalNetwork])
def test_networks_that_learnt_from_normal_records_score_by_their_own_distances(made):
    learning = Learning(normal_only=True, epochs=1, steps=2)
    detector = made(**SIZES, learning=learning, **({"modality": "series"} if made is UnimodalNetwork else {}))
    detector.fit(records(0, 40, widths=WIDTHS, tokens=20), GIVEN, Run(seed=0, quiet=True))
    form = forms.scorer(detector, forms.lengths(detector, GIVEN))
    score = run(graph.onnx_bytes(form, {}, "tracing"), graph.feed(GIVEN, form.widths, form.lengths))[0]
    assert np.abs(score - detector.score(GIVEN).numpy()).max() < 1e-4


def test_what_is_no_network_is_refused():
    with pytest.raises(Refusal, match="Forest does not get its score from a network over padded tokens, so it has no form as a graph"):
        forms.scorer(fusion.build("classical.forest", {}, at=()), {})


def test_a_detector_that_moves_clocks_before_it_pads_is_refused():
    """The graph's inputs are padded tokens, on clocks that nothing in it could move any more."""
    aligned = MidFusion(**{**SIZES, "encoding": SIZES["encoding"].model_copy(update={"align": True})}).open(WIDTHS, classes=["normal", "b"])
    with pytest.raises(Refusal, match=r"puts all clocks on one before tokens are padded \(encoding\.align\)"):
        forms.scorer(aligned, dict.fromkeys(WIDTHS, 4))


@pytest.mark.slow
def test_the_program_of_torch_export_takes_any_number_of_records():
    detector = opened()
    made = forms.scorer(detector, forms.lengths(detector, GIVEN))
    program = graph.program(made).module()
    for count in (1, 3, 40):
        given = GIVEN.take(range(count))
        torch.testing.assert_close(program(*fed(made, given))[0], detector.score(given), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_newer_exporter_gives_the_same_scores():
    if not find_spec("onnxscript"):
        pytest.skip("onnxscript is not installed")
    detector = opened("mid")
    made = forms.scorer(detector, forms.lengths(detector, GIVEN))
    score = run(graph.onnx_bytes(made, {}, "dynamo"), graph.feed(GIVEN, made.widths, made.lengths))[0]
    assert np.abs(score - detector.score(GIVEN).numpy()).max() < 1e-4


def test_a_record_without_a_modality_is_padding_in_every_input_of_it():
    one = GIVEN.only(["audio"])
    feed = graph.feed(one, WIDTHS, dict.fromkeys(WIDTHS, 6))
    assert not feed["image.mask"].any() and not feed["image.values"].any() and feed["audio.mask"].any()
    assert feed["image.values"].shape == (40, 6, 12) and feed["image.time"].shape == (40, 6)
