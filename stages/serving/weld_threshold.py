"""A threshold by a business rule, from the validation records alone, with what a shift will see of it; the test records then show how it held.

The rule is one of three: at most so many faults missed, at most so many false alarms, or the least cost. Costs and counts take the share of bad parts from
the user, as that of the records collected is not the plant's. See stages/metrics/business.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from stages.errors import UserError
from stages.metrics import business
from stages.metrics.confusion import confusion
from stages.metrics.inputs import Undefined
from stages.metrics.record_result import read_predictions
from stages.metrics.thresholds import Threshold
from stages.serving.record_model import RecordModel


class Rule(NamedTuple):
    """What was asked for: one of the three. per_shift: parts of one shift."""

    max_fnr: float | None = None
    max_fpr: float | None = None
    cost_miss: float | None = None
    cost_alarm: float | None = None
    prevalence: float | None = None
    per_shift: int | None = None


def choose_threshold(model: RecordModel, rule: Rule) -> dict[str, Any]:
    """What `assay weld threshold` says. Raises UserError for a rule that cannot be followed."""
    _check(rule)
    score, label = _held_out(model, "val")
    try:
        found = _followed(rule, score, label)
    except Undefined as reason:
        raise UserError(f"a threshold needs good and bad validation records of {model.dataset}: {reason}") from reason
    value = float(found.value)
    about = {"dataset": model.dataset, "model": model.name, "seed": model.seed, **found.to_dict(), "test": _rates(*_held_out(model, "test"), value)}
    if rule.per_shift is None:
        return about | {"shift": None}
    return about | {"shift": business.per_shift(value, score, label, rule.per_shift, rule.prevalence)._asdict()}


def render(found: dict[str, Any]) -> str:
    met, test, shift = found["achieved"], found["test"], found["shift"]
    target = f"{found['target']:.3g} a part" if found["method"] == "least_cost" else f"at most {found['target']:.1%}"
    lines = [
        f"{found['model']} on {found['dataset']}, seed {found['seed']}: {found['method']}, {target}",
        f"  threshold {found['value']:.6g}",
        f"  validation ({met['n_anomalous']} bad, {met['n_normal']} good): missed {met['missed_rate']:.1%} (may be {met['missed_rate_high']:.1%}), "
        f"false alarms {met['false_alarm_rate']:.1%} (may be {met['false_alarm_rate_high']:.1%}); the first is what was seen, the second the upper end of a "
        "95 % interval",
        f"  test, which nothing was chosen by: missed {_share(test['missed_rate'])} of {test['n_anomalous']}, "
        f"false alarms {_share(test['false_alarm_rate'])} of {test['n_normal']}",
    ]
    if shift is not None:
        lines.append(
            f"  a shift of {shift['parts']} parts, {shift['prevalence']:.2%} bad: {shift['alarms']:.1f} alarms, {shift['false_alarms']:.1f} of them false "
            f"(up to {shift['false_alarms_high']:.1f}); {shift['found']:.1f} faults found, {shift['missed']:.1f} missed (up to {shift['missed_high']:.1f})"
        )
    return "\n".join([*lines, f"use it: assay predict RECORD --dataset {found['dataset']} --model {found['model']} --threshold={found['value']!r}"])


def _check(rule: Rule) -> None:
    cost = rule.cost_miss is not None or rule.cost_alarm is not None
    if sum([rule.max_fnr is not None, rule.max_fpr is not None, cost]) != 1:
        raise UserError("say one rule: --max-fnr, --max-fpr, or --cost-miss with --cost-alarm")
    if cost and None in (rule.cost_miss, rule.cost_alarm):
        raise UserError("--cost-miss and --cost-alarm are needed together: what counts is how they compare")
    if (cost or rule.per_shift is not None) and rule.prevalence is None:
        raise UserError("say by --prevalence which share of the plant's parts is bad; that of the collected records is another")
    for name in ("max_fnr", "max_fpr", "prevalence"):
        if (value := getattr(rule, name)) is not None and not 0 <= value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be a share in 0..1, 1 left out, got {value:g}")
    if cost and (min(rule.cost_miss, rule.cost_alarm) < 0 or rule.cost_miss + rule.cost_alarm == 0):
        raise UserError(f"costs must not be below 0 and not both 0, got {rule.cost_miss:g} and {rule.cost_alarm:g}")


def _followed(rule: Rule, score: np.ndarray, label: np.ndarray) -> Threshold:
    if rule.max_fnr is not None:
        return business.at_most_missed(score, label, rule.max_fnr)
    if rule.max_fpr is not None:
        return business.at_most_false(score, label, rule.max_fpr)
    return business.least_cost(score, label, rule.cost_miss, rule.cost_alarm, rule.prevalence)


def _held_out(model: RecordModel, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) scores and labels."""
    rows = read_predictions(model.results, split, model.seed)
    return np.array([row["score"] for row in rows], dtype=np.float64), np.array([row["label"] for row in rows], dtype=np.int64)


def _rates(score: np.ndarray, label: np.ndarray, threshold: float) -> dict[str, Any]:
    """None where there is no record to take a rate of."""
    if not len(score):
        return {"missed_rate": None, "false_alarm_rate": None, "n_anomalous": 0, "n_normal": 0}
    matrix = confusion(score, label == 1, threshold)
    bad, good = matrix.fn + matrix.tp, matrix.fp + matrix.tn
    rates = {"missed_rate": matrix.fn / bad if bad else None, "false_alarm_rate": matrix.fp / good if good else None}
    return rates | {"n_anomalous": bad, "n_normal": good}


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"
