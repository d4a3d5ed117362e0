"""Late fusion without anything to learn: one logistic regression for each modality, and the mean of what the modalities that are there say.

The mean of logits is the geometric mean of odds (a product of experts, tempered by their number), so a missing modality changes nothing but who is
asked. It cannot see that one modality is worth more than another, or what two of them show only together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.classical.logistic import ByModality, C, labelled
from stages.fusion.classical.pooled import Pool
from stages.fusion.detector import RecordDetector
from stages.training import Run


class MeanLogit(RecordDetector):
    """spread: see `pooled`. c: penalties to choose from on val, for each modality by itself."""

    drawn = False

    def __init__(self, *, spread: bool = False, c: tuple[float, ...] = C) -> None:
        super().__init__()
        self.spread, self.c = spread, c

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.pool = Pool(widths, self.spread)
        self.regressions = ByModality(self.pool.widths)

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        rows = self.pool.learn(map(self.fitting, batches(train)))
        self.regressions.learn(rows, labelled(self.pool.rows(map(self.fitting, batches(val)))), dict.fromkeys(self.widths, self.c))

    @property
    def nothing(self) -> float:
        return float(self.regressions.prior)

    def rate(self, records: Records) -> Tensor:
        rows = self.pool(records)
        speaks, logits = self.regressions.speaks(rows), self.regressions(rows)
        mean = (logits * speaks).sum(dim=1) / speaks.sum(dim=1).clamp(min=1)
        return torch.where(speaks.any(dim=1), mean, self.regressions.prior)
