"""When and by which medium a record looks anomalous: its score less its score without the tokens of one medium in one tenth of its time.

Nothing of the detector is needed but its score. What a stretch of time adds is what is lost without it (Zeiler and Fergus, "Visualizing and Understanding
Convolutional Networks", 2014, arXiv:1311.2901, in time instead of space). The span that is named is the strongest tenth and its neighbours of the same
medium that lose at least half as much; where nothing is lost anywhere, there is none. Photographs have angles and no moments, so they name no span.

B records, M modalities, P parts of the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.datasets.records import Ragged, Records, RecordSet, batches
from stages.fusion.scoring import shows

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector

PARTS = 10
VIEWS = "image"  # the modality whose times tell the angle of a photograph and no moment
ENOUGH = 0.5  # of the strongest part's loss: from there on a neighbour belongs to the span


class Span(NamedTuple):
    """Times are those of the tokens, 0..1 of the clock that they were put on."""

    record_id: str
    modality: str
    start: float
    end: float
    strength: float  # by how much the score falls without the strongest part


def spans(detector: RecordDetector, records: RecordSet, device: torch.device | str = "cpu", parts: int = PARTS) -> list[Span]:
    """The span of each record in which its fault is suspected; those that show none are left out."""
    seen = records.kept(np.flatnonzero(shows(records)).tolist())
    found: list[Span] = []
    for batch in batches(seen):
        lost, names = losses(detector, batch.to(device), parts)
        last = duration(batch, names).tolist()
        found += [span for place, name in enumerate(batch.record_id) if (span := strongest(name, lost[place], names, last[place]))]
    return found


def losses(detector: RecordDetector, batch: Records, parts: int = PARTS) -> tuple[np.ndarray, list[str]]:
    """(B, M, P) by how much the score falls without each part of each modality, and the M modalities that have a time. Records must show something.

    A part that holds no token, or all that a record shows, loses nothing.
    """
    fitted = detector.fitting(batch)
    names = [name for name, one in fitted.tokens.items() if len(moments(name, one).unique()) > 1]
    whole, last = detector.score(fitted).double().cpu(), duration(fitted, names)
    lost = torch.zeros(fitted.samples, len(names), parts, dtype=torch.float64)
    for member, name in enumerate(names):
        own = fitted.tokens[name]
        part_of = (own.time / last.repeat_interleave(own.lengths) * parts).long().clamp(0, parts - 1)
        for part in range(parts):
            left = kept(own, part_of != part)
            without = fitted._replace(tokens={**fitted.tokens, name: left})
            touched = (left.lengths < own.lengths) & without.present.any(1)
            rows = touched.nonzero()[:, 0].cpu()
            if len(rows):
                lost[rows, member, part] = whole[rows] - detector.score(without.take(rows.tolist())).double().cpu()
    return lost.numpy(), names


def moments(name: str, one: Ragged) -> Tensor:
    """(N,) when the tokens of a modality were recorded, 0 where they have no order in time."""
    return torch.zeros_like(one.time) if name == VIEWS else one.time


def duration(records: Records, names: list[str]) -> Tensor:
    """(B,): the time of each record's last token in these modalities, above 0."""
    last = torch.full((records.samples,), 1e-6, device=records.label.device)
    for one in (records.tokens[name] for name in names):
        owner = torch.repeat_interleave(torch.arange(len(last), device=last.device), one.lengths)
        last = last.scatter_reduce(0, owner, one.time, "amax")
    return last


def strongest(record_id: str, lost: np.ndarray, names: list[str], duration: float = 1.0) -> Span | None:
    """lost: (M, P) of one record, the parts being those of its duration."""
    if not lost.size or lost.max() <= 0:
        return None
    member, part = np.unravel_index(int(lost.argmax()), lost.shape)
    own, first, last = lost[member], int(part), int(part)
    enough = ENOUGH * own[part]
    while first > 0 and own[first - 1] >= enough:
        first -= 1
    while last + 1 < len(own) and own[last + 1] >= enough:
        last += 1
    return Span(record_id, names[member], duration * first / len(own), duration * (last + 1) / len(own), float(own[part]))


def kept(one: Ragged, wanted: Tensor) -> Ragged:
    """The tokens that are wanted, (all tokens,) bool, each still of its record."""
    owner = torch.repeat_interleave(torch.arange(len(one.lengths), device=one.lengths.device), one.lengths)
    lengths = torch.bincount(owner[wanted], minlength=len(one.lengths))
    return Ragged(one.values[wanted], one.time[wanted], torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
