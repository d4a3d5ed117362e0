"""Bootstrap over what is independent in a signal: events with their surroundings, and normal stretches of the same length.

Neighbouring steps say nearly the same, so steps are never drawn alone. The test steps are cut into blocks: an event with `reach` steps on either side
(events that come nearer than that share one block), and what lies between in pieces about as long as the median of those. No block reaches over a
border of segments. A resample draws as many blocks of each kind as there are, with replacement, and then as many training seeds.

1,000 draws are affordable since every metric is computed from sums per block. Two families are coarser in the draws than in the value: rankings (ROC,
PR, oracle F1, PA%K) come from at most 512 bins of the scores, VUS from six of the buffers, at the 250 thresholds of the data. What that costs on
the data itself is known and taken off by whoever uses the draws. Events are drawn with their affiliation zones, however far those reach.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.alarms import AlarmSums
from stages.metrics.bootstrap import Resamples, resample
from stages.metrics.counts import auroc_of_counts, average_precision_of_counts
from stages.metrics.events import Lengths, Runs, Steps, first_alarm, runs, segment_bounds, segment_ends
from stages.metrics.inputs import Flags, Floats
from stages.metrics.point_adjust import SHARES, adjusted_scores, area_over_shares
from stages.metrics.vus import Base, Buffered, Surface, areas

BINS = 256  # of the scores of either class
BUFFERS = 6  # of 0 .. L, evenly spaced


class Blocks(NamedTuple):
    """N blocks of T steps."""

    of_step: Steps  # (T,)
    eventful: Flags  # (N,)


def event_blocks(anomalous: Flags, lengths: Lengths, reach: int) -> Blocks:
    """anomalous: (T,); reach: steps on either side that belong to an event."""
    near = _around(anomalous, lengths, reach)
    around, between = runs(near, lengths), runs(~near, lengths)
    size = float(np.median(around.length)) if around.number else np.sqrt(len(anomalous))
    pieces = np.maximum(np.round(between.length / size).astype(int), 1)
    starts = np.concatenate(
        [around.start, *(start + np.arange(n) * length // n for start, length, n in zip(between.start, between.length, pieces))]
    )
    eventful = np.arange(len(starts)) < around.number
    order = np.argsort(starts)
    return Blocks(np.searchsorted(starts[order], np.arange(len(anomalous)), side="right") - 1, eventful[order])


def draw_blocks(blocks: Blocks, anomalous: Flags, n_resamples: int, rng: np.random.Generator) -> Resamples:
    """How often each block is drawn, (R, N); not resolved with fewer than two blocks of either kind."""
    normal = np.bincount(blocks.of_step, ~anomalous, minlength=len(blocks.eventful)) > 0
    return resample(blocks.eventful, normal, None, n_resamples, rng)


def ranked_draws(score: Floats, anomalous: Flags, lengths: Lengths, blocks: Blocks, weight: NDArray) -> dict[str, Floats]:
    """`roc_auc`, `pr_auc`, `f1_oracle`, `pa_k_auc` and `pa_f1` from binned scores, (R,) each. weight: (R, N)."""
    cuts = np.unique(np.concatenate([np.quantile(score[side], np.linspace(0, 1, BINS)) for side in (anomalous, ~anomalous)]))
    weight = weight.astype(np.float64)

    def counts(values: Floats, of_class: Flags) -> Floats:
        """(R, K) along falling scores."""
        column = len(cuts) - np.searchsorted(cuts, values[of_class], side="right")
        cell = blocks.of_step[of_class] * (len(cuts) + 1) + column
        table = np.bincount(cell, minlength=weight.shape[1] * (len(cuts) + 1)).reshape(weight.shape[1], -1)
        filled = np.flatnonzero(table.any(1))
        return weight[:, filled] @ table[filled].astype(np.float64)

    positive, negative = counts(score, anomalous), counts(score, ~anomalous)
    adjusted = adjusted_scores(score, runs(anomalous, lengths))
    false = np.cumsum(negative, axis=1)
    curve = np.stack([_f1_max(np.cumsum(counts(row, anomalous), axis=1), false) for row in adjusted], axis=1)
    return {
        "roc_auc": auroc_of_counts(positive, negative),
        "pr_auc": average_precision_of_counts(positive, negative),
        "f1_oracle": curve[:, SHARES.index(100)],
        "pa_k_auc": area_over_shares(curve),
        "pa_f1": curve[:, SHARES.index(0)],
    }


def volume_draws(score: Floats, anomalous: Flags, lengths: Lengths, buffer: int, blocks: Blocks, weight: NDArray) -> dict[str, Floats]:
    """`vus_roc` and `vus_pr` from some of the buffers, (R,) each. The blocks must reach buffer // 2 steps around events. weight: (R, N)."""
    buffers = np.unique(np.linspace(0, buffer, BUFFERS).round().astype(int)).tolist()
    base, surface = Surface(score, anomalous, lengths, blocks.of_step).counts(buffers)
    weight = weight.astype(np.float64)
    drawn, some = Base(*(weight @ field for field in base)), weight[:, blocks.eventful]
    each = [areas(drawn, Buffered(*(some @ field[blocks.eventful] for field in buffered))) for buffered in surface]
    return dict(zip(("vus_roc", "vus_pr"), np.mean(each, axis=0)))


def alarm_draws(sums: AlarmSums, weight: NDArray) -> dict[str, Floats]:
    """All of `AlarmSums.metrics`, (R,) each; NaN where a draw has no value. weight: (R, N)."""
    return sums.drawn(weight).metrics()


def delay_draws(alarm: Flags, events: Runs, blocks: Blocks, weight: NDArray) -> Floats:
    """Median delay over the found events of each draw, (R,); NaN where none was drawn. weight: (R, N)."""
    waited = first_alarm(alarm, events)
    order = np.argsort(waited)[: np.isfinite(waited).sum()]
    if not len(order):
        return np.full(len(weight), np.nan)
    reached = np.cumsum(weight[:, blocks.of_step[events.start[order]]], axis=1)
    found, ranked = reached[:, -1], waited[order]
    lower, upper = ((reached > place[:, None]).argmax(axis=1) for place in ((found - 1) // 2, found // 2))
    return np.where(found > 0, (ranked[lower] + ranked[upper]) / 2, np.nan)


def _f1_max(true: Floats, false: Floats) -> Floats:
    """Highest F1 of each row from what is flagged so far, (R, K) both."""
    return (2 * true / (true + false + true[:, -1:])).max(axis=1)


def _around(anomalous: Flags, lengths: Lengths, reach: int) -> Flags:
    """Steps of an event or at most `reach` away from one of the same segment, (T,)."""
    events = runs(anomalous, lengths)
    low, high = segment_bounds(events.start, segment_ends(len(anomalous), lengths))
    edge = np.zeros(len(anomalous) + 1, dtype=np.int64)
    np.add.at(edge, np.maximum(events.start - reach, low), 1)
    np.add.at(edge, np.minimum(events.stop + reach, high), -1)
    return np.cumsum(edge)[:-1] > 0
