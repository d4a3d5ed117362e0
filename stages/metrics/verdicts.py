"""Accept, reject or review: a verdict that does not pretend to know more than the model does.

From a conformal set of classes (`class_sets`): {normal} alone is accepted, a set without normal is rejected, and what may be normal or not goes to a person.
From a probability of being anomalous the same rule holds with two classes, normal and anomalous. The promise that follows: with coverage c for each class,
at most a share 1 - c of good parts is rejected, and at most 1 - c of each kind of bad part is accepted, however few or many are reviewed; kinds that
are too rare for a promise of their own share one with all faults.

N records, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.class_sets import ClassSets, conformal_bound, fit_class_sets
from stages.metrics.inputs import Flags, Floats, checked_label

ACCEPT, REVIEW, REJECT = "accept", "review", "reject"
VERDICTS = (ACCEPT, REVIEW, REJECT)
Words = NDArray[np.str_]


class VerdictRule(NamedTuple):
    """As fitted on held-out records; `to_dict` is what lies beside the model, `from_dict` reads it."""

    bound: tuple[float, ...]  # by class, as of ClassSets
    normal: int  # the column of the class normal
    coverage: float

    def verdicts(self, probabilities: ArrayLike) -> Words:
        """(N, C) to (N,) of VERDICTS."""
        values = np.asarray(probabilities, dtype=np.float64)
        sets = ClassSets(np.asarray(self.bound), self.coverage, True, np.zeros(len(self.bound), np.int64)).sets(values)
        return verdicts_of_sets(sets, self.normal)

    def to_dict(self) -> dict[str, Any]:
        """Infinity, which JSON has not, as null."""
        return self._asdict() | {"bound": [None if np.isinf(one) else one for one in self.bound]}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> VerdictRule:
        return cls(**stored | {"bound": tuple(np.inf if one is None else one for one in stored["bound"])})


def fit_verdicts(probabilities: ArrayLike, place: ArrayLike, normal: int = 0, coverage: float = 0.9) -> VerdictRule:
    """The rule whose sets cover each class.

    A kind of fault with too few held-out records for a promise of its own has the bound of all faults together: of a fault drawn among all of them it then
    holds. Only where these are too few as well is the kind in every set, and nothing accepted. probabilities: (n, C) of held-out records; place: (n,) the
    column of each one's class.
    """
    each = fit_class_sets(probabilities, place, coverage, by_class=True)
    faults = np.arange(len(each.bound)) != normal
    values, true = np.asarray(probabilities, dtype=np.float64), np.asarray(place)
    bad = np.flatnonzero(faults[true])
    together = conformal_bound(1 - values[bad, true[bad]], coverage)
    bound = np.where(faults & np.isinf(each.bound), together, each.bound)
    return VerdictRule(tuple(bound.tolist()), normal, coverage)


def two_classes(probability: ArrayLike) -> Floats:
    """(N,) of being anomalous to (N, 2), normal first: what the rule takes where a model tells no classes."""
    values = np.asarray(probability, dtype=np.float64)
    return np.stack([1 - values, values], axis=1)


def verdicts_of_sets(sets: Flags, normal: int = 0) -> Words:
    """(N, C) bool to (N,) of VERDICTS."""
    maybe, size = sets[:, normal], sets.sum(axis=1)
    return np.where(~maybe, REJECT, np.where(size == 1, ACCEPT, REVIEW))


def counts(verdicts: Words, label: ArrayLike) -> dict[str, dict[str, int]]:
    """By verdict how many good and bad parts. verdicts: (N,); label: (N,) 0 or 1."""
    anomalous = checked_label(label, len(verdicts))
    return {word: {"normal": int((own := verdicts == word)[~anomalous].sum()), "anomalous": int(own[anomalous].sum())} for word in VERDICTS}
