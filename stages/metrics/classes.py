"""Which class a record is said to be of, against which it is: the confusion matrix and what follows from it, and the vote of nearest neighbours.

All figures are sums of the matrix `count[true, told]`, so they cannot disagree; leading axes are a batch of matrices, as of the draws of a bootstrap. A
class that nobody was said to be of has no precision, one without records no recall; F1 is 2 hits / (2 hits + false + missed), 0 where a class has records
and none was found. Macro F1 is the mean over the classes that have records.

N records, M neighbours in the bank, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.counts import Counts
from stages.metrics.inputs import Floats

AT_ONCE = 1024  # records whose distances to the whole bank are held in memory
SAME = 1e-6  # cosine distances up to this are those of the same features, as float32 has them
WEIGHTS = ("uniform", "distance")


class ByClass(NamedTuple):
    """All (..., C), NaN where a figure has no value."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Floats


def class_counts(true: ArrayLike, told: ArrayLike, classes: int, weight: ArrayLike | None = None) -> Floats:
    """(..., C, C): how often each class (first axis) was said to be each class (second). true, told: (N,) positions; weight: (..., N), one each by default."""
    pair, member = np.unique(np.asarray(true) * classes + np.asarray(told), return_inverse=True)
    given = np.ones(len(member)) if weight is None else np.asarray(weight, dtype=np.float64)
    count = np.zeros((*given.shape[:-1], classes * classes))
    count[..., pair] = given @ np.eye(len(pair))[member]  # pairs that occur alone: at most N, where C * C may be far more
    return count.reshape(*given.shape[:-1], classes, classes)


def accuracy(count: Floats) -> Floats:
    """(...): the share of records that are told right; NaN without any."""
    return _ratio(np.trace(count, axis1=-2, axis2=-1), count.sum((-2, -1)))


def by_class(count: Floats) -> ByClass:
    hit, support, told = np.diagonal(count, axis1=-2, axis2=-1), count.sum(-1), count.sum(-2)
    f1 = np.where(support > 0, _ratio(2 * hit, support + told), np.nan)
    return ByClass(_ratio(hit, told), _ratio(hit, support), f1, support)


def macro_f1(count: Floats) -> Floats:
    """(...): the mean F1 over the classes that have records; NaN without any."""
    found = by_class(count)
    there = found.support > 0
    return _ratio(np.where(there, found.f1, 0.0).sum(-1), there.sum(-1))


def nearest_class(
    bank: ArrayLike, bank_class: ArrayLike, features: ArrayLike, classes: int, k: int = 5, weights: str = "uniform"
) -> NDArray[np.int64]:
    """(N,): the class that most of the `k` nearest of the bank are of, by cosine distance. A tie goes to the class of the nearest among the tied.

    bank: (M, F) and features: (N, F), of any length but zero; bank_class: (M,) in 0..C-1. weights: "uniform", each neighbour one vote; "distance", votes of
    1 / distance, and where neighbours are the record itself, theirs alone.
    """
    stored, own, label = _unit(bank), _unit(features), np.asarray(bank_class)
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    if not 1 <= k:
        raise ValueError(f"k must be at least 1, got {k}")
    if not len(stored):
        raise ValueError("the bank holds no features, so there is no neighbour to ask")
    found = [_vote(stored, label, part, classes, min(k, len(stored)), weights) for part in _parts(own)]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def average_precision_at(positive: Counts, negative: Counts, prevalence: float) -> Floats:
    """Average precision as if `prevalence` of all records were anomalous: both classes keep their scores, their shares change. See `counts` for the shapes."""
    found, false = (np.cumsum(counts, axis=-1) / counts.sum(-1)[..., None] for counts in (positive, negative))
    precision = _ratio(prevalence * found, prevalence * found + (1 - prevalence) * false)
    return (positive * np.nan_to_num(precision)).sum(-1) / positive.sum(-1)


def missed_at(positive: Counts, negative: Counts, allowed: float) -> Floats:
    """The lowest share of anomalous records missed by any threshold at which at most `allowed` of the normal ones alarm; see `counts` for the shapes."""
    found, false = (np.cumsum(counts, axis=-1) / counts.sum(-1)[..., None] for counts in (positive, negative))
    return 1 - np.where(false <= allowed + 1e-12, found, 0.0).max(-1)


def guess(true: Sequence[str], normal: str) -> dict[str, Any]:
    """What is had without looking at anything: by calling every record the most frequent class, and by calling every one anomalous.

    true: N class names. The average precision of a score that is the same for all is the share of anomalous records, p, and F1 of calling all of them so is
    2 p / (1 + p).
    """
    names, counts = np.unique(np.asarray(true, dtype=object).astype(str), return_counts=True)
    place, share = int(np.argmax(counts)), float(np.mean(np.asarray(true, dtype=object) != normal))
    most = float(counts[place] / counts.sum())
    return {
        "class": str(names[place]),
        "accuracy": most,
        "macro_f1": 2 * most / (1 + most) / len(names),
        "anomalous": share,
        "pr_auc": share,
        "f1": 2 * share / (1 + share),
    }


def _parts(features: Floats) -> list[Floats]:
    return [features[start : start + AT_ONCE] for start in range(0, len(features), AT_ONCE)]


def _vote(bank: Floats, label: NDArray[np.int64], features: Floats, classes: int, k: int, weights: str) -> NDArray[np.int64]:
    distance = np.clip(1 - features @ bank.T, 0, None)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]  # (n, k)
    away = np.take_along_axis(distance, nearest, 1)
    vote = np.ones_like(away)
    if weights == "distance":
        same = away <= SAME
        vote = np.where(same.any(1, keepdims=True), same, 1 / np.maximum(away, SAME))
    members = np.eye(classes)[label[nearest]]  # (n, k, C)
    total = (vote[:, :, None] * members).sum(1)
    tied = total >= total.max(1, keepdims=True) * (1 - 1e-9)
    rank = np.where(members.any(1), members.argmax(1), k)  # (n, C): the place of the nearest of each class
    return np.where(tied, rank, k + 1).argmin(1)


def _unit(values: ArrayLike) -> Floats:
    rows = np.asarray(values, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _ratio(part: Any, whole: Any) -> Floats:
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
