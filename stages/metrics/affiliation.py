"""Affiliation precision and recall: how near alarms lie to events, as the chance that a random alarm would lie no nearer.

Huet, Navarro & Rossi, "Local Evaluation of Time Series Anomaly Detection Algorithms", KDD 2022; values equal the authors' code. Step t is the
interval [t, t + 1). The time axis is cut halfway between neighbouring events, and each event J is judged in its zone E alone:
- precision: for a flagged point at distance d from J, the chance 1 - (|J| + min(d, m) + d) / |E| that a random point of E lies farther away (m: the
  shorter of the two stretches beside J; 1 inside J), averaged over the flagged points of E; undefined where none is;
- recall: for a point y of J at distance d from the flagged points of E, the chance 1 - (min(d, border) + d) / |E| that a random point lies
  farther from y (border: its distance to the nearer end of E), averaged over J; 0 where nothing in E is flagged.
Both are then averaged over events, precision over those that have one. Both integrals are taken in closed form, for all events at once.

A random alarm has precision 1/2 by construction, and many random alarms have a recall near 1, so F near 0.67 is chance. Zones reach over the borders
of segments, so that a false alarm in a segment without events still counts against the nearest one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.events import Lengths, Runs, Steps, events_of, harmonic, runs
from stages.metrics.inputs import Flags, Floats, Undefined, checked_label


class Affiliation(NamedTuple):
    """All 0..1; `f` is their harmonic mean."""

    precision: float
    recall: float
    f: float


class PerEvent(NamedTuple):
    """Both (E,); precision is NaN where nothing in the zone is flagged."""

    precision: Floats
    recall: Floats


class Pieces(NamedTuple):
    """Flagged stretches cut at the borders of zones, in order of time; all (N,)."""

    start: Floats
    stop: Floats
    zone: Steps  # index of the event


def affiliation(alarm: ArrayLike, label: ArrayLike, lengths: Lengths = None) -> Affiliation:
    """alarm, label: (T,) 0/1. Raises Undefined without an event, and where nothing is flagged."""
    events = events_of(label, lengths)
    flagged = checked_label(alarm, np.size(label))
    if not flagged.any():
        raise Undefined(f"no alarm among {flagged.size} steps: there is nothing whose precision could be told")
    each = affiliation_per_event(flagged, events)
    precision, recall = float(np.nanmean(each.precision)), float(each.recall.mean())
    return Affiliation(precision, recall, harmonic(precision, recall))


def affiliation_per_event(alarm: Flags, events: Runs) -> PerEvent:
    """alarm: (T,); at least one event."""
    middle = (events.stop[:-1] + events.start[1:]) / 2
    low, high = np.r_[0.0, middle], np.r_[middle, float(len(alarm))]
    pieces = _pieces(runs(alarm), low, high)
    return PerEvent(_precision(pieces, events, low, high), _recall(pieces, events, low, high))


def _pieces(alarms: Runs, low: Floats, high: Floats) -> Pieces:
    first = np.searchsorted(high, alarms.start, side="right")
    last = np.searchsorted(low, alarms.stop, side="left") - 1
    number = last - first + 1
    zone = np.repeat(first - np.cumsum(number) + number, number) + np.arange(number.sum())
    start, stop = (np.repeat(side, number) for side in alarms)
    return Pieces(np.maximum(start, low[zone]), np.minimum(stop, high[zone]), zone)


def _precision(pieces: Pieces, events: Runs, low: Floats, high: Floats) -> Floats:
    """(E,) mean chance over the flagged points of each zone."""
    start, stop, zone = pieces
    left, right, width = events.start[zone], events.stop[zone], (high - low)[zone]
    shorter = np.minimum(events.start - low, high - events.stop)[zone]
    within = np.clip(np.minimum(stop, right) - np.maximum(start, left), 0, None)
    worse = np.zeros(len(zone))
    for near, far in ((left - stop, left - start), (start - right, stop - right)):
        near, far = np.clip(near, 0, None), np.clip(far, 0, None)
        worse += (far - near) * (right - left) + _two_sided(far, shorter) - _two_sided(near, shorter)
    length = stop - start
    outside = length - within
    total = np.bincount(zone, within + outside - worse / width, minlength=len(low))
    flagged = np.bincount(zone, length, minlength=len(low))
    return np.divide(total, flagged, out=np.full(len(low), np.nan), where=flagged > 0)


def _recall(pieces: Pieces, events: Runs, low: Floats, high: Floats) -> Floats:
    """(E,) mean chance over the points of each event; what a point misses is told from the nearest piece, so gaps are halved."""
    start, stop, zone = pieces
    same = zone[1:] == zone[:-1]
    middle = (stop[:-1] + start[1:]) / 2
    until = np.r_[np.where(same, middle, high[zone[:-1]]), high[zone[-1:]]]
    since = np.r_[low[zone[:1]], np.where(same, middle, low[zone[1:]])]
    left, right = events.start[zone], events.stop[zone]
    after = _missed(np.maximum(left, stop) - stop, np.minimum(right, until) - stop, high[zone] - stop)
    before = _missed(start - np.minimum(right, start), start - np.maximum(left, since), start - low[zone])
    missed = np.bincount(zone, after + before, minlength=len(low)) / (high - low)
    found = np.bincount(zone, minlength=len(low)) > 0
    return np.where(found, 1 - missed / events.length, 0.0)


def _two_sided(distance: Floats, shorter: Floats) -> Floats:
    """Integral of min(x, shorter) + x from 0 to distance."""
    near = np.minimum(distance, shorter)
    return near**2 / 2 + shorter * (distance - near) + distance**2 / 2


def _missed(near: Floats, far: Floats, room: Floats) -> Floats:
    """Integral of min(x, room - x) + x over near .. far, 0 where that is empty; room: from the flagged point to the end of the zone."""

    def upto(distance: Floats) -> Floats:
        folded = np.where(distance <= room / 2, distance**2 / 2, room**2 / 4 - (room - distance) ** 2 / 2)
        return folded + distance**2 / 2

    return np.where(far > near, upto(far) - upto(near), 0.0)
