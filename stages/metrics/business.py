"""A threshold by what the plant can bear: at most so many missed faults, at most so many false alarms, or the least cost; and what a shift will see.

Rates are those of held-out records, so `promised` says what they allow for the future: with m of n records on the wrong side, the upper end of the exact
one-sided 95 % interval (Clopper and Pearson, Biometrika 26, 1934). The share of bad parts in validation is not that of the plant (defects are collected),
so that costs and counts take `prevalence` from the user and never from the labels.

All follow the rule `score > threshold` is an alarm. N held-out records.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.confusion import Confusion, confusion
from stages.metrics.inputs import Flags, Floats, checked_pair, require_both_classes
from stages.metrics.ranking import rank, separator
from stages.metrics.thresholds import Threshold

CONFIDENCE = 0.95


class Candidates(NamedTuple):
    """Every threshold that makes a difference, the highest first: from no alarm to all; (K + 1,) each."""

    value: Floats
    missed: Floats  # of the anomalous records
    false: Floats  # of the normal ones


class Shift(NamedTuple):
    """What one shift of `parts` parts is expected to see."""

    parts: int
    prevalence: float
    alarms: float
    false_alarms: float
    missed: float
    found: float
    false_alarms_high: float  # at the upper end of what held-out records allow for
    missed_high: float


def at_most_missed(score: ArrayLike, label: ArrayLike, limit: float = 0.05) -> Threshold:
    """The highest threshold that misses at most the share `limit` of anomalous records: the fewest false alarms that this allows."""
    _check_share("limit", limit)
    found = _candidates(score, label)
    return _threshold("max_fnr", score, label, found.value[np.argmax(found.missed <= limit + 1e-12)], limit)


def at_most_false(score: ArrayLike, label: ArrayLike, limit: float = 0.05) -> Threshold:
    """The lowest threshold at which at most the share `limit` of normal records alarms: the fewest missed that this allows.

    For normal records alone, and with a promise for future ones, see `conformal`.
    """
    _check_share("limit", limit)
    found = _candidates(score, label)
    return _threshold("max_fpr", score, label, found.value[np.flatnonzero(found.false <= limit + 1e-12)[-1]], limit)


def least_cost(score: ArrayLike, label: ArrayLike, missed_cost: float, false_alarm_cost: float, prevalence: float) -> Threshold:
    """Where missed faults and false alarms together cost least for a part; of several thresholds the lowest, which misses fewest.

    missed_cost, false_alarm_cost: of one, in the same currency. prevalence: share of bad parts in the plant, in (0, 1). `target` is the cost that results.
    """
    if min(missed_cost, false_alarm_cost) < 0 or missed_cost + false_alarm_cost == 0:
        raise ValueError(f"costs must not be below 0 and not both 0, got {missed_cost:g} and {false_alarm_cost:g}")
    _check_share("prevalence", prevalence)
    found = _candidates(score, label)
    cost = prevalence * missed_cost * found.missed + (1 - prevalence) * false_alarm_cost * found.false
    best = np.flatnonzero(cost <= cost.min() + 1e-12)[-1]
    return _threshold("least_cost", score, label, found.value[best], float(cost[best]))


def per_shift(threshold: float, score: ArrayLike, label: ArrayLike, parts: int, prevalence: float) -> Shift:
    """Expected counts of one shift at this threshold. score, label: of held-out records of both kinds; prevalence: share of bad parts in the plant."""
    if parts < 1:
        raise ValueError(f"parts must be at least 1, got {parts}")
    _check_share("prevalence", prevalence)
    matrix, bad = _matrix(score, label, threshold), parts * prevalence
    missed, false = bad * matrix.fn / (matrix.fn + matrix.tp), (parts - bad) * matrix.fp / (matrix.fp + matrix.tn)
    return Shift(
        parts, prevalence, alarms=bad - missed + false, false_alarms=false, missed=missed, found=bad - missed,
        false_alarms_high=(parts - bad) * highest_share(matrix.fp, matrix.fp + matrix.tn), missed_high=bad * highest_share(matrix.fn, matrix.fn + matrix.tp),
    )  # fmt: skip


def highest_share(hits: int, of: int) -> float:
    """The upper end of the exact one-sided 95 % interval of a share that was seen `hits` times `of` records."""
    from scipy.special import betaincinv

    return 1.0 if hits >= of else float(betaincinv(hits + 1, of - hits, CONFIDENCE))


def _threshold(method: str, score: ArrayLike, label: ArrayLike, value: float, target: float) -> Threshold:
    matrix = _matrix(score, label, value)
    normal, bad = matrix.fp + matrix.tn, matrix.fn + matrix.tp
    achieved: dict[str, Any] = {"missed_rate": matrix.fn / bad, "false_alarm_rate": matrix.fp / normal}
    achieved |= {"missed_rate_high": highest_share(matrix.fn, bad), "false_alarm_rate_high": highest_share(matrix.fp, normal)}
    return Threshold(method, float(value), target, achieved | {"n_normal": normal, "n_anomalous": bad})


def _candidates(score: ArrayLike, label: ArrayLike) -> Candidates:
    values, anomalous = _both(score, label)
    ranking = rank(values, anomalous)
    value = [float(ranking.value[0]), *(separator(ranking.value, place) for place in range(len(ranking.value)))]
    missed = 1 - np.concatenate([[0], np.cumsum(ranking.positive)]) / anomalous.sum()
    false = np.concatenate([[0], np.cumsum(ranking.negative)]) / (~anomalous).sum()
    return Candidates(np.array(value), missed, false)


def _matrix(score: ArrayLike, label: ArrayLike, threshold: float) -> Confusion:
    values, anomalous = _both(score, label)
    return confusion(values, anomalous, threshold)


def _both(score: ArrayLike, label: ArrayLike) -> tuple[Floats, Flags]:
    values, anomalous = checked_pair(score, label)
    require_both_classes(anomalous, "record")
    return values, anomalous


def _check_share(what: str, share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"{what} must be a share in 0..1, 1 left out, got {share:g}")
