"""From a grid of patch scores to an anomaly map, as PaDiM and PatchCore both do it: bilinear to the size of the image, then a Gaussian
blur.

Every output pixel is computed by the same sequence of additions whatever the batch, so a map does not depend on the company of its image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def to_pixels(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) -> (B, H, W), bilinear between cell centres."""
    return F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """(B, H, W) blurred; the kernel is cut at 4 sigma (33 taps for sigma 4) and the image is mirrored at its border.

    Equals scipy.ndimage.gaussian_filter with its defaults, also where the image is smaller than the kernel.
    """
    if sigma == 0:
        return maps
    radius = math.floor(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (kernel / kernel.sum()).tolist()
    return _blur_rows(_blur_rows(maps, weights).transpose(1, 2), weights).transpose(1, 2).contiguous()


def _blur_rows(maps: Tensor, weights: list[float]) -> Tensor:
    """Convolve the last axis, one tap at a time."""
    width = maps.shape[2]
    padded = maps[:, :, _mirrored(width, len(weights) // 2).to(maps.device)]
    blurred = torch.zeros_like(maps, memory_format=torch.contiguous_format)
    for tap, weight in enumerate(weights):
        blurred.add_(padded[:, :, tap : tap + width], alpha=weight)
    return blurred


def _mirrored(size: int, margin: int) -> Tensor:
    """(size + 2 margin,) positions that read ... 1 0 | 0 1 2 ... size-1 | size-1 ..., as often as the margin needs."""
    positions = torch.arange(-margin, size + margin) % (2 * size)
    return torch.where(positions < size, positions, 2 * size - 1 - positions)
