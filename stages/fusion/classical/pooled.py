"""Records to one standardised row each: the mean over the tokens of each modality, beside which modalities are there.

The mean forgets the order of tokens and what only a few of them show; `spread` adds the standard deviation over tokens, which sees part of that.
Each column is standardised by the training records that have its modality. What is absent is 0 afterwards, the mean of the training records: the
simplest imputation, honest only beside the indicators `present`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from stages.datasets.records import Ragged, Records
from stages.types import Resizing

FLOOR = 1e-6  # a column that varies less on train is left in its own units


class Rows(NamedTuple):
    """B records, pooled and standardised."""

    parts: dict[str, Tensor]  # by modality (B, D) float32; 0 where it is absent
    present: Tensor  # (B, M) bool, columns in the order of `parts`
    label: Tensor  # (B,) int8

    @property
    def together(self) -> Tensor:
        """(B, sum of D)."""
        return torch.cat(list(self.parts.values()), dim=1)

    def take(self, kept: Tensor) -> Rows:
        """kept: (B,) bool, or positions."""
        return Rows({name: part[kept] for name, part in self.parts.items()}, self.present[kept], self.label[kept])


class Pool(Resizing):
    """Pools the modalities named in `widths`, in their order, and passes over all others."""

    def __init__(self, widths: dict[str, int], spread: bool = False) -> None:
        super().__init__()
        self.spread = spread
        self.widths = {name: width * (2 if spread else 1) for name, width in widths.items()}
        self.register_buffer("centre", torch.zeros(sum(self.widths.values()), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(sum(self.widths.values()), dtype=torch.float64))

    def learn(self, train: Iterable[Records]) -> Rows:
        """Take centre and scale from these records; they come back as rows."""
        rows = self._joined([self._pooled(records) for records in train])
        centre, scale = [], []
        for (name, width), there in zip(self.widths.items(), rows.present.T, strict=True):
            seen = rows.parts[name][there].double()
            deviation = seen.std(dim=0, correction=0) if len(seen) else torch.ones(width, dtype=torch.float64)
            centre.append(seen.mean(dim=0) if len(seen) else torch.zeros(width, dtype=torch.float64))
            scale.append(torch.where(deviation > FLOOR, deviation, 1.0))
        self.centre, self.scale = torch.cat(centre), torch.cat(scale)
        return self._standardised(rows)

    def rows(self, records: Iterable[Records]) -> Rows:
        """All of them; there may be none."""
        return self._joined([self(one) for one in records])

    def forward(self, records: Records) -> Rows:
        return self._standardised(self._pooled(records))

    def _pooled(self, records: Records) -> Rows:
        taken = records._replace(tokens={name: records.tokens[name] for name in self.widths})
        parts = {name: pooled(one, self.spread).float() for name, one in taken.tokens.items()}
        return Rows(parts, taken.present, records.label)

    def _standardised(self, rows: Rows) -> Rows:
        widths = list(self.widths.values())
        units = zip(self.centre.split(widths), self.scale.split(widths), rows.present.T, strict=True)
        parts = {
            name: ((rows.parts[name] - centre) / scale * there[:, None]).float()
            for name, (centre, scale, there) in zip(self.widths, units, strict=True)
        }
        return rows._replace(parts=parts)

    def _joined(self, chunks: list[Rows]) -> Rows:
        if not chunks:
            parts = {name: torch.empty(0, width) for name, width in self.widths.items()}
            return Rows(parts, torch.empty(0, len(parts), dtype=torch.bool), torch.empty(0, dtype=torch.int8))
        parts = {name: torch.cat([chunk.parts[name] for chunk in chunks]) for name in self.widths}
        return Rows(parts, torch.cat([chunk.present for chunk in chunks]), torch.cat([chunk.label for chunk in chunks]))


def pooled(tokens: Ragged, spread: bool) -> Tensor:
    """(B, D) float64: the mean over each record's tokens, 0 where it has none; (B, 2D) with their deviation, which of one token is 0, behind it."""
    count = tokens.lengths.clamp(min=1)[:, None]
    values = tokens.values.double()
    mean = _sums(values, tokens.lengths) / count
    if not spread:
        return mean
    rest = values - mean.repeat_interleave(tokens.lengths, dim=0)
    return torch.cat([mean, (_sums(rest.square(), tokens.lengths) / count).sqrt()], dim=1)


def _sums(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, D); each record by itself, so that its sum does not depend on its batch."""
    return torch.segment_reduce(values, "sum", lengths=lengths, axis=0, initial=0)
