"""A score that knows nothing: the row that shows what a metric gives for luck.

The scores of a step are drawn from its place and the seed alone, so that a stream and a stored series agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.seed import torch_generator
from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run


class RandomScore(SeriesDetector):
    """Uniform in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seed", torch.empty(0, dtype=torch.int64))

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        self.seed = torch.tensor([run.seed])

    def rate(self, values: Tensor) -> Tensor:
        return torch.rand(len(values), generator=torch_generator(int(self.seed), "score"))
