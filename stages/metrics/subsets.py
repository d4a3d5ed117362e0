"""How well records are judged when modalities are missing: AUROC of every subset of modalities, and the area under the curve of what is lost.

Every subset is judged on the same test records. A record that has none of a subset's modalities is scored by what is believed of any record, the mean
score in validation, and stays in; else an easy subset would be one that few records have. The curve is the mean AUROC of all subsets that leave out
the same share of the modalities, against that share, from none to all but one; its area is divided by its width, so that it is an AUROC again.

S seeds, N records, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.bootstrap import Draws, bootstrap_draws
from stages.metrics.counts import auroc_of_counts, average_precision_of_counts
from stages.metrics.inputs import Floats

SUBSET_COLUMNS = ("modalities", "count", "share_missing", "roc_auc", "pr_auc", "low", "high")
CURVE_COLUMNS = ("count", "share_missing", "roc_auc", "low", "high")
METRICS = {"roc_auc": auroc_of_counts, "pr_auc": average_precision_of_counts}


class SubsetTable(NamedTuple):
    rows: list[dict[str, Any]]  # SUBSET_COLUMNS, low and high are those of roc_auc
    curve: list[dict[str, Any]]  # CURVE_COLUMNS, from all modalities to one
    area: Draws  # `missing_auc`


def judge_subsets(
    score: Mapping[int, Floats], modalities: Sequence[str], label: ArrayLike, group: ArrayLike, resamples: int
) -> SubsetTable:
    """score: by mask (bit m: the m-th modality is left) the scores of all records, (S, N). Raises Undefined where the labels are all one."""
    drawn = {mask: bootstrap_draws(rows, label, group, METRICS, resamples) for mask, rows in score.items()}
    rows = [_row(mask, modalities, found) for mask, found in drawn.items()]
    sizes = sorted({mask.bit_count() for mask in drawn}, reverse=True)
    means = [mean_draws([found["roc_auc"] for mask, found in drawn.items() if mask.bit_count() == size]) for size in sizes]
    shares = [1 - size / len(modalities) for size in sizes]
    curve = [
        {"count": size, "share_missing": share, "roc_auc": mean.value, "low": mean.interval.low, "high": mean.interval.high}
        for size, share, mean in zip(sizes, shares, means)
    ]
    return SubsetTable(rows, curve, area_under(shares, means))


def area_under(shares: Sequence[float], means: Sequence[Draws]) -> Draws:
    """By trapezoids, divided by the width; the one value where there is one. All draws must be of the same resamples."""
    if len(means) == 1:
        return means[0]
    width = shares[-1] - shares[0]
    return Draws(
        float(np.trapezoid([one.value for one in means], shares) / width),
        np.trapezoid(np.stack([one.samples for one in means], 1), shares, axis=1) / width,
    )


def mean_draws(draws: Sequence[Draws]) -> Draws:
    """The mean of several metrics that were seen in the same resamples."""
    return Draws(float(np.mean([one.value for one in draws])), np.mean([one.samples for one in draws], axis=0))


def _row(mask: int, modalities: Sequence[str], found: Mapping[str, Draws]) -> dict[str, Any]:
    left = [name for member, name in enumerate(modalities) if mask >> member & 1]
    auroc = found["roc_auc"].interval
    share = 1 - len(left) / len(modalities)
    return {
        "modalities": "+".join(left),
        "count": len(left),
        "share_missing": share,
        "roc_auc": auroc.value,
        "pr_auc": found["pr_auc"].value,
        "low": auroc.low,
        "high": auroc.high,
    }
