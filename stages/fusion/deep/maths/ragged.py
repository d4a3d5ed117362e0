"""Sequences of different lengths without padding: in batches of the training loop, and beside their neighbours in time.

B records, N tokens of all, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.datasets.records import Ragged, RecordSet, batches
from stages.types import Batch


class TokenSource:
    """The tokens of one modality, of those records that have it, as the training loop takes them; all in memory."""

    def __init__(self, records: RecordSet, modality: str) -> None:
        self.tokens = held(records, modality)
        self.tokens = self.tokens.take((self.tokens.lengths > 0).nonzero()[:, 0])
        self.samples = len(self.tokens.offsets) - 1

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, 256):
            yield self.take(list(range(start, min(start + 256, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        taken = self.tokens.take(torch.tensor(positions))
        count = len(positions)
        return Batch(taken._asdict(), torch.zeros(count, dtype=torch.int64), None, [""] * count, [""] * count)


def held(records: RecordSet, modality: str) -> Ragged:
    """One modality of all B records in memory, the others left where they are."""
    parts = [batch.tokens[modality] for batch in batches(records)]
    if not parts:
        return Ragged(torch.empty(0, records.widths[modality]), torch.empty(0), torch.zeros(1, dtype=torch.int64))
    lengths = torch.cat([part.lengths for part in parts])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Ragged(torch.cat([part.values for part in parts]), torch.cat([part.time for part in parts]), offsets)


def taken(features: dict[str, Tensor]) -> Ragged:
    """What `TokenSource.take` took apart."""
    return Ragged(*(features[name] for name in Ragged._fields))


def beside(values: Tensor, offsets: Tensor) -> Tensor:
    """(N, 3D): the token before, the token itself and the one behind; 0 where the record begins or ends. values: (N, D)."""
    begin, end = torch.ones(len(values), 1, device=values.device), torch.ones(len(values), 1, device=values.device)
    there = offsets.diff() > 0
    begin[offsets[:-1][there]], end[offsets[1:][there] - 1] = 0, 0
    nothing = values.new_zeros(1, values.shape[1])
    return torch.cat([torch.cat([nothing, values[:-1]]) * begin, values, torch.cat([values[1:], nothing]) * end], dim=1)


def record_means(values: Tensor, lengths: Tensor) -> Tensor:
    """(B, D): the mean over each record's tokens, 0 where it has none. values: (N, D); each record by itself, so that batches do not matter."""
    sums = torch.segment_reduce(values, "sum", lengths=lengths, axis=0, initial=0)
    return sums / lengths.clamp(min=1)[:, None]


def worst_stretch(errors: Tensor, time: Tensor, lengths: Sequence[int], window: float) -> Tensor:
    """(B,): the greatest of the moving means of each record, 0 where it has no token.

    errors, time: (N,). A mean is over the tokens not older than `window` (in the unit of `time`) before a token, itself included; so those at the beginning
    are of fewer tokens.
    """
    found = errors.new_zeros(len(lengths))
    for number, (own, moment) in enumerate(zip(errors.split(list(lengths)), time.split(list(lengths)), strict=True)):
        if len(own):
            age = moment[:, None] - moment
            within = ((age >= 0) & (age < window)).to(own.dtype)
            found[number] = ((within @ own) / within.sum(dim=1)).max()
    return found
