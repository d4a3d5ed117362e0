"""Structural similarity of two images, pixel by pixel: equal means, equal contrasts and correlated structure in a Gaussian window.

Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004, equation 13, with its window of 11
pixels and sigma 1.5 and its constants (0.01, 0.03) for images in 0..1. The border is mirrored, as Gaussian windows need some values there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def structural_similarity(one: Tensor, other: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """(B, C, H, W) in -1..1 from two (B, C, H, W) with values in 0..1; 1 where they are equal."""
    first, second = 0.01**2, 0.03**2
    moments = _weighted_means(torch.cat([one, other, one * one, other * other, one * other], dim=1), window, sigma)
    mean_one, mean_other, square_one, square_other, product = moments.chunk(5, dim=1)
    squares, cross = mean_one**2 + mean_other**2, mean_one * mean_other
    variances, covariance = square_one + square_other - squares, product - cross
    return (2 * cross + first) * (2 * covariance + second) / ((squares + first) * (variances + second))


def _weighted_means(images: Tensor, window: int, sigma: float) -> Tensor:
    """Each channel under a Gaussian of `window` taps along both sides."""
    channels, reach = images.shape[1], window // 2
    taps = torch.tensor([math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-reach, reach + 1)])
    kernel = (taps / taps.sum()).to(images).expand(channels, 1, window)
    mirrored = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(mirrored, kernel[:, :, None, :], groups=channels), kernel[:, :, :, None], groups=channels)
