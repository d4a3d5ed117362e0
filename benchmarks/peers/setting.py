"""What every comparison with a peer stands on: the same images, the same frozen weights on both sides, and one clock."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor

from stages.datasets import parts
from stages.datasets.images import read_image, read_mask, resize_image, resize_mask
from stages.encoders.encoder import Encoder
from stages.encoders.weights import whole_network
from stages.params import EncoderEntry
from stages.types import Batch, Features

BACKBONE, SIZE, BATCH = "tf_efficientnet_lite0", 256, 8
RESNET = "resnet18"  # for the models that take none but a ResNet
WEIGHTS = {BACKBONE: "efficientnet-lite0", RESNET: "random"}
THEIR_LAYERS = {"layer1": "blocks.1", "layer2": "blocks.2", "layer3": "blocks.4"}  # in anomalib's EfficientNet; a ResNet's are called alike
LAYERS = list(THEIR_LAYERS)
FOLDER = Path("backbones")


class Images(NamedTuple):
    train: Tensor  # (N, 3, SIZE, SIZE) uint8
    test: Tensor
    label: np.ndarray
    mask: np.ndarray  # (N, SIZE, SIZE) bool


class Timed(NamedTuple):
    value: Any
    seconds: float  # of CPU


def timed(call: Callable[[], Any]) -> Timed:
    start = time.process_time()
    value = call()
    return Timed(value, time.process_time() - start)


def images(category: str, train: int, test: int) -> Images:
    """Drawn as the data set `parts` is, decoded and resized once, so that both sides see the same levels."""
    with tempfile.TemporaryDirectory() as folder:
        counts = {"train_normal": train, "test_normal": test, "test_anomalous": test, "shift_normal": 0, "shift_anomalous": 0}
        reading = parts.read(Path(), Path(folder), seed=0, contamination=0.0, **counts)
        samples = [sample for sample in reading.samples if sample.category == category]
        pixels = {sample.sample_id: resize_image(read_image(reading.root / sample.image_path), SIZE) for sample in samples}
        tests = [sample for sample in samples if sample.split == "test"]
        blank = np.zeros((SIZE, SIZE), dtype=bool)
        masks = [resize_mask(read_mask(reading.root / one.mask_path, 0), SIZE).astype(bool) if one.mask_path else blank for one in tests]

    def stacked(chosen: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack([pixels[sample.sample_id] for sample in chosen])).permute(0, 3, 1, 2).contiguous()

    learnt = stacked([sample for sample in samples if sample.split == "train"])
    return Images(learnt, stacked(tests), np.array([sample.label for sample in tests]), np.stack(masks))


class Encoded:
    """Images as detectors take them, encoded once."""

    def __init__(self, encoder: Encoder, pixels: Tensor) -> None:
        parts = [encoder.encode(part) for part in pixels.split(BATCH)]
        self.features: Features = {"pixels": pixels, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}}
        self.samples = len(pixels)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.samples, BATCH):
            yield self.take(list(range(first, min(first + BATCH, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        count = len(positions)
        features = {name: value[positions] for name, value in self.features.items()}
        return Batch(features, torch.zeros(count, dtype=torch.int64), None, [str(position) for position in positions], ["part"] * count)


def frozen(backbone: str) -> Encoder:
    """Assay's side of a backbone, up to the last of LAYERS."""
    entry = EncoderEntry(kind="cnn", image_size=SIZE, backbone=backbone, weights=WEIGHTS[backbone], layers=LAYERS, runtime="onnxruntime")
    return Encoder.from_entry(backbone, entry, "cpu", 1, FOLDER)


def share_weights() -> None:
    """Every pretrained network that anomalib asks timm or torchvision for gets the weights of WEIGHTS; nothing is downloaded."""
    from torchvision.models._api import WeightsEnum

    plain, states = timm.create_model, {name: whole_network(name, weights, 0, FOLDER)[0].state_dict() for name, weights in WEIGHTS.items()}

    def create(name: str, pretrained: bool = False, **options: Any) -> torch.nn.Module:
        network = plain(name, pretrained=False, **options)
        if pretrained:
            state = states[name.split(".")[0]]
            network.load_state_dict({key: state[key] for key in network.state_dict()})
        return network

    timm.create_model = create
    WeightsEnum.get_state_dict = lambda self, *_, **__: states[type(self).__name__.removesuffix("_Weights").lower()]


def normalised(encoder: Encoder, pixels: Tensor) -> Tensor:
    """Levels 0..255 as the backbone of `encoder` asks for them."""
    return (pixels.float() / 255 - encoder.eager.mean) / encoder.eager.std


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def printed(rows: Iterator[Any], line: Callable[[Any], str]) -> list[str]:
    """The lines of a table, each shown when it is measured."""
    lines = []
    for row in rows:
        lines.append(line(row))
        print(lines[-1], flush=True)
    return lines
