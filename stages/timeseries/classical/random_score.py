"""A score that knows nothing: the row that shows what a metric gives for luck.

The number is scattered from the bits of the step's values and the seed, so that a stored series, a part of it and a stream agree on it. Two steps with
the same values share one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.seed import derive
from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run


class RandomScore(SeriesDetector):
    """Uniform in 0..1."""

    blind = "looks at nothing that a planted anomaly would change"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seed", torch.empty(0, dtype=torch.int64))

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        self.seed = torch.tensor([derive(run.seed, "score")])

    def rate(self, values: Tensor) -> Tensor:
        state = self.seed.expand(len(values))
        for variable in values.contiguous().view(torch.int32).long().unbind(dim=1):
            state = scattered(state ^ scattered(variable))
        return (state >> 11 & (1 << 53) - 1).double() / (1 << 53)


def scattered(bits: Tensor) -> Tensor:
    """int64 to int64, one to one: each bit of the input changes half of the output's (the finaliser of SplitMix64)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        bits = (bits ^ (bits >> shift & (1 << 64 - shift) - 1)) * factor
    return bits ^ (bits >> 31 & (1 << 33) - 1)
