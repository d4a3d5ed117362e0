"""Range-AUC and the volume under its surface: ROC and PR with labels that fade out around an event, averaged over how far they fade.

Paparrizos et al., "Volume Under the Surface", VLDB 2022. A buffer of l steps softens the border of an event: a step d <= l // 2 away counts
sqrt(1 - d / l) anomalous. VUS is the mean over l = 0 .. L. **It depends on L, so L stands with every value.**

Conventions are those of the code of TSB-AD 1.5 (`RangeAUC_volume_opt`), whose values this file gives; where they differ from the paper:
- Positives are P + B / 2, where B is what the *flagged* steps of the buffers weigh, so recall can pass 1 and is cut there.
- Recall is multiplied by the share of events touched, buffers included; events whose buffers meet (less than 2 (l // 2) steps between) count as one.
- A step in the buffers of two events counts 1, as any two weights sum to more than 1 and the sum is cut there.
- 250 thresholds at evenly spaced ranks of the scores, `score >= threshold` is flagged; the ROC curve is closed at (1, 1), trapezoid; the PR
  curve starts at recall 0 and is a step at the precision of its right end.
Deviations: `range_auc` is the slice of that volume at one buffer (TSB-AD's own `RangeAUC` looks for events where the softened label rises by
exactly 1, which it no longer does); buffers end at the border of a segment; a set with one class is undefined.

Fast because everything is a count per threshold. Each step crosses one of the 250 thresholds, so flagged steps, hits and the weight of the buffers
are histograms of that crossing, summed up; only the steps near events are looked at again for each buffer; and the first threshold that touches an
event is a minimum that grows by two steps with each wider buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.events import Lengths, Runs, Steps, runs, segment_bounds, segment_ends
from stages.metrics.inputs import Flags, Floats, checked_pair, require_both_classes

BUFFER = 100  # TSB-AD's default for L
N_THRESHOLDS = 250
FAR = np.iinfo(np.int64).max


class Areas(NamedTuple):
    """Area under the range-ROC and the range-PR curve, or their mean over buffers: 0..1."""

    roc: float
    pr: float


class Base(NamedTuple):
    """What no buffer changes: counts per group (G,) and, at or above each threshold, (G, K)."""

    steps: Floats  # (G,)
    anomalous: Floats  # (G,)
    flagged: Floats  # (G, K)
    hit: Floats  # (G, K) flagged and anomalous


class Buffered(NamedTuple):
    """What one buffer adds."""

    events: Floats  # (G,) those whose buffers meet are one
    touched: Floats  # (G, K) of them, with a flagged step in the event or its buffer
    near: Floats  # (G, K) what flagged normal steps weigh


def vus(score: ArrayLike, label: ArrayLike, buffer: int = BUFFER, lengths: Lengths = None) -> Areas:
    """VUS-ROC and VUS-PR up to `buffer` steps. score, label: (T,). Raises Undefined without both classes."""
    return _mean_areas(score, label, range(buffer + 1), lengths)


def range_auc(score: ArrayLike, label: ArrayLike, buffer: int = BUFFER, lengths: Lengths = None) -> Areas:
    """R-AUC-ROC and R-AUC-PR of one buffer. score, label: (T,). Raises Undefined without both classes."""
    return _mean_areas(score, label, [buffer], lengths)


def _mean_areas(score: ArrayLike, label: ArrayLike, buffers: Sequence[int], lengths: Lengths) -> Areas:
    values, anomalous = checked_pair(score, label)
    require_both_classes(anomalous, "step")
    base, surface = Surface(values, anomalous, lengths).counts(buffers)
    return Areas(*np.mean([areas(base, buffered) for buffered in surface], axis=0)[:, 0].tolist())


class Surface:
    """The counts of one scored series, for any buffers, in groups of steps that can be summed or re-weighted.

    score: (T,) finite; anomalous: (T,). group: (T,) from 0; no group may cut an event or its buffers.
    """

    def __init__(self, score: Floats, anomalous: Flags, lengths: Lengths = None, group: Steps | None = None) -> None:
        ranked = np.sort(score)[::-1]
        threshold = ranked[np.linspace(0, len(score) - 1, N_THRESHOLDS).astype(int)]
        self.crossing = np.searchsorted(-threshold, -score)  # (T,) the first threshold that flags each step
        self.anomalous, self.events = anomalous, runs(anomalous, lengths)
        self.low, self.high = segment_bounds(self.events.start, segment_ends(len(score), lengths))
        self.group = np.zeros(len(score), dtype=np.int64) if group is None else group
        self.groups = int(self.group.max()) + 1

    def counts(self, buffers: Sequence[int]) -> tuple[Base, Iterator[Buffered]]:
        """buffers: ascending."""
        return self._base(), self._buffered(buffers)

    def _base(self) -> Base:
        hits = np.flatnonzero(self.anomalous)
        everywhere = np.arange(len(self.anomalous))
        flagged, hit = (self._reached(self.group[steps], self.crossing[steps]) for steps in (everywhere, hits))
        return Base(flagged[:, -1], hit[:, -1], flagged, hit)

    def _buffered(self, buffers: Sequence[int]) -> Iterator[Buffered]:
        reach = max(buffers) // 2
        step, nearest, second = near_steps(self.events, self.anomalous, self.low, self.high, reach)
        group, crossing = self.group[step], self.crossing[step]
        earliest = np.minimum.reduceat(np.r_[self.crossing, 0], np.c_[self.events.start, self.events.stop].ravel())[::2]
        wide = 0
        for buffer in buffers:
            half = buffer // 2
            while wide < half:
                wide += 1
                left, right = np.maximum(self.events.start - wide, self.low), np.minimum(self.events.stop - 1 + wide, self.high - 1)
                earliest = np.minimum(earliest, np.minimum(self.crossing[left], self.crossing[right]))
            apart = np.r_[True, (self.events.start[1:] - self.events.stop[:-1] + 1 > 2 * half) | (self.low[1:] != self.low[:-1])]
            first = np.flatnonzero(apart)
            touched = self._reached(self.group[self.events.start[first]], np.minimum.reduceat(earliest, first))
            within = int(np.searchsorted(nearest, half, side="right"))
            fading = np.sqrt(1 - np.arange(half + 1) / max(buffer, 1))
            weight = np.where(second[:within] <= half, 1.0, fading[nearest[:within]])
            yield Buffered(touched[:, -1], touched, self._reached(group[:within], crossing[:within], weight))

    def _reached(self, group: Steps, crossing: Steps, weight: Floats | None = None) -> Floats:
        """(G, K) sum of the weights of what is flagged at each threshold."""
        cell = group * N_THRESHOLDS + crossing
        table = np.bincount(cell, weight, minlength=self.groups * N_THRESHOLDS).reshape(self.groups, N_THRESHOLDS)
        return np.cumsum(table, axis=1, dtype=np.float64)


def near_steps(events: Runs, anomalous: Flags, low: Steps, high: Steps, reach: int) -> tuple[Steps, Steps, Steps]:
    """Normal steps at most `reach` away from an event of their segment, the distance to it and to the next nearest one (FAR if beyond reach).

    Sorted by the distance; low, high: (E,) bounds of the event's segment. Returns (N,) three times.
    """
    away = np.arange(1, reach + 1)
    step = np.concatenate([events.start[:, None] - away, events.stop[:, None] - 1 + away])  # (2E, reach)
    inside = (step >= np.r_[low, low][:, None]) & (step < np.r_[high, high][:, None])
    step, distance = step[inside], np.broadcast_to(away, step.shape)[inside]
    normal = ~anomalous[step]
    step, distance = step[normal], distance[normal]
    order = np.lexsort((distance, step))
    step, distance = step[order], distance[order]
    new = np.diff(step, prepend=-1) > 0
    again = np.r_[~new[1:], False][new]
    second = np.where(again, np.r_[distance[1:], FAR][new], FAR) if len(step) else distance
    order = np.argsort(distance[new], kind="stable")
    return step[new][order], distance[new][order], second[order]


def areas(base: Base, buffered: Buffered) -> tuple[Floats, Floats]:
    """Area under the range-ROC and the range-PR curve of each group, (G,) each."""
    steps, anomalous, events = base.steps[:, None], base.anomalous[:, None], buffered.events[:, None]
    true = base.hit + buffered.near
    positives = anomalous + buffered.near / 2
    recall = np.minimum(true / positives, 1) * buffered.touched / events
    fall_out = (base.flagged - true) / (steps - positives)
    precision = true / np.maximum(base.flagged, 1)  # a resample may flag nothing at the highest thresholds
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    recall = np.concatenate([zero, recall], axis=1)
    roc = np.trapezoid(np.concatenate([recall, one], axis=1), np.concatenate([zero, fall_out, one], axis=1), axis=1)
    return roc, (np.diff(recall, axis=1) * precision).sum(axis=1)
