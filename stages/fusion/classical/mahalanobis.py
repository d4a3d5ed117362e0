"""How far a record lies from the mean of the normal ones, in units of how they vary, for each modality by itself; then the sum over those it has.

The covariance of a pooled modality is shrunk towards a multiple of the identity by the amount that Ledoit and Wolf (Journal of Multivariate Analysis
88, 2004) derive, for there are often fewer records than columns. The squared distance of each modality is brought to mean 0 and deviation 1 on normal
records, so that every modality has one vote, and the sum is divided by the root of the number of modalities: of a normal record it has the same spread
however many there are. The normal records that set this scale are those of val where at least 20 have the modality, as those that the covariance
was learnt from lie too near; else those of train.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.classical.pooled import Pool, Rows
from stages.fusion.detector import RecordDetector
from stages.training import Run

FLOOR = 1e-6  # added to every variance, of the 1 that a standardised column has: modalities that never vary have none
ENOUGH = 20  # held-out records that a mean and a deviation are taken from


class Mahalanobis(RecordDetector):
    """spread: see `pooled`."""

    supervised = False
    drawn = False

    def __init__(self, *, spread: bool = False) -> None:
        super().__init__()
        self.spread = spread

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.pool = Pool(widths, self.spread)
        for number, width in enumerate(self.pool.widths.values()):
            self.register_buffer(f"mean{number}", torch.zeros(width, dtype=torch.float64))
            self.register_buffer(f"whitening{number}", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("centre", torch.zeros(len(widths), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(widths), dtype=torch.float64))

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        rows = self.pool.learn(map(self.fitting, batches(train)))
        held_out = self.pool.rows(map(self.fitting, batches(val)))
        held_out = held_out.take(held_out.label == 0)
        for number, part in enumerate(rows.parts.values()):
            seen = part[rows.present[:, number]]
            if len(seen) > 1:
                mean, whitening = shrunk(seen)
                setattr(self, f"mean{number}", mean)
                setattr(self, f"whitening{number}", whitening)
        for number in range(len(self.widths)):
            source = held_out if held_out.present[:, number].sum() >= ENOUGH else rows
            own = self.squared(source)[source.present[:, number], number]
            if len(own) > 1:
                self.centre[number], self.scale[number] = own.mean(), own.std().clamp(min=1e-6)

    def rate(self, records: Records) -> Tensor:
        rows = self.pool(records)
        scaled = (self.squared(rows) - self.centre) / self.scale
        return (scaled * rows.present).sum(dim=1) / rows.present.sum(dim=1).sqrt()

    def squared(self, rows: Rows) -> Tensor:
        """(B, M) float64: the squared distance of each modality; of one that is absent it means nothing."""
        state = [(getattr(self, f"mean{number}"), getattr(self, f"whitening{number}")) for number in range(len(rows.parts))]
        whitened = [(part - mean) @ whitening for part, (mean, whitening) in zip(rows.parts.values(), state, strict=True)]
        return torch.stack([one.square().sum(dim=1) for one in whitened], dim=1)


def shrunk(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and whitening (D, D), both float64: the squared length of (x - mean) @ whitening is the squared distance. rows: (N, D), N > 1."""
    from sklearn.covariance import LedoitWolf

    found = LedoitWolf().fit(rows.double().numpy())
    unit = torch.eye(rows.shape[1], dtype=torch.float64)
    root = torch.linalg.cholesky(torch.from_numpy(found.covariance_) + FLOOR * unit)
    return torch.from_numpy(found.location_), torch.linalg.solve_triangular(root, unit, upper=False).T.contiguous()
