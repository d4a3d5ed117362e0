"""One matrix that holds a principal component model: the squared length of a row times it is T2 + Q / s2.

Of a covariance with eigenvectors P, the first k of which carry the share of variance asked for: Hotelling's T2 is the squared length in these k
directions, each in units of its own deviation; Q (the squared prediction error) is what the other directions hold, in units of their mean variance s2.
The sum is the Mahalanobis distance of probabilistic PCA (Tipping and Bishop, 1999). Written as |x M|^2 with the symmetric root M, its terms are the
complete decomposition contributions of the variables (Alcala and Qin, 2011): they are not negative and add up to the score.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

FLOOR = 1e-3  # least variance of a direction, of the 1 that a standardised variable has: what never moved may move by rounding


def covariance(chunks: Iterable[Tensor]) -> Tensor:
    """(D, D) float64 of all rows, N - 1 in the denominator. chunks: (n, D), taken once."""
    count, total, products = 0, 0.0, 0.0
    for chunk in chunks:
        rows = chunk.double()
        count, total, products = count + len(rows), total + rows.sum(dim=0), products + rows.T @ rows
    mean = total / count
    return (products - count * torch.outer(mean, mean)) / max(count - 1, 1)


def whitening(covariance: Tensor, explained: float) -> Tensor:
    """(D, D) float64 symmetric M. explained: the share of the variance that the components kept must reach, 0..1."""
    variance, directions = torch.linalg.eigh(covariance)
    variance, directions = variance.flip(0).clamp(min=0), directions.flip(1)
    kept = components(variance, explained)
    rest = variance[kept:].mean() if kept < len(variance) else variance.new_ones(())
    scale = torch.cat([variance[:kept], rest.expand(len(variance) - kept)]).clamp(min=FLOOR).rsqrt()
    return (directions * scale) @ directions.T


def components(variance: Tensor, explained: float) -> int:
    """How many of the variances, largest first, reach the share `explained` of their sum; at least 1."""
    share = variance.cumsum(0) / variance.sum().clamp(min=1e-12)
    return min(int((share < explained - 1e-9).sum()) + 1, len(variance))
