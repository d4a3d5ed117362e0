"""PCA monitoring of processes: what the correlations of normal operation do not explain, and how unusual the rest is (Jackson and Mudholkar, 1979).

Score: Q / s2 + T2, the two classic statistics in one (see whitening.py), of each step by itself. Components: as many as carry the share `explained` of
the variance. Deviation: the literature keeps two alarms with a limit each; a ranking takes one number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.timeseries.classical.whitening import covariance, whitening
from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run


class PCA(SeriesDetector):
    """Residual and Hotelling's T2 of the values of one step."""

    def __init__(self, *, explained: float = 0.9) -> None:
        if not 0 < explained <= 1:
            raise ValueError(f"explained is a share of the variance in 0..1, got {explained}")
        super().__init__()
        self.explained = explained
        self.register_buffer("whitening", torch.empty(0, dtype=torch.float64))

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        self.whitening = whitening(covariance(stretch.values for stretch in train), self.explained)

    def rate(self, values: Tensor) -> Tensor:
        return self._terms(values).sum(dim=1)

    @torch.no_grad()
    def attribution(self, values: Tensor) -> Tensor:
        """(T, V), the complete decomposition contributions: they add up to the score."""
        return self._terms(self.standardised(values)).float()

    def _terms(self, values: Tensor) -> Tensor:
        return (values.double() @ self.whitening).square()
