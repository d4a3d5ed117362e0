"""One Gaussian per position: moments summed as images stream by, and Mahalanobis distances by a triangular solve.

P positions, d dimensions. Sums are kept in float64, where sum(ee') - N mu mu' loses nothing that matters; no inverse is ever formed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Moments:
    """Running sums of e and ee' at each of P positions."""

    def __init__(self, positions: int, width: int, device: torch.device) -> None:
        self.count = 0
        self.total = torch.zeros(positions, width, dtype=torch.float64, device=device)
        self.products = torch.zeros(positions, width, width, dtype=torch.float64, device=device)

    def add(self, embeddings: Tensor) -> None:
        """embeddings: (B, P, d)."""
        columns = embeddings.to(self.total).transpose(0, 1)  # (P, B, d)
        self.count += len(embeddings)
        self.total += columns.sum(dim=1)
        self.products.baddbmm_(columns.transpose(1, 2), columns)

    def gaussian(self, epsilon: float) -> tuple[Tensor, Tensor]:
        """(P, d) means and (P, d, d) lower Cholesky factors of the unbiased covariance + epsilon I, in float64. Uses up the sums.

        Epsilon is what makes the covariance of fewer images than dimensions invertible.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        mean = self.total / self.count
        covariance = self.products.sub_(self.count * mean[:, :, None] * mean[:, None, :]).div_(self.count - 1)
        covariance.diagonal(dim1=1, dim2=2).add_(epsilon)
        return mean, torch.linalg.cholesky(covariance)


def mahalanobis(difference: Tensor, factor: Tensor) -> Tensor:
    """(P,) distances ||L^-1 (e - mu)|| for (P, d) differences and (P, d, d) lower Cholesky factors L."""
    return torch.linalg.solve_triangular(factor, difference[:, :, None], upper=False)[:, :, 0].norm(dim=1)


def pack_lower(factor: Tensor) -> Tensor:
    """(P, d, d) lower triangular -> (P, d (d + 1) / 2), row by row: half the bytes in a file."""
    rows, columns = torch.tril_indices(factor.shape[1], factor.shape[1], device=factor.device)
    return factor[:, rows, columns]


def unpack_lower(packed: Tensor) -> Tensor:
    """The inverse of `pack_lower`."""
    width = (math.isqrt(8 * packed.shape[1] + 1) - 1) // 2
    rows, columns = torch.tril_indices(width, width, device=packed.device)
    factor = packed.new_zeros(len(packed), width, width)
    factor[:, rows, columns] = packed
    return factor
