"""One object between pixels and features, known by an identity that is JSON, and rebuilt from it."""

import json

import pytest
import torch

from stages.encoders import encoder
from stages.encoders.encoder import Encoder, EncoderChanged
from stages.params import EncoderEntry, ParamsError

SIZE = 32


def entry(**given):
    options = {"backbone": "resnet18", "weights": "random", "layers": ["layer1", "layer2"], "runtime": "torch", **given}
    return EncoderEntry(kind="cnn", image_size=SIZE, **options)


def build(tmp_path, form="float32", device="cpu", **given):
    return Encoder.from_entry("net", entry(**given), device, 1, tmp_path, form)


def pixels(count=3):
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_an_encoder_rebuilt_from_its_recorded_identity_gives_the_same_bits(tmp_path):
    for form in ("float32", "float16"):
        first = build(tmp_path, form, runtime="onnxruntime")
        recorded = json.loads(json.dumps(first.identity))
        again = Encoder.from_identity(recorded, "cpu", 1, tmp_path)
        assert again.identity == recorded and again.differences(recorded) == []
        ours, theirs = first.encode(pixels()), again.encode(pixels())
        assert all(torch.equal(ours[layer], theirs[layer]) for layer in ours)


def test_other_weights_under_the_same_name_are_refused(tmp_path):
    recorded = build(tmp_path).identity
    altered = {**recorded, "weights": {**recorded["weights"], "sha256": "0" * 64}}
    with pytest.raises(EncoderChanged, match="made with weights"):
        Encoder.from_identity(altered, "cpu", 1, tmp_path)


def test_what_may_change_the_last_bits_is_named(tmp_path):
    built = build(tmp_path)
    recorded = {**built.identity, "threads": 2, "versions": {"torch": "1.0"}}
    assert [text.split(":")[0] for text in built.differences(recorded)] == ["threads", "versions"]


def test_float16_rounds_live_features_as_the_store_would(tmp_path):
    exact, rounded = build(tmp_path).encode(pixels()), build(tmp_path, "float16").encode(pixels())
    assert torch.equal(exact["layer1"].half().float(), rounded["layer1"])
    assert not torch.equal(exact["layer1"], rounded["layer1"])


def test_the_identity_names_random_weights_as_random(tmp_path):
    assert build(tmp_path, seed=4).identity["weights"]["name"] == "random"
    assert build(tmp_path, seed=4).identity["entry"]["seed"] == 4


def test_weights_must_be_asked_for_by_name(tmp_path):
    """Nobody gets random weights by leaving a key out."""
    incomplete = EncoderEntry(kind="cnn", image_size=SIZE, backbone="resnet18", layers=["layer1"])
    with pytest.raises(ParamsError, match=r"encoders\.net\.weights is missing"):
        Encoder.from_entry("net", incomplete, "cpu", 1, tmp_path)


def test_an_unknown_option_or_kind_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ParamsError, match="did you mean 'backbone'"):
        build(tmp_path, backbones="resnet18")
    with pytest.raises(ParamsError, match=r"no encoder kind 'cnm'\. Known: clip, cnn, composite, pixels, vit"):
        Encoder.from_entry("net", EncoderEntry(kind="cnm", image_size=SIZE), "cpu", 1, tmp_path)


def test_a_file_beside_the_others_is_a_new_kind(tmp_path, monkeypatch):
    """No shared file lists the kinds."""
    text = "from stages.encoders.encoder import Frozen\n\n\ndef build(place, *, gain: float = 1.0):\n"
    text += "    return Frozen(lambda pixels: {'mean': pixels.float().mean((2, 3), keepdim=True) * gain}, {'weights': None})\n"
    (tmp_path / "brightness.py").write_text(text)
    import stages.encoders

    monkeypatch.setattr(stages.encoders, "__path__", [*stages.encoders.__path__, str(tmp_path)])
    built = Encoder.from_entry("b", EncoderEntry(kind="brightness", image_size=SIZE, gain=2.0), "cpu", 1, tmp_path)
    assert built.encode(torch.ones(1, 3, SIZE, SIZE, dtype=torch.uint8))["mean"].flatten().tolist() == [2.0, 2.0, 2.0]


def test_pixels_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"takes \(B, 3, 32, 32\) pixels, got \(1, 3, 64, 64\)"):
        build(tmp_path).encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_device_that_is_not_there_is_an_error_not_a_fallback(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert encoder.resolve_device("auto") == "cpu"
    with pytest.raises(ParamsError, match="no CUDA device"):
        encoder.resolve_device("cuda")
    with pytest.raises(ParamsError, match="must be one of auto, cpu, cuda, got 'gpu'"):
        encoder.resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert encoder.resolve_device("auto") == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_runs_torch_says_so_and_agrees_with_the_cpu_to_1e4(tmp_path):
    there, here = build(tmp_path, device="cuda", runtime="onnxruntime"), build(tmp_path)
    assert (there.identity["device"], there.identity["runtime"]) == ("cuda", "torch")
    ours, theirs = there.encode(pixels()), here.encode(pixels())
    for layer in theirs:
        assert (ours[layer] - theirs[layer]).abs().max() <= 1e-4 * theirs[layer].abs().max()
