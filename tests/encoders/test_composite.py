"""Several encoders as one entry: every part gives what it would give alone, under its own name."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.encoders.composite import resized
from stages.encoders.encoder import Encoder, EncoderChanged
from stages.params import EncoderEntry, ParamsError

CNN = {"kind": "cnn", "backbone": "test_resnet.r160_in1k", "weights": "random", "layers": ["layer1", "layer2"], "runtime": "torch"}
VIT = {"kind": "vit", "backbone": "test_vit.r160_in1k", "weights": "random", "layers": ["block2"], "norm": True}
SCALES = {"full": {**CNN, "image_size": 128}, "half": {**CNN, "image_size": 64}, "quarter": {**CNN, "image_size": 32}}


def pixels(count=2, size=128):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def build(tmp_path, parts, size=128):
    return Encoder.from_entry("several", EncoderEntry(kind="composite", image_size=size, parts=parts), "cpu", 1, tmp_path)


def alone(tmp_path, part):
    return Encoder.from_entry("alone", EncoderEntry.model_validate(part), "cpu", 1, tmp_path)


def test_one_network_at_three_scales_gives_grids_of_a_half_and_a_quarter(tmp_path):
    """CS-Flow's input. Each scale is bit for bit what the network gives of the resized image."""
    features = build(tmp_path, SCALES).encode(pixels())
    assert list(features) == [f"{part}.{layer}" for part in SCALES for layer in ("layer1", "layer2")]
    assert [features[f"{part}.layer2"].shape[2] for part in SCALES] == [16, 8, 4]
    for part, size in (("full", 128), ("half", 64), ("quarter", 32)):
        expected = alone(tmp_path, SCALES[part]).encode(resized(pixels(), size))
        assert torch.equal(features[f"{part}.layer2"], expected["layer2"])


def test_two_networks_of_two_kinds_see_the_same_image_at_their_own_sizes(tmp_path):
    """U-Flow's input, in small: a transformer on the image and another network on half of it."""
    parts = {"large": {**VIT, "image_size": 96}, "small": {**CNN, "image_size": 48}}
    features = build(tmp_path, parts, size=96).encode(pixels(size=96))
    assert {name: tuple(value.shape[1:]) for name, value in features.items()} == {
        "large.block2": (64, 6, 6),
        "small.layer1": (32, 12, 12),
        "small.layer2": (48, 6, 6),
    }
    assert torch.equal(features["large.block2"], alone(tmp_path, parts["large"]).encode(pixels(size=96))["block2"])


def test_a_part_is_shown_uint8_levels_resized_bicubically_with_antialiasing():
    """Within one level of the same resize in float, and Pillow's as images are decoded with."""
    from PIL import Image

    levels = pixels(1)
    got = resized(levels, 48)
    assert got.dtype == torch.uint8 and got.shape == (1, 3, 48, 48)
    exact = F.interpolate(levels.float(), (48, 48), mode="bicubic", antialias=True).clamp(0, 255)
    assert (got.float() - exact).abs().max() <= 1.5
    pillow = Image.fromarray(levels[0].permute(1, 2, 0).numpy()).resize((48, 48), Image.Resampling.BICUBIC)
    assert (got[0].permute(1, 2, 0).int() - torch.from_numpy(np.array(pillow)).int()).abs().max() <= 1
    assert resized(levels, 128) is levels


def test_an_encoder_rebuilt_from_its_identity_gives_the_same_bits(tmp_path):
    first = build(tmp_path, SCALES)
    recorded = json.loads(json.dumps(first.identity))
    again = Encoder.from_identity(recorded, "cpu", 1, tmp_path)
    assert again.identity == recorded and again.differences(recorded) == []
    ours, theirs = first.encode(pixels()), again.encode(pixels())
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in ours)


def test_other_weights_of_one_part_are_noticed(tmp_path):
    recorded = json.loads(json.dumps(build(tmp_path, SCALES).identity))
    recorded["weights"]["parts"]["half"]["sha256"] = "0" * 64
    with pytest.raises(EncoderChanged, match="made with weights"):
        Encoder.from_identity(recorded, "cpu", 1, tmp_path)


def test_the_identity_names_every_weight_once_and_counts_one_network_once(tmp_path):
    three, single = build(tmp_path, SCALES).identity, alone(tmp_path, SCALES["full"]).identity
    assert three["parameters"] == single["parameters"]
    assert three["weights"]["name"] == "random" and set(three["weights"]["parts"]) == {"full", "half", "quarter"}
    assert three["parts"]["half"]["seed"] == 0  # defaults are written down
    both = build(tmp_path, {"a": {**CNN, "image_size": 64}, "b": {**VIT, "image_size": 64}}, size=64).identity
    assert both["parameters"] == single["parameters"] + alone(tmp_path, {**VIT, "image_size": 64}).identity["parameters"]


def test_parts_may_run_in_onnx_runtime_and_the_eager_form_agrees(tmp_path):
    fast = build(tmp_path, {"half": {**CNN, "image_size": 64, "runtime": "onnxruntime"}})
    assert fast.identity["runtime"] == {"half": "onnxruntime"} and fast.identity["onnx_sha256"]["half"]
    ours, theirs = fast.encode(pixels())["half.layer2"], fast.eager(pixels())["half.layer2"]
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_wrong_parts_are_refused_by_name(tmp_path):
    with pytest.raises(ParamsError, match="needs at least one entry under parts"):
        build(tmp_path, {})
    with pytest.raises(ParamsError, match="parts.half is no encoder entry"):
        build(tmp_path, {"half": {"kind": "cnn"}})
    with pytest.raises(ParamsError, match="parts.inner: a part is one network"):
        build(tmp_path, {"inner": {"kind": "composite", "image_size": 64, "parts": SCALES}})
    with pytest.raises(ParamsError, match="did you mean 'backbone'"):
        build(tmp_path, {"half": {**CNN, "image_size": 64, "backbon": "resnet18"}})
