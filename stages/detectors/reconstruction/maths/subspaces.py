"""The networks of DSR that are trained on one kind of part: they lead codes back to normal ones, draw an image of them, and mark defects.

All normalise each channel of each image by itself, so a result cannot depend on the batch. Zavrtanik et al., "DSR", ECCV 2022,
arXiv:2208.01521, sections 3.2 and 3.3; the widths of each level are those of the authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.reconstruction.maths.unet import convolution, doubled
from stages.encoders.vq import decoder


class Restriction(nn.Module):
    """(B, C, h, w) -> the same: codes through a quarter of their grid, without skips. Sides must be multiples of 4, at least 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        one, two, four = channels, 2 * channels, 4 * channels
        self.down = nn.ModuleList([_twice(one, one), _twice(one, two), _twice(two, four)])
        self.up = nn.ModuleList(
            [nn.Sequential(_normed(two * 2, two), _twice(two, two)), nn.Sequential(_normed(two, one), _twice(one, one))]
        )
        self.last = nn.Conv2d(one, channels, 3, padding=1)

    def forward(self, value: Tensor) -> Tensor:
        value = self.down[0](value)
        for block in self.down[1:]:
            value = block(F.max_pool2d(value, 2))
        for block in self.up:
            value = block(doubled(value))
        return self.last(value)


class ObjectDecoder(nn.Module):
    """Both levels of codes, (B, 2 C, h, w) at stride 4, to the image (B, 3, 4 h, 4 w) that this kind of part has there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        joined = 2 * channels
        self.first = nn.Sequential(_normed(joined, joined), _normed(joined, 2 * joined))
        self.second = nn.Sequential(_normed(2 * joined, 2 * joined), _normed(2 * joined, 4 * joined))
        self.narrow = nn.Conv2d(4 * joined, channels // 2, 1)
        self.rises = nn.ModuleList(nn.ConvTranspose2d(channels // 2, channels // 2, 4, stride=2, padding=1) for _ in range(2))
        self.decoder = decoder(channels // 2, channels)

    def forward(self, codes: Tensor) -> Tensor:
        value = F.max_pool2d(self.second(F.max_pool2d(self.first(codes), 2)), 2)
        value = self.narrow(value)
        for rise in self.rises:
            value = F.relu(rise(value))
        return self.decoder(value)


class Marker(nn.Module):
    """(B, inputs, H, W) -> (B, 2, H, W), logits of normal and anomalous: a U-Net with skips. Sides must be multiples of 8."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        one, two, four = width, 2 * width, 4 * width
        self.down = nn.ModuleList([_twice(inputs, one), _twice(one, two), _twice(two, four), _twice(four, four)])
        levels = ((four, four), (four, two), (two, one))
        self.up = nn.ModuleList(nn.ModuleList([_normed(below, here), _twice(2 * here, here)]) for below, here in levels)
        self.last = nn.Conv2d(one, 2, 3, padding=1)

    def forward(self, *parts: Tensor) -> Tensor:
        found = [self.down[0](torch.cat(parts, dim=1))]
        for block in self.down[1:]:
            found.append(block(F.max_pool2d(found[-1], 2)))
        value = found.pop()
        for rise, block in self.up:
            value = block(torch.cat([rise(doubled(value)), found.pop()], dim=1))
        return self.last(value)


def _normed(inputs: int, outputs: int) -> nn.Sequential:
    return convolution(inputs, outputs, nn.InstanceNorm2d)


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_normed(inputs, outputs), _normed(outputs, outputs))
