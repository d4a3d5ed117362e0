"""Principal axes of a set of vectors, from a thin singular value decomposition of the centred rows in float64.

N vectors, D dimensions, r axes. The D x D covariance is never formed: with few images and long vectors it would be the larger by far, and
squaring the data would cost half the digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Axes(NamedTuple):
    """All that the rows span, largest variance first, in float64."""

    mean: Tensor  # (D,)
    axes: Tensor  # (D, r) orthonormal columns; r is min(N, D)
    deviation: Tensor  # (r,) standard deviation along each axis, with 1/N


def principal_axes(rows: Tensor) -> Axes:
    """rows: (N, D) of any float type, left as they are."""
    rows = rows.to(torch.float64)
    mean = rows.mean(dim=0)
    _, values, transposed = torch.linalg.svd(rows - mean, full_matrices=False)
    return Axes(mean, transposed.T, values / len(rows) ** 0.5)


def axes_for(deviation: Tensor, share: float) -> int:
    """The first r whose axes hold at least this share of the variance; 0 where nothing varies."""
    held = deviation.square().cumsum(dim=0)
    if held[-1] == 0:
        return 0
    enough = held / held[-1] >= share
    return int(enough.int().argmax()) + 1
