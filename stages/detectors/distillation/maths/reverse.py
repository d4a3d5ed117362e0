"""The student of reverse distillation: the features of all layers go through a narrow embedding, and a decoder, the mirror image of the
teacher, gives them back from the coarsest to the finest. For any number of channels and any strides.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", arXiv:2201.10703, section 3; for 256/512/1024 channels at
strides 4, 8 and 16 the shapes are the paper's, and `Style` says which blocks its encoders ask for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.types import Features


class Pyramid(NamedTuple):
    """What a student must know of its teacher: channels of each layer, from the finest to the coarsest, and how often each is halved against
    the layer before it (the first: never)."""

    channels: tuple[int, ...]
    halvings: tuple[int, ...]

    @classmethod
    def of(cls, features: Features, layers: tuple[str, ...]) -> Self:
        """Raises ValueError unless the layers are ordered from fine to coarse."""
        heights = [features[layer].shape[2] for layer in layers]
        steps = [round(math.log2(fine / coarse)) for fine, coarse in itertools.pairwise(heights)]
        if min(steps, default=0) < 0:
            raise ValueError(f"layers must be ordered from fine to coarse, but {', '.join(layers)} have {heights} rows")
        return cls(tuple(features[layer].shape[1] for layer in layers), (0, *steps))

    def to_tensor(self) -> Tensor:
        return torch.tensor([self.channels, self.halvings])  # (2, layers) int64

    @classmethod
    def from_tensor(cls, stored: Tensor) -> Self:
        return cls(*(tuple(row) for row in stored.tolist()))


class Style(NamedTuple):
    """Of the residual blocks. width: inner channels of each, relative to those of a ResNet with the same outputs."""

    bottleneck: bool
    width: float
    embedding: int  # blocks of the embedding
    decoder: tuple[int, ...]  # blocks of the decoder's stages, from the coarsest; the last holds for all that follow

    @classmethod
    def of(cls, pyramid: Pyramid, kind: str, width: float | None) -> Self:
        """kind: "basic", "bottleneck" or "auto": bottlenecks where the first layer has 256 channels or more, as in ResNet-50, else basic blocks,
        as in ResNet-18. width None: 2 for bottlenecks, as in WideResNet-50-2, else 1."""
        bottleneck = kind == "bottleneck" or (kind == "auto" and pyramid.channels[0] >= 256)
        if width is None:
            width = 2.0 if bottleneck else 1.0
        return cls(True, width, 3, (3, 4, 6)) if bottleneck else cls(False, width, 2, (2,))

    def block(self, inputs: int, outputs: int, factor: int = 1, up: bool = False) -> nn.Module:
        return Residual(inputs, outputs, self.inner(outputs), self.bottleneck, factor, up)

    def inner(self, outputs: int) -> int:
        return max(2, round(outputs / (4 if self.bottleneck else 1) * self.width))


class Residual(nn.Module):
    """A block of ResNet. factor: by which the grid shrinks, or, where `up`, grows: then a transposed convolution whose kernel is its stride
    stands for the strided one, also in the skip."""

    def __init__(self, inputs: int, outputs: int, inner: int, bottleneck: bool, factor: int = 1, up: bool = False) -> None:
        super().__init__()
        if bottleneck:
            self.main = nn.Sequential(
                *_convolution(inputs, inner, 1),
                nn.ReLU(),
                *_convolution(inner, inner, 3, factor, up),
                nn.ReLU(),
                *_convolution(inner, outputs, 1),
            )
        else:
            self.main = nn.Sequential(*_convolution(inputs, inner, 3, factor, up), nn.ReLU(), *_convolution(inner, outputs, 3))
        same = factor == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, factor, up))

    def forward(self, values: Tensor) -> Tensor:
        return F.relu(self.main(values) + self.skip(values))


class TwoBranches(nn.Module):
    """UniNet's block for the embedding: one half of the channels goes through two 3 x 3 convolutions, the other through two of `kernel`, and
    a 1 x 1 convolution fuses them."""

    def __init__(self, inputs: int, outputs: int, inner: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.halves = (inputs // 2, inputs - inputs // 2)
        self.branches = nn.ModuleList(
            nn.Sequential(*_convolution(half, inner // 2, size, stride), nn.ReLU(), *_convolution(inner // 2, inner // 2, size))
            for half, size in zip(self.halves, (3, kernel), strict=True)
        )
        self.fuse = nn.Sequential(*_convolution(inner // 2 * 2, outputs, 1))
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride))

    def forward(self, values: Tensor) -> Tensor:
        found = [branch(half) for branch, half in zip(self.branches, values.split(self.halves, dim=1), strict=True)]
        return F.relu(self.fuse(torch.cat(found, dim=1)) + self.skip(values))


class Embedding(nn.Module):
    """One-class bottleneck embedding: every layer is brought to the coarsest grid and as many channels as that has, all are concatenated, and
    a stage of blocks halves the grid once more and gives twice the channels of the coarsest layer.

    block: of (inputs, outputs, stride); the first sees as many times the channels of the coarsest layer as there are layers, on its skip too.
    """

    def __init__(self, pyramid: Pyramid, block: Callable[[int, int, int], nn.Module], blocks: int) -> None:
        super().__init__()
        last = pyramid.channels[-1]
        self.paths = nn.ModuleList(_path(pyramid, layer) for layer in range(len(pyramid.channels)))
        first = block(len(pyramid.channels) * last, 2 * last, 2)
        self.blocks = nn.Sequential(first, *(block(2 * last, 2 * last, 1) for _ in range(blocks - 1)))

    def forward(self, features: list[Tensor]) -> Tensor:
        rows, columns = features[-1].shape[2:]
        brought = [path(values)[:, :, :rows, :columns] for path, values in zip(self.paths, features, strict=True)]
        return self.blocks(torch.cat(brought, dim=1))


class Decoder(nn.Module):
    """From the embedding to every layer of the teacher, (B, C, h, w) each, from the finest to the coarsest."""

    def __init__(self, pyramid: Pyramid, style: Style) -> None:
        super().__init__()
        channels = [2 * pyramid.channels[-1], *reversed(pyramid.channels)]
        factors = [2, *(2**halvings for halvings in reversed(pyramid.halvings[1:]))]
        self.stages = nn.ModuleList()
        for place, factor in enumerate(factors):
            inputs, outputs = channels[place : place + 2]
            blocks = style.decoder[min(place, len(style.decoder) - 1)]
            first = style.block(inputs, outputs, factor, up=True)
            self.stages.append(nn.Sequential(first, *(style.block(outputs, outputs) for _ in range(blocks - 1))))

    def forward(self, embedding: Tensor, grids: list[tuple[int, int]]) -> list[Tensor]:
        """grids: of the layers, from the finest; what doubling gives too many of an odd number of rows or columns is cut off."""
        values, found = embedding, []
        for stage, (rows, columns) in zip(self.stages, reversed(grids), strict=True):
            values = stage(values)[:, :, :rows, :columns]
            found.append(values)
        return found[::-1]


class ReverseStudent(nn.Module):
    """Embedding and decoder; takes and gives the features of all layers, from the finest to the coarsest. `seed` decides every weight, and
    the global generator is left alone."""

    def __init__(self, pyramid: Pyramid, style: Style, seed: int, block: Callable[[int, int, int], nn.Module] | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = Embedding(pyramid, block or style.block, style.embedding)
            self.decoder = Decoder(pyramid, style)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):  # the transposed ones keep torch's own start, as in the authors' code
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return self.decoder(self.embedding(features), [tuple(values.shape[2:]) for values in features])


def unit_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """(B, h, w): 1 - cosine along the channels, as half the squared distance of the unit vectors, which loses no digits near zero."""
    return 0.5 * (F.normalize(teacher, dim=1) - F.normalize(student, dim=1)).square().sum(dim=1)


def summed_map(distances: list[Tensor], size: tuple[int, int]) -> Tensor:
    """(B, H, W): the layers' maps, each enlarged by bilinear interpolation between corners, added up."""
    return sum(F.interpolate(layer[:, None], size, mode="bilinear", align_corners=True)[:, 0] for layer in distances)


def _path(pyramid: Pyramid, layer: int) -> nn.Sequential:
    """From a layer to the coarsest grid by way of the channels of the layers between, one 3 x 3 convolution of stride 2 for each halving."""
    steps = []
    for after in range(layer + 1, len(pyramid.channels)):
        inputs, outputs = pyramid.channels[after - 1], pyramid.channels[after]
        for stride in [2] * pyramid.halvings[after] or [1]:
            steps += [*_convolution(inputs, outputs, 3, stride), nn.ReLU()]
            inputs = outputs
    return nn.Sequential(*steps)


def _convolution(inputs: int, outputs: int, kernel: int, factor: int = 1, up: bool = False) -> tuple[nn.Module, nn.Module]:
    """A convolution without bias, transposed where it enlarges, and batch normalisation."""
    if up and factor > 1:
        return nn.ConvTranspose2d(inputs, outputs, factor, factor, bias=False), nn.BatchNorm2d(outputs)
    return nn.Conv2d(inputs, outputs, kernel, factor, kernel // 2, bias=False), nn.BatchNorm2d(outputs)
