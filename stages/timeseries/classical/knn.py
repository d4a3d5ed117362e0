"""The distance to the k-th nearest training step (Ramaswamy, Rastogi and Shim, 2000): exact, each step by itself.

Deviation: the memory bank is at most `bank` training steps, drawn by seed without replacement; a smaller bank makes all distances longer, much alike
for normal steps and anomalies. An anomaly that is in the bank makes its like look normal: the price of contaminated training data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.timeseries.classical.windows import sample
from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run

QUERIES = 128  # at once: their distances to 10,000 rows take 5 MB


class KNN(SeriesDetector):
    """Euclidean distance to the `neighbours`-th nearest row of the bank."""

    def __init__(self, *, neighbours: int = 5, bank: int = 10_000) -> None:
        if not 1 <= neighbours <= bank:
            raise ValueError(f"neighbours must be in 1..bank ({bank}), got {neighbours}")
        super().__init__()
        self.neighbours, self.most = neighbours, bank
        self.register_buffer("memory_bank", torch.empty(0))

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        rows = torch.cat([stretch.values for stretch in train])
        self.memory_bank = rows[sample(len(rows), self.most, run.generator("bank"))]

    def rate(self, values: Tensor) -> Tensor:
        return torch.cat([self._distance(part) for part in values.split(QUERIES)])

    def _distance(self, queries: Tensor) -> Tensor:
        """(n,). The search rounds, as |x|^2 + |m|^2 - 2xm does; the distances are then taken from the rows themselves."""
        norms = self.memory_bank.square().sum(dim=1)
        squared = torch.addmm(norms, queries, self.memory_bank.T, alpha=-2)  # less |x|^2
        count = min(self.neighbours, len(self.memory_bank))
        nearest = squared.topk(count, dim=1, largest=False).indices
        return (self.memory_bank[nearest] - queries[:, None]).square().sum(dim=2).sqrt().amax(dim=1)
