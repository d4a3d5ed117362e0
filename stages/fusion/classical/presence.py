"""A control for honesty: what can be known from which modalities are there, without a look at any of them.

Where records of one label lack a sensor more often, every model with indicators may learn that and call it sensing (missing not at random; MultiModN,
NeurIPS 2023, arXiv:2309.14118, shows how it fails once the habit breaks). With `lengths` the number of tokens of each modality is told too: how
long a recording ran, how much was written. A model that does not beat this row has not shown that content helps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.classical.logistic import C, logistic
from stages.fusion.detector import RecordDetector
from stages.training import Run


class Presence(RecordDetector):
    """Logistic regression on the indicators, and with `lengths` on log(1 + tokens) as well. c: penalties to choose from on val."""

    drawn = False
    blind = "looks at what is there and not at what it shows"

    def __init__(self, *, lengths: bool = False, c: tuple[float, ...] = (*C, 10.0)) -> None:
        super().__init__()
        self.lengths, self.c = lengths, c

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        columns = len(widths) * (2 if self.lengths else 1)
        self.register_buffer("weight", torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        told, held_out = self._all(train), self._all(val)
        judged = val.label >= 0
        line = logistic(told, train.label, held_out[judged], val.label[judged], self.c)
        self.weight, self.bias = line.weight, line.bias

    def rate(self, records: Records) -> Tensor:
        return self._told(records) @ self.weight + self.bias

    def _all(self, records: RecordSet) -> Tensor:
        none = torch.empty(0, len(self.weight), dtype=torch.float64)
        return torch.cat([none, *(self._told(self.fitting(one)) for one in batches(records))])

    def _told(self, records: Records) -> Tensor:
        """(B, M) float64, or (B, 2M)."""
        there = records.present.double()
        if not self.lengths:
            return there
        tokens = torch.stack([one.lengths for one in records.tokens.values()], dim=1)
        return torch.cat([there, tokens.double().log1p()], dim=1)
