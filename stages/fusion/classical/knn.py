"""The mean distance to the k nearest normal training records (Angiulli and Pizzuti, PKDD 2002), of pooled and standardised modalities. Exact.

Two records are compared by the modalities that both have: each gives its mean squared difference over columns, so that a wide embedding counts no more
than a narrow one, and the distance is the root of their mean (the partial distance of Dixon, IEEE SMC 9, 1979). A distance over fewer modalities
is as long as another on the average, but scatters more. A record that shares no modality with any in the bank gets the bank's own mean score.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.classical.pooled import Pool, Rows
from stages.fusion.detector import RecordDetector
from stages.training import Run

QUERIES = 256  # at once: their distances to 20,000 records take 40 MB


class KNN(RecordDetector):
    """neighbours: k, or as many as there are. spread: see `pooled`."""

    supervised = False
    drawn = False

    def __init__(self, *, neighbours: int = 5, spread: bool = False) -> None:
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got {neighbours}")
        super().__init__()
        self.neighbours, self.spread = neighbours, spread

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.pool = Pool(widths, self.spread)
        self.register_buffer("memory_bank", torch.empty(0, sum(self.pool.widths.values())))
        self.register_buffer("bank_present", torch.empty(0, len(widths), dtype=torch.bool))
        self.register_buffer("typical", torch.zeros(1, dtype=torch.float64))

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        rows = self.pool.learn(map(self.fitting, batches(train)))
        self.memory_bank, self.bank_present = rows.together, rows.present
        positions = torch.arange(len(rows.present))
        own = torch.cat([self._nearest(rows.take(part), without=part) for part in positions.split(QUERIES)])
        shared = own[own.isfinite()]
        self.typical = torch.tensor([shared.mean() if len(shared) else 0.0], dtype=torch.float64)

    def rate(self, records: Records) -> Tensor:
        rows = self.pool(records)
        positions = torch.arange(records.samples, device=rows.present.device)
        found = torch.cat([self._nearest(rows.take(part)) for part in positions.split(QUERIES)])
        return torch.where(found.isfinite(), found, self.typical)

    def _nearest(self, rows: Rows, without: Tensor | None = None) -> Tensor:
        """(B,) float64: the mean over the k nearest that share a modality, infinite where none does. without: (B,) a row of the bank to leave out."""
        distance = self._distances(rows)
        if without is not None:
            distance[torch.arange(len(distance)), without] = math.inf
        nearest = distance.topk(min(self.neighbours, distance.shape[1]), dim=1, largest=False).values
        counted = nearest.isfinite()
        mean = nearest.masked_fill(~counted, 0).sum(dim=1) / counted.sum(dim=1)
        return torch.where(counted.any(dim=1), mean, math.inf)

    def _distances(self, rows: Rows) -> Tensor:
        """(B, N) float64, infinite between records that share no modality."""
        total, shared = 0.0, 0.0
        bank = self.memory_bank.split(list(self.pool.widths.values()), dim=1)
        for number, (part, stored) in enumerate(zip(rows.parts.values(), bank, strict=True)):
            both = rows.present[:, number, None] & self.bank_present[:, number]
            total = total + both * torch.cdist(part.double(), stored.double()).square() / part.shape[1]
            shared = shared + both.double()
        return torch.where(shared > 0, (total / shared.clamp(min=1)).sqrt(), math.inf)
