"""Whether an explanation is true to the detector, and to what really happened.

- Deletion and insertion (Petsiuk et al., "RISE", arXiv:1806.07421): tokens are put to the baseline from the one that is said to matter most downwards, or
  back from the baseline; the area under the score says how soon it falls, or rises. Beside it stands the same for a random order. Deviation: scores here are
  not probabilities, so they are taken relative to the whole record (1) and to the baseline (0).
- Pointing game (Zhang et al., arXiv:1608.00507): how often what is said to matter most lies where the fault was put.

B records, N tokens of one modality of all of them, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from stages.datasets.records import Records
from stages.fusion.explanations import Baseline, Span, stand_ins

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector

STEPS = 10  # shares of the tokens between none and all


class Areas(NamedTuple):
    """(B,) each: areas under the relative score, NaN for records whose score hardly differs from that of the baseline."""

    deletion: Tensor  # low is good
    insertion: Tensor  # high is good
    random_deletion: Tensor  # the same for a random order
    random_insertion: Tensor


def areas(
    detector: RecordDetector, records: Records, baseline: Baseline, strengths: Mapping[str, Tensor], generator: torch.Generator
) -> Areas:
    """strengths: by modality of the detector (N,). generator: of the random order."""
    fitted = detector.fitting(records)
    random = {name: torch.rand(len(one.values), generator=generator) for name, one in fitted.tokens.items()}
    found = []
    for order in (strengths, random):
        ranks = _ranks(fitted, order)
        found += [_area(detector, fitted, baseline, ranks, deleting) for deleting in (True, False)]
    return Areas(*found)


def pointing(spans: Sequence[Span], truth: Mapping[str, tuple[float, float]], tolerance: float = 0.0) -> float:
    """The share of the records of `truth`, (start, end) of the fault on their clock, whose strongest span with a time has its middle there; no span is a miss.

    tolerance: how far outside of the truth still counts. Raises ValueError where there is nothing to point at.
    """
    if not truth:
        raise ValueError("the pointing game needs records whose fault has a known time")
    strongest: dict[str, Span] = {}
    for span in spans:
        if (span.start, span.end) != (0.0, 1.0) and (span.record_id not in strongest or span.strength > strongest[span.record_id].strength):
            strongest[span.record_id] = span
    middles = {record: (span.start + span.end) / 2 for record, span in strongest.items()}
    return sum(
        record in middles and start - tolerance <= middles[record] <= end + tolerance for record, (start, end) in truth.items()
    ) / len(truth)


def _ranks(fitted: Records, order: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By modality (N,) in 0..1: the share of the record's tokens, of all modalities, that matter more."""
    names = list(fitted.tokens)
    record = torch.cat([torch.repeat_interleave(torch.arange(fitted.samples), fitted.tokens[name].lengths.cpu()) for name in names])
    strength = torch.cat([order[name].float().cpu() for name in names])
    first = torch.argsort(strength, descending=True, stable=True)
    first = first[torch.argsort(record[first], stable=True)]
    counts = torch.bincount(record, minlength=fitted.samples)
    place = torch.empty(len(record))
    place[first] = (torch.arange(len(record)) - (counts.cumsum(0) - counts)[record[first]]).float()
    share = place / counts[record]
    return dict(zip(names, share.split([len(fitted.tokens[name].values) for name in names]), strict=True))


def _area(detector: RecordDetector, fitted: Records, baseline: Baseline, ranks: Mapping[str, Tensor], deleting: bool) -> Tensor:
    """(B,) by the trapezoidal rule over shares of the tokens."""
    curve = []
    for step in range(STEPS + 1):
        gone = {name: (rank < step / STEPS) == deleting for name, rank in ranks.items()}
        tokens = {
            name: one._replace(values=torch.where(gone[name].to(one.values.device)[:, None], stand_ins(one, baseline[name]), one.values))
            for name, one in fitted.tokens.items()
        }
        curve.append(detector.score(fitted._replace(tokens=tokens)).double())
    whole, nothing = (curve[0], curve[-1]) if deleting else (curve[-1], curve[0])
    difference = torch.where((whole - nothing).abs() > 1e-3, whole - nothing, torch.nan)
    return torch.trapezoid((torch.stack(curve) - nothing) / difference, dx=1 / STEPS, dim=0).float()
