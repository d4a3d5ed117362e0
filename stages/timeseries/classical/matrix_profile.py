"""Matrix profile: how far the shape of a window is from the nearest shape in the training data (Yeh et al., 2016), the join of a series with another.

Each variable by itself: windows of w steps lose their mean and deviation, so that only their shape is compared; a window scores its Euclidean distance
to the nearest training window, a step the mean over the windows that cover it, and the variables are put together by their mean or their maximum. Two
flat windows are alike, and a flat one is sqrt(w) from any other. Deviations: the reference is at most `reference` training windows, drawn by seed; there
is one matrix product for each block instead of a running update along the diagonals (STOMP), which gives the same distances, needs no compiler and can
answer for one row of a stream. Variables whose deviation in a window is below `FLAT` of that on train count as flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from stages.timeseries.classical.windows import long_enough, over_steps, sampled_windows, windows
from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run

FLAT = 1e-3
QUERIES, ROWS = 512, 1024  # of one block of products: 2 MB, which stays in the cache


class MatrixProfile(SeriesDetector):
    """Shape distance of windows to the nearest training window."""

    def __init__(self, *, window: int = 50, across: Literal["mean", "max"] = "mean", reference: int = 3_000) -> None:
        if window < 2 or reference < 1:
            raise ValueError(f"expected window >= 2 and reference >= 1, got {window} and {reference}")
        super().__init__()
        self.window, self.across, self.most = window, across, reference
        self.past = self.future = window - 1
        self.register_buffer("reference", torch.empty(0))  # (V, N, window), shapes

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        series = long_enough(train, self.window)
        rows = sampled_windows(series, self.window, self.most, run.generator("windows"))
        self.reference = shapes(rows.unflatten(1, (-1, self.window)).transpose(0, 1)).contiguous()

    def rate(self, values: Tensor) -> Tensor:
        scored = torch.cat([self._distance(chunk) for chunk in windows(values, self.window).split(QUERIES)])  # (N, V)
        merged = scored.mean(dim=1) if self.across == "mean" else scored.amax(dim=1)
        return over_steps(merged, self.window)[: len(values)]

    def _distance(self, chunk: Tensor) -> Tensor:
        """(n, V, window) to (n, V). The nearest row is found by products; its distance is then taken from the rows themselves."""
        return torch.stack([_to_nearest(shapes(own), rows) for own, rows in zip(chunk.transpose(0, 1), self.reference)], dim=1)


def shapes(rows: Tensor) -> Tensor:
    """Windows without mean, of squared length w; flat ones are 0. rows: (..., w)."""
    centred = rows - rows.mean(dim=-1, keepdim=True)
    deviation = centred.square().mean(dim=-1, keepdim=True).sqrt()
    return torch.where(deviation > FLAT, centred / deviation.clamp(min=FLAT), 0.0)


def _to_nearest(queries: Tensor, rows: Tensor) -> Tensor:
    """(n,) Euclidean distances. queries: (n, w), rows: (N, w)."""
    best = queries.new_full((len(queries),), torch.inf)
    found = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        least, place = torch.addmm(part.square().sum(dim=1), queries, part.T, alpha=-2).min(dim=1)  # squared, less |q|^2
        found, best = torch.where(least < best, place + start, found), torch.minimum(best, least)
    return (queries - rows[found]).square().sum(dim=1).sqrt()
