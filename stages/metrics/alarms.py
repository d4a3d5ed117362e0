"""What the alarms of one threshold did, as sums over blocks of time: every metric at a threshold is a ratio of such sums.

Steps, events, runs of alarms and affiliation zones are each booked in one block (a run in the one it starts in), so a resample of blocks is a
weighted sum, and all blocks together give the metric of the data itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.affiliation import affiliation_per_event
from stages.metrics.events import Lengths, Steps, false_alarms, flagged_within, runs
from stages.metrics.inputs import Flags, Floats
from stages.metrics.range_based import ALPHA, reward

REASONS = {
    "f1": "no anomalous step, and none was called so",
    "precision": "nothing was called anomalous",
    "recall": "no anomalous step",
    "event_f1": "no event",
    "range_f1": "no event",
    "affiliation_f": "no event",
    "affiliation_precision": "no event, or nothing was called anomalous",
    "affiliation_recall": "no event",
    "missed_event_rate": "no event",
    "false_alarms_per_10k": "no normal step",
    "false_alarm_rate": "no normal step",
    "missing_alarm_rate": "no anomalous step",
}


class AlarmSums(NamedTuple):
    """Sums over blocks or over resamples, all of one shape (...)."""

    tp: Floats
    fn: Floats
    fp: Floats
    tn: Floats
    events: Floats
    found: Floats  # events with an alarm
    false_alarms: Floats  # runs
    range_recall: Floats  # summed over events
    range_precision: Floats  # summed over runs of alarms
    alarms: Floats  # runs
    near_recall: Floats  # affiliation, summed over events
    near_precision: Floats  # summed over events that have one
    near: Floats  # events that have one

    def drawn(self, weight: NDArray) -> AlarmSums:
        """Blocks counted as often as they were drawn: (N,) fields to (R,). weight: (R, N)."""
        return AlarmSums(*(weight @ field for field in self))

    def metrics(self) -> dict[str, Floats]:
        """By name as in REASONS, (...); NaN where a metric has no value. A harmonic mean is 0 where its recall is."""
        recall, precision = _ratio(self.tp, self.tp + self.fn), _ratio(self.tp, self.tp + self.fp)
        near_recall, near_precision = _ratio(self.near_recall, self.events), _ratio(self.near_precision, self.near)
        false_alarm_rate = _ratio(self.fp, self.fp + self.tn)
        return {
            "f1": _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn),
            "precision": precision,
            "recall": recall,
            "event_f1": _harmonic(_ratio(self.found, self.events), precision),
            "range_f1": _harmonic(_ratio(self.range_recall, self.events), _ratio(self.range_precision, self.alarms)),
            "affiliation_f": _harmonic(near_recall, near_precision),
            "affiliation_precision": near_precision,
            "affiliation_recall": near_recall,
            "missed_event_rate": 1 - _ratio(self.found, self.events),
            "false_alarms_per_10k": 10_000 * _ratio(self.false_alarms, self.fp + self.tn),
            "false_alarm_rate": false_alarm_rate,
            "missing_alarm_rate": 1 - recall,
        }


def alarm_sums(alarm: Flags, anomalous: Flags, lengths: Lengths, block: Steps) -> AlarmSums:
    """Per block, (N,) each. alarm, anomalous: (T,); block: (T,) index of the block of each step, from 0."""
    events, alarms = runs(anomalous, lengths), runs(alarm, lengths)

    def booked(step: Steps, value: Floats | None = None) -> Floats:
        return np.bincount(block[step], value, minlength=int(block.max()) + 1).astype(np.float64)

    near = affiliation_per_event(alarm, events) if events.number else None
    judged = np.isfinite(near.precision) if near else np.zeros(0, dtype=bool)
    return AlarmSums(
        *(booked(np.flatnonzero(steps)) for steps in (alarm & anomalous, ~alarm & anomalous, alarm & ~anomalous, ~alarm & ~anomalous)),
        events=booked(events.start),
        found=booked(events.start[flagged_within(alarm, events) > 0]),
        false_alarms=booked(false_alarms(alarm, anomalous, lengths).start),
        range_recall=booked(events.start, reward(events, alarm, alarms, ALPHA)),
        range_precision=booked(alarms.start, reward(alarms, anomalous, events)),
        alarms=booked(alarms.start),
        near_recall=booked(events.start, near.recall if near else np.zeros(0)),
        near_precision=booked(events.start[judged], near.precision[judged] if near else np.zeros(0)),
        near=booked(events.start[judged]),
    )


def _ratio(part: Floats, whole: Floats) -> Floats:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _harmonic(recall: Floats, precision: Floats) -> Floats:
    both = recall + precision
    mean = np.divide(2 * recall * precision, both, out=np.full(np.shape(both), np.nan), where=both > 0)
    return np.where((recall == 0) | (both == 0), 0.0, mean)
