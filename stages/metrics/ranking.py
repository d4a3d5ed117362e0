"""AUROC, average precision, F1max and their curves for scored images, from one shared sort.

Equal to scikit-learn's `roc_auc_score`, `average_precision_score`, `roc_curve` and `precision_recall_curve`. Thresholds follow the rule
of this folder (`score > threshold` is anomalous) and lie halfway between two neighbouring scores, so that a re-computed score that moved
in its last digit keeps its side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.counts import Metric, auroc_of_counts, average_precision_of_counts, f1_max_of_counts, f1_of_counts
from stages.metrics.inputs import Flags, Floats, checked_pair, require_both_classes

IMAGE_METRICS: dict[str, Metric] = {
    "image_auroc": auroc_of_counts,
    "image_ap": average_precision_of_counts,
    "image_f1_max": f1_max_of_counts,
}


class Ranking(NamedTuple):
    """Distinct scores in descending order and how many anomalous and normal items have each; all (K,)."""

    value: Floats
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]


class RocCurve(NamedTuple):
    """From nothing flagged to everything flagged, one point per distinct score and the origin; all (K + 1,)."""

    fpr: Floats
    tpr: Floats
    threshold: Floats


class PrCurve(NamedTuple):
    """From nothing flagged (precision 1 by convention, recall 0) to everything flagged; all (K + 1,)."""

    precision: Floats
    recall: Floats
    threshold: Floats


class F1Max(NamedTuple):
    value: float
    threshold: float


def image_metrics(score: ArrayLike, label: ArrayLike) -> dict[str, float]:
    """`image_auroc`, `image_ap` and `image_f1_max`, each 0..1. score, label: (N,). Raises Undefined without both classes."""
    ranking = rank(score, label)
    return {name: float(metric(ranking.positive, ranking.negative)) for name, metric in IMAGE_METRICS.items()}


def auroc(score: ArrayLike, label: ArrayLike) -> float:
    """Area under the ROC curve, ties as trapezoid. score, label: (N,)."""
    ranking = rank(score, label)
    return float(auroc_of_counts(ranking.positive, ranking.negative))


def average_precision(score: ArrayLike, label: ArrayLike) -> float:
    """Area under the precision-recall steps (no interpolation). score, label: (N,)."""
    ranking = rank(score, label)
    return float(average_precision_of_counts(ranking.positive, ranking.negative))


def f1_max(score: ArrayLike, label: ArrayLike) -> F1Max:
    """Highest F1 over all thresholds and the threshold that reaches it; of several, the one that flags fewest. score, label: (N,)."""
    ranking = rank(score, label)
    f1 = f1_of_counts(ranking.positive, ranking.negative)
    best = int(np.argmax(f1))
    return F1Max(float(f1[best]), separator(ranking.value, best))


def roc_curve(score: ArrayLike, label: ArrayLike) -> RocCurve:
    """False and true positive rate at every distinct threshold. score, label: (N,)."""
    ranking = rank(score, label)
    fpr, tpr = (np.r_[0.0, np.cumsum(counts) / counts.sum()] for counts in (ranking.negative, ranking.positive))
    return RocCurve(fpr, tpr, _thresholds(ranking.value))


def pr_curve(score: ArrayLike, label: ArrayLike) -> PrCurve:
    """Precision and recall at every distinct threshold. score, label: (N,)."""
    ranking = rank(score, label)
    true, false = np.cumsum(ranking.positive), np.cumsum(ranking.negative)
    return PrCurve(np.r_[1.0, true / (true + false)], np.r_[0.0, true / true[-1]], _thresholds(ranking.value))


def rank(score: ArrayLike, label: ArrayLike) -> Ranking:
    """The one sort that all of the above read. score: (N,) finite; label: (N,) with both classes."""
    values, anomalous = checked_pair(score, label)
    require_both_classes(anomalous)
    order, first = descending(values)
    return Ranking(values[order][first], *tallies(anomalous, order, first))


def descending(values: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Order (N,) of falling score, and where in it each of the K distinct scores starts (K,)."""
    order = np.argsort(-values, kind="stable")
    ranked = values[order]
    return order, np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])


def tallies(anomalous: Flags, order: NDArray[np.intp], first: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Anomalous and normal items per distinct score, (K,) each."""
    positive = np.add.reduceat(anomalous[order].astype(np.int64), first)
    return positive, np.diff(np.r_[first, len(order)]) - positive


def separator(distinct: Floats, last: int) -> float:
    """Threshold that flags distinct[0..last] and nothing below; distinct: (K,) descending."""
    if last + 1 == len(distinct):
        return float(np.nextafter(distinct[last], -np.inf))
    middle = distinct[last] / 2 + distinct[last + 1] / 2
    # Two neighbouring floats have no number between them: the lower one separates, as it is not above itself.
    return float(middle if distinct[last + 1] <= middle < distinct[last] else distinct[last + 1])


def _thresholds(distinct: Floats) -> Floats:
    return np.r_[distinct, np.nextafter(distinct[-1], -np.inf)]
