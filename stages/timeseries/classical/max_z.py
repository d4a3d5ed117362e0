"""The largest standard score: how far the farthest variable lies from its mean, in its own deviations.

No method, and the bar for all of them: data on which it does well need no model. Mean and deviation are the normalisation that every detector has, so
there is nothing else to learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run


class MaxZ(SeriesDetector):
    """max over v of |z_v|."""

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        pass

    def rate(self, values: Tensor) -> Tensor:
        return values.abs().amax(dim=1)

    @torch.no_grad()
    def attribution(self, values: Tensor) -> Tensor:
        return self.standardised(values).abs()
