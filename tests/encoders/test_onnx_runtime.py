"""ONNX Runtime gives the features that torch gives, for any batch size, from a file that is the same in every process."""

import hashlib
import subprocess
import sys

import pytest
import torch

from stages.encoders.cnn import CNN
from stages.encoders.onnx_runtime import OnnxNetwork, export

LAYERS = ("layer1", "layer2", "layer3")
SIZE = 64


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return CNN(backbone="tf_efficientnet_lite0", layers=LAYERS, weights="efficientnet-lite0", backbones=tmp_path_factory.mktemp("none"))


@pytest.fixture(scope="module")
def exported(network):
    return OnnxNetwork(network, LAYERS, SIZE, threads=1)


def pixels(count):
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_two_runtimes_agree_to_1e5_relative(network, exported):
    eager, fast = network(pixels(4)), exported(pixels(4))
    for layer in LAYERS:
        assert fast[layer].shape == eager[layer].shape and fast[layer].dtype == torch.float32
        assert (fast[layer] - eager[layer]).abs().max() <= 1e-5 * eager[layer].abs().max()


def test_any_batch_size_gives_an_image_the_same_bits(exported):
    together = exported(pixels(5))
    for position in range(5):
        alone = exported(pixels(5)[position : position + 1])
        assert all(torch.equal(alone[layer][0], together[layer][position]) for layer in LAYERS)


def test_a_view_with_other_strides_is_read_as_what_it_shows(exported):
    channels_last = pixels(2).contiguous(memory_format=torch.channels_last)
    assert torch.equal(exported(channels_last)["layer1"], exported(pixels(2))["layer1"])


def test_another_process_exports_the_same_bytes(exported):
    code = (
        "import hashlib; from stages.encoders.cnn import CNN; from stages.encoders.onnx_runtime import export\n"
        f"network = CNN(backbone='tf_efficientnet_lite0', layers={LAYERS}, weights='efficientnet-lite0')\n"
        f"print(hashlib.sha256(export(network, {LAYERS}, {SIZE})).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == exported.sha256
    assert done.stderr == ""  # no notice of an exporter that retires, no tracer warnings


def test_the_checksum_tells_other_weights_and_other_sizes_apart(network, exported):
    other = CNN(backbone="tf_efficientnet_lite0", layers=LAYERS, weights="random")
    sums = {hashlib.sha256(export(one, LAYERS, size)).hexdigest() for one, size in ((network, SIZE), (network, 96), (other, SIZE))}
    assert len(sums) == 3 and exported.sha256 in sums
