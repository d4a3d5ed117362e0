"""Where to draw the line between good and anomalous, fitted on validation scores and kept as data beside the model.

Four classic methods and the default: `conformal`, a target false-alarm rate promised from good parts alone (see that module). Those that
weigh anomalies (F1, Youden's J) are n/a where validation has none, which is usual. All follow one rule: `score > threshold` is anomalous.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.conformal import conformal_quantile
from stages.metrics.confusion import confusion
from stages.metrics.inputs import Flags, Floats, Undefined, checked_pair, checked_scores
from stages.metrics.ranking import rank, separator

N_CANDIDATES = 1001
METHODS = ("f1_percentile", "f1_uniform", "youden", "percentile_95", "conformal")


class Threshold(NamedTuple):
    """One fitted threshold in units of the raw score, as plain data: `to_dict` and `from_dict` lose nothing.

    `target` is what was asked for, `achieved` what the fitting scores gave, by name. `value` is None where the method is n/a, and `reason`
    says why; `note` warns about a value that should not be trusted blindly.
    """

    method: str
    value: float | None
    target: float | None = None
    achieved: dict[str, float] = {}  # never changed in place
    reason: str | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return self._asdict() | {"achieved": dict(self.achieved)}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Threshold:
        return cls(**stored)


def fit_thresholds(
    score: ArrayLike, label: ArrayLike, target_false_alarm_rate: float = 0.01, normal_score: ArrayLike | None = None
) -> dict[str, Threshold]:
    """All five methods by name, n/a with a reason where one cannot be fitted.

    score, label: (N,) of validation. normal_score: (n,) further held-out scores of good parts (K-fold out-of-fold), from which the two
    methods that need no anomalies are then fitted; by default the normal ones among `score`.
    """
    # An all-normal or even empty validation set is a fact to report, not an error.
    values, anomalous = checked_pair(score, label) if np.size(score) else (np.zeros(0), np.zeros(0, dtype=bool))
    normal = values[~anomalous] if normal_score is None else normal_score
    return {
        "f1_percentile": _or_reason("f1_percentile", lambda: f1_percentile(values, anomalous)),
        "f1_uniform": _or_reason("f1_uniform", lambda: f1_uniform(values, anomalous)),
        "youden": _or_reason("youden", lambda: youden(values, anomalous)),
        "percentile_95": _or_reason("percentile_95", lambda: percentile_95(normal)),
        "conformal": _or_reason("conformal", lambda: conformal(normal, target_false_alarm_rate)),
    }


def f1_percentile(score: ArrayLike, label: ArrayLike) -> Threshold:
    """Best F1 among 1,001 percentiles of the scores: dense where scores are."""
    values, anomalous = _separable(score, label)
    return _best_f1("f1_percentile", values, anomalous, np.percentile(values, np.linspace(0, 100, N_CANDIDATES)))


def f1_uniform(score: ArrayLike, label: ArrayLike) -> Threshold:
    """Best F1 among 1,001 thresholds evenly between the lowest and the highest score: dense where scores are rare."""
    values, anomalous = _separable(score, label)
    return _best_f1("f1_uniform", values, anomalous, np.linspace(values.min(), values.max(), N_CANDIDATES))


def youden(score: ArrayLike, label: ArrayLike) -> Threshold:
    """Point of the ROC curve with the highest J = sensitivity + specificity - 1 (Youden, Cancer 1950), over all distinct scores."""
    values, anomalous = _separable(score, label)
    ranking = rank(values, anomalous)
    j = np.cumsum(ranking.positive) / ranking.positive.sum() - np.cumsum(ranking.negative) / ranking.negative.sum()
    value = separator(ranking.value, int(np.argmax(j)))
    reached = confusion(values, anomalous, value)
    return Threshold("youden", value, achieved={"sensitivity": reached.recall, "specificity": reached.specificity})


def percentile_95(normal_score: ArrayLike) -> Threshold:
    """95th percentile of good parts' scores, without finite-sample correction: about 1 in 20 good parts will raise an alarm."""
    normal = checked_scores(normal_score, "normal score")
    value = float(np.percentile(normal, 95))
    return Threshold(
        "percentile_95", value, 0.05, {"false_alarm_rate": float((normal > value).mean()), "n_normal": len(normal)}, note=collapsed(normal)
    )


def conformal(normal_score: ArrayLike, target_false_alarm_rate: float = 0.01) -> Threshold:
    """The default: P(a future good part scores above the value) <= target, or the nearest reachable rate, which `note` then says."""
    promise = conformal_quantile(normal_score, target_false_alarm_rate)
    achieved = promise._asdict()
    value, target = achieved.pop("value"), achieved.pop("target_false_alarm_rate")
    short = None
    if not promise.reached:
        needed = int(np.ceil(1 / target - 1e-9)) - 1
        short = (
            f"{promise.n_normal} good parts cannot promise less than {100 * promise.smallest_reachable_rate:.2g} % false alarms, "
            f"so the target of {100 * target:.2g} % is not promised; it needs {needed} held-out good parts"
        )
    notes = [note for note in (collapsed(normal_score), short) if note]
    return Threshold("conformal", value, target, achieved, note="; ".join(notes) or None)


def collapsed(score: ArrayLike) -> str | None:
    """What to tell the user when all scores are one value (E402), else None. A single score says nothing about it."""
    values = checked_scores(score)
    if len(values) < 2 or np.ptp(values) > 0:
        return None
    return (
        f"E402: all {len(values)} scores are {values[0]:g}, the model collapsed; likely causes: features that are constant "
        "(wrong layer, dead network), a loss that diverged, or images that were all read as the same picture"
    )


def _separable(score: ArrayLike, label: ArrayLike) -> tuple[Floats, Flags]:
    """Scores and labels that a method which weighs anomalies against good parts can use."""
    values, anomalous = (np.zeros(0), np.zeros(0, dtype=bool)) if not np.size(score) else checked_pair(score, label)
    if not anomalous.any():
        raise Undefined(
            f"E401: no anomalous image among {anomalous.size} in validation to weigh against good ones; use the conformal threshold instead"
        )
    if anomalous.all():
        raise Undefined(f"E401: no normal image among {anomalous.size} in validation, so false alarms cannot be weighed; add good images")
    if reason := collapsed(values):
        raise Undefined(reason)
    return values, anomalous


def _best_f1(method: str, values: Floats, anomalous: Flags, candidates: Floats) -> Threshold:
    """The candidate with the highest F1; of several, the middle one, which is farthest from the scores at either side."""
    true, all_flagged = (
        len(flagged) - np.searchsorted(np.sort(flagged), candidates, side="right") for flagged in (values[anomalous], values)
    )
    f1 = 2 * true / (all_flagged + anomalous.sum())
    best = np.flatnonzero(f1 == f1.max())
    value = float(candidates[best[len(best) // 2]])
    return Threshold(method, value, achieved={"f1": float(f1.max())})


def _or_reason(method: str, fit: Callable[[], Threshold]) -> Threshold:
    try:
        return fit()
    except Undefined as undefined:
        return Threshold(method, None, reason=str(undefined))
