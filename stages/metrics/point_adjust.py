"""Point-adjusted F1, which flatters, and PA%K, which says how much: one hit, or K % of hits, marks a whole event as found.

Xu et al., "Unsupervised Anomaly Detection via Variational Auto-Encoder", WWW 2018, for PA; Kim et al., "Towards a Rigorous Evaluation of
Time-Series Anomaly Detection", AAAI 2022, for PA%K: an event is adjusted where *more* than K % of its steps are flagged, so K = 0 is PA and K = 100
is plain F1. **PA-F1 is printed as inflated and ranks nothing**: a long event almost surely holds one high score, so random scores reach
values that look like a result. All F1 here are oracles: the best over all thresholds of the test scores.

No loop over thresholds: an event of n steps is adjusted exactly while its (floor(K n / 100) + 1)-th highest score is flagged, so each of its steps
counts as if it scored at least that much, and one sort gives F1 at every threshold.
Deviation from TSB-AD: all thresholds are tried instead of 100 evenly spaced ones, and an event's very first step is adjusted too at the start of a series.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.counts import f1_max_of_counts
from stages.metrics.events import Lengths, Runs, flagged_within, runs
from stages.metrics.inputs import Flags, Floats, checked_label, checked_pair, require_both_classes
from stages.metrics.ranking import descending, tallies

SHARES = tuple(range(0, 101, 10))  # K in percent


def pa_f1(score: ArrayLike, label: ArrayLike, lengths: Lengths = None) -> float:
    """Oracle point-adjusted F1: inflated, never to be ranked by. score, label: (T,). Raises Undefined without both classes."""
    return float(pa_k_curve(score, label, lengths, shares=(0,))[0])


def pa_k_auc(score: ArrayLike, label: ArrayLike, lengths: Lengths = None) -> float:
    """Area under the PA%K curve over K = 0 .. 100 %, trapezoid; 0..1. score, label: (T,). Raises Undefined without both classes."""
    return float(area_over_shares(pa_k_curve(score, label, lengths)))


def pa_k_curve(score: ArrayLike, label: ArrayLike, lengths: Lengths = None, shares: Sequence[float] = SHARES) -> Floats:
    """Oracle F1 for each K of `shares`, (len(shares),). score, label: (T,). Raises Undefined without both classes."""
    values, anomalous = checked_pair(score, label)
    require_both_classes(anomalous, "step")
    adjusted = adjusted_scores(values, runs(anomalous, lengths), shares)
    return np.array([float(f1_max_of_counts(*tallies(anomalous, *descending(row)))) for row in adjusted])


def area_over_shares(curve: Floats) -> Floats:
    """(..., len(SHARES)) to (...)."""
    return np.trapezoid(curve, np.array(SHARES) / 100, axis=-1)


def adjusted_scores(score: Floats, events: Runs, shares: Sequence[float] = SHARES) -> Floats:
    """Scores that no longer need adjusting, (len(shares), T): `score > threshold` on them is the adjusted prediction, at every threshold."""
    adjusted = np.repeat(score[None], len(shares), axis=0)
    for start, stop in zip(*events, strict=True):
        ranked = np.sort(score[start:stop])[::-1]
        needed = np.floor(np.asarray(shares) * len(ranked) / 100 + 1e-9).astype(int)
        lowest = np.where(needed < len(ranked), ranked[np.minimum(needed, len(ranked) - 1)], -np.inf)
        adjusted[:, start:stop] = np.maximum(adjusted[:, start:stop], lowest[:, None])
    return adjusted


def point_adjusted(alarm: ArrayLike, label: ArrayLike, lengths: Lengths = None) -> Flags:
    """(T,) alarms after PA: those of an event with one hit or more are all on. alarm, label: (T,) 0/1."""
    flagged, anomalous = checked_label(alarm, np.size(alarm)), checked_label(label, np.size(alarm))
    events = runs(anomalous, lengths)
    found = np.repeat(flagged_within(flagged, events) > 0, events.length)
    adjusted = flagged.copy()
    adjusted[anomalous] |= found
    return adjusted
