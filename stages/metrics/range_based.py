"""Range-based precision, recall and F1: events and runs of alarms, compared as ranges.

Tatbul et al., "Precision and Recall for Time Series", NeurIPS 2018, with flat bias and cardinality 1 / x: a range earns `alpha` for being met at all
and 1 - alpha times the share of it that is met, divided by the number of ranges that meet it. Precision is the same with the roles changed, and
alpha 0 there by definition. Recall takes alpha 0.2, as TSB-AD does, whose values this file gives; alpha 0 is the pure overlap.
Deviation: TSB-AD sees no range where every step is flagged; here that is one range.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.events import Lengths, Runs, events_of, flagged_within, harmonic, runs
from stages.metrics.inputs import Flags, Floats, checked_label

ALPHA = 0.2


class RangeScore(NamedTuple):
    """All 0..1; precision is None where nothing is flagged."""

    precision: float | None
    recall: float
    f1: float


def range_based(alarm: ArrayLike, label: ArrayLike, alpha: float = ALPHA, lengths: Lengths = None) -> RangeScore:
    """alarm, label: (T,) 0/1; alpha: what existence weighs in recall, 0..1. Raises Undefined without an event."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    events = events_of(label, lengths)
    anomalous, flagged = checked_label(label, np.size(label)), checked_label(alarm, np.size(label))
    alarms = runs(flagged, lengths)
    recall = float(reward(events, flagged, alarms, alpha).mean())
    if not alarms.number:
        return RangeScore(None, recall, 0.0)
    precision = float(reward(alarms, anomalous, events).mean())
    return RangeScore(precision, recall, harmonic(precision, recall))


def reward(ranges: Runs, flagged: Flags, others: Runs, alpha: float = 0.0) -> Floats:
    """(E,) what each range earns. flagged: (T,), the steps of `others`."""
    met = flagged_within(flagged, ranges)
    pieces = np.searchsorted(others.start, ranges.stop, side="left") - np.searchsorted(others.stop, ranges.start, side="right")
    return alpha * (met > 0) + (1 - alpha) * met / ranges.length / np.maximum(pieces, 1)
