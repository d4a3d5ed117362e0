"""PCA on windows: each variable's last w steps are variables of their own, so that shapes and delays count, not only levels.

The row "Sub-PCA" of TSB-AD (Liu and Paparrizos, 2024), for several variables at once: all steps of all variables of a window are one row. Score of a
window: Q / s2 + T2 (see whitening.py); of a step: the mean over the windows that cover it. Deviations: TSB-AD's row is for one variable and weights
every component by its variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.timeseries.classical.whitening import covariance, whitening
from stages.timeseries.classical.windows import flat_windows, long_enough, score_steps
from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run


class SubPCA(SeriesDetector):
    """Residual and Hotelling's T2 of windows."""

    def __init__(self, *, window: int = 20, explained: float = 0.9) -> None:
        if window < 1 or not 0 < explained <= 1:
            raise ValueError(f"expected window >= 1 and explained in 0..1, got {window} and {explained}")
        super().__init__()
        self.window, self.explained = window, explained
        self.past = self.future = window - 1
        self.register_buffer("whitening", torch.empty(0, dtype=torch.float64))

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        chunks = (chunk for values in long_enough(train, self.window) for chunk in flat_windows(values, self.window))
        self.whitening = whitening(covariance(chunks), self.explained)

    def rate(self, values: Tensor) -> Tensor:
        return score_steps(values, self.window, lambda rows: (rows.double() @ self.whitening).square().sum(dim=1))
