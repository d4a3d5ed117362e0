"""Events: maximal runs of anomalous steps, and how a row of alarms meets them.

T steps may be several segments laid end to end; `lengths` says how long each is, and no run reaches over a border. `event_f1` is the variant of
TSB-AD (Liu & Paparrizos, NeurIPS 2024): recall counts events, precision counts steps. A false alarm is a run of alarms without one anomalous
step: what an operator is called for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.inputs import Flags, Floats, Undefined, checked_label

Steps = NDArray[np.int64]
Lengths = Sequence[int] | NDArray[np.integer] | None  # of the segments, in order; None: one segment


class Runs(NamedTuple):
    """Runs in order of time, each the steps start .. stop - 1; both (E,)."""

    start: Steps
    stop: Steps

    @property
    def length(self) -> Steps:
        return self.stop - self.start

    @property
    def number(self) -> int:
        return len(self.start)


def runs(flagged: Flags, lengths: Lengths = None) -> Runs:
    """Maximal runs of True in (T,), cut at the borders of segments."""
    border = segment_ends(len(flagged), lengths)[:-1]
    opens, closes = flagged.copy(), flagged.copy()
    opens[1:] &= ~flagged[:-1]
    closes[:-1] &= ~flagged[1:]
    opens[border], closes[border - 1] = flagged[border], flagged[border - 1]
    return Runs(np.flatnonzero(opens), np.flatnonzero(closes) + 1)


def segment_ends(size: int, lengths: Lengths = None) -> Steps:
    """Where each segment stops, ascending; the last one is `size`. Raises ValueError if the lengths do not add up to it."""
    given = np.asarray([size] if lengths is None else lengths, dtype=np.int64)
    if given.ndim != 1 or (given < 1).any() or given.sum() != size:
        raise ValueError(f"the lengths of the segments must be positive and add up to the {size} steps, got {given.tolist()}")
    return np.cumsum(given)


def segment_bounds(step: Steps, ends: Steps) -> tuple[Steps, Steps]:
    """First step of the segment that each step lies in, and the step after its last; (E,) each."""
    segment = np.searchsorted(ends, step, side="right")
    return np.r_[0, ends][segment], ends[segment]


def flagged_within(flagged: Flags, ranges: Runs) -> Steps:
    """How many steps of each range are flagged, (E,)."""
    before = np.r_[0, np.cumsum(flagged)]
    return before[ranges.stop] - before[ranges.start]


def first_alarm(alarm: Flags, events: Runs) -> Floats:
    """Steps from the start of each event to the first alarm in it, (E,); NaN where it was missed."""
    at = np.r_[np.flatnonzero(alarm), len(alarm)]
    first = at[np.searchsorted(at[:-1], events.start)]
    return np.where(first < events.stop, first - events.start, np.nan)


def delay(alarm: ArrayLike, label: ArrayLike, lengths: Lengths = None) -> float:
    """Median steps from start to first alarm, over the events that were found. alarm, label: (T,) 0/1. Raises Undefined where none was."""
    flagged, events = _met(alarm, label, lengths)
    waited = first_alarm(flagged, events)
    if np.isnan(waited).all():
        raise Undefined(f"none of {events.number} events was found")
    return float(np.nanmedian(waited))


def missed_events(alarm: ArrayLike, label: ArrayLike, lengths: Lengths = None) -> int:
    """Events without one alarm. alarm, label: (T,) 0/1."""
    return int((flagged_within(*_met(alarm, label, lengths)) == 0).sum())


def event_f1(alarm: ArrayLike, label: ArrayLike, lengths: Lengths = None) -> float:
    """Harmonic mean of the share of events found and the share of alarm steps that are anomalous; 0 where no event was found.

    alarm, label: (T,) 0/1. Raises Undefined without an event.
    """
    flagged, events = _met(alarm, label, lengths)
    hits = flagged_within(flagged, events)
    if not hits.any():
        return 0.0
    return harmonic(float((hits > 0).mean()), float(hits.sum() / flagged.sum()))


def false_alarms(alarm: Flags, anomalous: Flags, lengths: Lengths = None) -> Runs:
    """Runs of alarms without an anomalous step in them."""
    alarms = runs(alarm, lengths)
    false = flagged_within(anomalous, alarms) == 0
    return Runs(alarms.start[false], alarms.stop[false])


def false_alarms_per_10k(alarm: ArrayLike, label: ArrayLike, lengths: Lengths = None) -> float:
    """False alarms (runs, not steps) per 10,000 normal steps. alarm, label: (T,) 0/1. Raises Undefined without a normal step."""
    anomalous = checked_label(label, np.size(label))
    if anomalous.all():
        raise Undefined(f"no normal step among {anomalous.size}: false alarms cannot be counted")
    return 10_000 * false_alarms(checked_label(alarm, anomalous.size), anomalous, lengths).number / int((~anomalous).sum())


def harmonic(first: float, second: float) -> float:
    """2ab / (a + b), and 0 where both are 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


def events_of(label: ArrayLike, lengths: Lengths = None) -> Runs:
    """The events of (T,) labels. Raises Undefined where there is none."""
    anomalous = checked_label(label, np.size(label))
    if not anomalous.any():
        raise Undefined(f"no anomalous step among {anomalous.size}: there is nothing to find")
    return runs(anomalous, lengths)


def _met(alarm: ArrayLike, label: ArrayLike, lengths: Lengths) -> tuple[Flags, Runs]:
    return checked_label(alarm, np.size(label)), events_of(label, lengths)
