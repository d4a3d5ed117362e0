"""Encoder-decoder networks of 3x3 convolutions: one without skips, which must draw the image anew, one with skips, which marks pixels.

Both as DRAEM describes them (Zavrtanik et al., arXiv:2108.07610, section 3): each level halves the grid by max pooling and doubles the
channels up to 8 times the width; the way up is bilinear, followed by a convolution. DSR uses the same shapes with another normalisation.
Sides of the input must be multiples of 2 to the power of `levels`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class Encoder(nn.Module):
    """levels: how often the grid is halved. Returns the features of each level, the finest first."""

    def __init__(self, inputs: int, width: int, levels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.channels = [width * min(2**level, 8) for level in range(levels + 1)]
        pairs = itertools.pairwise([inputs, *self.channels])
        self.blocks = nn.ModuleList(nn.Sequential(convolution(a, b, norm), convolution(b, b, norm)) for a, b in pairs)

    def forward(self, images: Tensor) -> list[Tensor]:
        found = [self.blocks[0](images)]
        for block in self.blocks[1:]:
            found.append(block(F.max_pool2d(found[-1], 2)))
        return found


class Redrawing(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H, W) through the coarsest level alone."""

    def __init__(self, inputs: int, outputs: int, width: int, levels: int = 4, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.encoder = Encoder(inputs, width, levels, norm)
        self.rises, self.blocks, channels = nn.ModuleList(), nn.ModuleList(), self.encoder.channels[-1]
        for level in reversed(range(levels)):
            self.rises.append(convolution(channels, channels, norm))
            leaving = _leaving(width, level)
            self.blocks.append(nn.Sequential(convolution(channels, channels, norm), convolution(channels, leaving, norm)))
            channels = leaving
        self.last = nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        value = self.encoder(images)[-1]
        for rise, block in zip(self.rises, self.blocks, strict=True):
            value = block(rise(doubled(value)))
        return self.last(value)


class Marking(nn.Module):
    """(B, inputs, H, W) -> (B, outputs, H, W), every level of the way down joined to the same level of the way up."""

    def __init__(self, inputs: int, outputs: int, width: int, levels: int = 5, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.encoder = Encoder(inputs, width, levels, norm)
        self.rises, self.blocks, channels = nn.ModuleList(), nn.ModuleList(), self.encoder.channels[-1]
        for level in reversed(range(levels)):
            leaving = _leaving(width, level)
            self.rises.append(convolution(channels, leaving, norm))
            joined = leaving + self.encoder.channels[level]
            self.blocks.append(nn.Sequential(convolution(joined, leaving, norm), convolution(leaving, leaving, norm)))
            channels = leaving
        self.last = nn.Conv2d(channels, outputs, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        *finer, value = self.encoder(images)
        for rise, block, beside in zip(self.rises, self.blocks, reversed(finer), strict=True):
            value = block(torch.cat([rise(doubled(value)), beside], dim=1))
        return self.last(value)


def convolution(inputs: int, outputs: int, norm: Norm = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU(inplace=True))


def doubled(grid: Tensor) -> Tensor:
    """Twice the size, bilinear, with corner on corner."""
    return F.interpolate(grid, scale_factor=2, mode="bilinear", align_corners=True)


def initialised(build: Callable[[], nn.Module], seed: int, scale: float = 0.02) -> nn.Module:
    """What `build` makes, with weights of convolutions from N(0, scale) and of normalisations from N(1, scale); biases of the latter are 0.

    The global generator is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        restart(module, torch.default_generator, scale)
    return module


@torch.no_grad()
def restart(module: nn.Module, generator: torch.Generator, scale: float = 0.02) -> None:
    """Fresh weights in place, drawn on the CPU. Running statistics stay: they follow within some steps."""
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if weight is None:
            continue
        normalises = not isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale + (1.0 if normalises else 0.0))
        if normalises:
            part.bias.zero_()


def _leaving(width: int, level: int) -> int:
    """Channels on the way up at a level: half of those on the way down, but never less than the width."""
    return width * min(2 ** max(level - 1, 0), 8)
