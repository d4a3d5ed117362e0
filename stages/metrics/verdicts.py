"""Accept, reject or review: a verdict that does not pretend to know more than the model does.

From a conformal set of classes (`class_sets`): {normal} alone is accepted, a set without normal is rejected, and what may be normal or not goes to a person.
From a probability of being anomalous the same rule holds with two classes, normal and anomalous. The promise that follows: with coverage c for each class,
at most a share 1 - c of good parts is rejected, and at most 1 - c of each kind of bad part is accepted, however few or many are reviewed; kinds that
are too rare for a promise of their own share one with all faults.

Where a person can look at only so many parts, `within` takes the most doubtful ones up to that share and lets the model decide on the others: then
the promise falls, and what is expected instead is counted on held-out records.

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
    margin: float | None = None  # only what is surer than this is decided where it is doubtful; None: every doubtful record is reviewed

    def verdicts(self, probabilities: ArrayLike) -> Words:
        """(N, C) to (N,) of VERDICTS."""
        values = np.asarray(probabilities, dtype=np.float64)
        sets = ClassSets(np.asarray(self.bound), self.coverage, True, np.zeros(len(self.bound), np.int64)).sets(values)
        found = verdicts_of_sets(sets, self.normal)
        if self.margin is None:
            return found
        decided = (found == REVIEW) & (doubt(values, self.normal) > self.margin)
        return np.where(decided, np.where(values[:, self.normal] >= 0.5, ACCEPT, REJECT), found)

    def to_dict(self) -> dict[str, Any]:
        """Infinity, which JSON has not, as null."""
        return self._asdict() | {"bound": [None if np.isinf(one) else one for one in self.bound]}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> VerdictRule:
        return cls(**stored | {"bound": tuple(np.inf if one is None else one for one in stored["bound"])})


def fit_verdicts(
    probabilities: ArrayLike, place: ArrayLike, normal: int = 0, coverage: float = 0.9, most_reviewed: float | None = None
) -> VerdictRule:
    """The rule whose sets cover each class; with `most_reviewed` no larger share of these held-out records is left to a person.

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
    rule = VerdictRule(tuple(bound.tolist()), normal, coverage)
    return rule if most_reviewed is None else within(rule, probabilities, most_reviewed)


def two_classes(probability: ArrayLike) -> Floats:
    """(N,) of being anomalous to (N, 2), normal first: what the rule takes where a model tells no classes."""
    values = np.asarray(probability, dtype=np.float64)
    return np.stack([1 - values, values], axis=1)


def within(rule: VerdictRule, probabilities: ArrayLike, most_reviewed: float) -> VerdictRule:
    """The rule with the margin at which at most the share `most_reviewed` of these records is reviewed, the most doubtful ones."""
    if not 0 <= most_reviewed <= 1:
        raise ValueError(f"most_reviewed must be in 0..1, got {most_reviewed}")
    values = np.asarray(probabilities, dtype=np.float64)
    unsure = np.sort(doubt(values, rule.normal)[rule._replace(margin=None).verdicts(values) == REVIEW])
    allowed = int(np.floor(most_reviewed * len(values) + 1e-9))
    if len(unsure) <= allowed:
        return rule._replace(margin=None)
    below = unsure[unsure < unsure[allowed]]  # equals stay together, so that no more than are allowed are reviewed
    return rule._replace(margin=float(below[-1]) if len(below) else -1.0)


def doubt(probabilities: Floats, normal: int) -> Floats:
    """(N,) in 0..0.5: how far the probability of normal is from one half; 0 is most doubtful. probabilities: (N, C)."""
    return np.abs(probabilities[:, normal] - 0.5)


def verdicts_of_sets(sets: Flags, normal: int = 0) -> Words:
    """(N, C) bool to (N,) of VERDICTS."""
    maybe, size = sets[:, normal], sets.sum(axis=1)
    return np.where(~maybe, REJECT, np.where(size == 1, ACCEPT, REVIEW))


def score_bounds(normal_score: ArrayLike, bad_score: ArrayLike, coverage: float = 0.9) -> tuple[float, float]:
    """For raw scores of a model without probabilities: at most the first is accepted, above the second is rejected, what lies between is reviewed.

    normal_score, bad_score: (n,) held-out scores of good and of bad parts; without bad ones nothing can be accepted, and the first is -infinity. At most
    1 - coverage of good parts are rejected and as many of bad ones accepted. Where every score could be decided, both are the same, the middle of what would
    do, and nothing is reviewed.
    """
    reject = conformal_bound(np.asarray(normal_score, dtype=np.float64), coverage)
    accept = float(np.nextafter(-conformal_bound(-np.asarray(bad_score, dtype=np.float64), coverage), -np.inf))
    return (accept, reject) if accept < reject else ((accept + reject) / 2,) * 2


def counts(verdicts: Words, label: ArrayLike) -> dict[str, dict[str, int]]:
    """By verdict how many good and bad parts. verdicts: (N,); label: (N,) 0 or 1."""
    anomalous = checked_label(label, len(verdicts))
    return {word: {"normal": int((own := verdicts == word)[~anomalous].sum()), "anomalous": int(own[anomalous].sum())} for word in VERDICTS}
