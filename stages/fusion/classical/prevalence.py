"""The share of anomalies in train, for every record: perfectly calibrated where test is as train, and of no other use.

Its Brier score and likelihood are what a probability must beat to be worth anything; its AUROC is 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.datasets.records import Records, RecordSet
from stages.fusion.classical.logistic import prior
from stages.fusion.detector import RecordDetector
from stages.training import Run


class Prevalence(RecordDetector):
    """One number."""

    drawn = False
    blind = "says the same of every record"

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.register_buffer("logit", torch.zeros(1, dtype=torch.float64))

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        self.logit = torch.tensor([prior(train.label)], dtype=torch.float64)

    def rate(self, records: Records) -> Tensor:
        return self.logit.expand(records.samples)
