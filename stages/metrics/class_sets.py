"""Not one class but a set of classes, with a promise: the true one is in it for at least a chosen share of future records.

Split conformal prediction (Vovk, Gammerman and Shafer, 2005) with the score 1 - p(true class) (Sadinle, Lei and Wasserman, JASA 2019,
arXiv:1609.00451): of n held-out records that are exchangeable with a future one, the ceil((n + 1) * coverage)-th smallest score is a bound that a future
score exceeds with probability at most 1 - coverage. The promise is for the mean over draws of held-out records and over all classes; `by_class` makes
it for each class by itself, at the price of larger sets. Deviation: a set that would be empty holds the likeliest class, which only raises coverage.
Where a class has too few held-out records to promise anything, it is in every set.

n held-out records, N records, C classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.class_calibration import checked_classes
from stages.metrics.inputs import Flags, Floats


class ClassSets(NamedTuple):
    """What held-out records promise."""

    bound: Floats  # (C,): a class is in the set of a record where its probability is at least 1 - bound
    coverage: float  # as asked
    by_class: bool
    records: NDArray[np.int64]  # (C,) held-out records of each class

    def sets(self, probabilities: ArrayLike) -> Flags:
        """(N, C) to (N, C) bool, at least one in each row."""
        values = np.asarray(probabilities, dtype=np.float64)
        within = 1 - values <= self.bound + 1e-12
        within[np.arange(len(values)), values.argmax(axis=1)] = True
        return within


class SetQuality(NamedTuple):
    coverage: float  # share of the sets that hold the true class
    size: float  # mean
    alone: float  # share of the sets that hold one class
    by_class: list[float | None]  # C coverages; None where no record is of the class


def fit_class_sets(probabilities: ArrayLike, place: ArrayLike, coverage: float = 0.9, by_class: bool = False) -> ClassSets:
    """probabilities: (n, C) of held-out records; place: (n,) the column of each one's class. coverage: in (0, 1)."""
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be in (0, 1), got {coverage}")
    values, true = checked_classes(probabilities, place)
    score, classes = 1 - values[np.arange(len(true)), true], values.shape[1]
    if by_class:
        bound = np.array([conformal_bound(score[true == one], coverage) for one in range(classes)])
    else:
        bound = np.full(classes, conformal_bound(score, coverage))
    return ClassSets(bound, coverage, by_class, np.bincount(true, minlength=classes))


def conformal_bound(score: Floats, coverage: float) -> float:
    """What a future score exceeds with probability at most 1 - coverage; infinite where the held-out scores are too few to say. score: (n,)."""
    rank = math.ceil((len(score) + 1) * coverage - 1e-9)  # 0.9 * 10 is 9.000000000000002 in some orders of multiplication, and 9 is meant
    return float(np.sort(score)[rank - 1]) if rank <= len(score) else math.inf


def judge_sets(sets: Flags, place: ArrayLike) -> SetQuality:
    """sets: (N, C) bool; place: (N,)."""
    within, true = checked_classes(sets, place)
    hit, size = within[np.arange(len(true)), true] > 0, within.sum(axis=1)
    by_class = [float(hit[true == one].mean()) if (true == one).any() else None for one in range(within.shape[1])]
    return SetQuality(float(hit.mean()), float(size.mean()), float((size == 1).mean()), by_class)
