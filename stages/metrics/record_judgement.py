"""Everything that is said of one detector of records on one data set: metrics with intervals, thresholds, calibration, and each kind of fault.

Validation records fix the threshold of each seed (from the normal ones) and, where the score is a logit, its temperature; test records are scored and
judged at both. A fit may have been stopped or chosen by the same validation records, so what a threshold promises is approximate, and says so. What is
fitted on test records is called an oracle (`f1_oracle`), has no threshold at all, or reads it off the normal test records (`fnr_at_fpr_05`). Intervals
are drawn over groups of test records and over seeds, all metrics in the same draws, so that those of two detectors are pairs.

S seeds, N test records, n validation records, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics import calibration
from stages.metrics.bootstrap import Draws, bootstrap_draws, draw
from stages.metrics.classes import missed_at
from stages.metrics.counts import Counts, Metric, auroc_of_counts, average_precision_of_counts, f1_max_of_counts
from stages.metrics.inputs import Flags, Floats, Undefined, check_finite, checked_label, require_both_classes
from stages.metrics.thresholds import Threshold, fit_thresholds

Cell = dict[str, Any]  # {"value", "low", "high"}, {"value"} where no interval is known, {"value": None, "reason"} where there is none
DEFAULT, HALF = "conformal", "half"
SEEN = "a fit may have been chosen by these validation records too, so the promised rate is approximate"
RAW = "the score is no logit: the method learns from normal records alone"
AT_THRESHOLD = ("f1", "recall", "precision", "balanced_accuracy", "false_alarm_rate")
CALIBRATED = ("f1_at_half", "ece", "ece_before", "brier", "nll", "temperature")
RECORD_METRICS = (
    "roc_auc",
    "pr_auc",
    "missing_auc",
    "f1_oracle",
    *AT_THRESHOLD,
    "fnr_at_fpr_05",
    *CALIBRATED,
)  # in the order of the tables
REASONS = {
    "f1": "no anomalous record, and none was called so",
    "recall": "no anomalous record",
    "precision": "nothing was called anomalous",
    "balanced_accuracy": "the test records are all of one label",
    "false_alarm_rate": "no normal record",
    "f1_at_half": "no anomalous record, and none was called so",
}


def fnr_at_fpr_05_of_counts(positive: Counts, negative: Counts) -> Floats:
    """`missed_at` where at most 5 % of the normal records alarm."""
    return missed_at(positive, negative, 0.05)


RANKED: dict[str, Metric] = {
    "roc_auc": auroc_of_counts,
    "pr_auc": average_precision_of_counts,
    "f1_oracle": f1_max_of_counts,
    "fnr_at_fpr_05": fnr_at_fpr_05_of_counts,
}


class RecordRule(NamedTuple):
    """The part of the protocol that judging needs."""

    target_false_alarm_rate: float = 0.05
    resamples: int = 1000


class Judged(NamedTuple):
    """The records of one split as all seeds see them."""

    score: Floats  # (S, N), one row a seed
    label: np.ndarray  # (N,) 0 or 1
    group: Sequence[str]  # N
    fault: Sequence[str]  # N, "" for normal records and where nobody said


class Calibration(NamedTuple):
    """The logits of one seed as probabilities: sigmoid(logit / temperature)."""

    temperature: float | None  # None where none can be fitted
    reason: str = ""

    def probability(self, logit: Floats) -> Floats:
        """(N,) in 0..1; with a temperature of one where none could be fitted."""
        return calibration.probability(logit, self.temperature or 1.0)


class RecordJudgement(NamedTuple):
    cells: dict[str, Cell]  # by metric, in the order of RECORD_METRICS
    draws: dict[str, Draws]
    thresholds: dict[str, list[Threshold]]  # by method, one a seed
    calibration: list[Calibration]  # one a seed; none for raw scores
    faults: list[dict[str, Any]]  # rows of faults.csv


class Scene(NamedTuple):
    """What is the same for all seeds."""

    anomalous: Flags  # (N,)
    weight: Floats  # (1 + R, N): the data itself, then the draws
    shares: Floats  # (R, S)
    resolved: bool  # False: too few groups to know the spread


def judge_records(test: Judged, val: Judged, rule: RecordRule, supervised: bool, missing: Draws | str) -> RecordJudgement:
    """test needs both labels, or what ranks has no value; val may be empty. missing: `missing_auc`, or why it has none."""
    score, anomalous = np.asarray(test.score, np.float64), checked_label(test.label, np.shape(test.score)[1])
    check_finite(score, "score")
    thresholds = fit_all(val, rule, supervised)
    calibrated = [fit_temperature(logit, val.label) for logit in val.score] if supervised else []
    scene = scene_of(anomalous, test.group, len(score), rule)
    cells, draws = _ranked(test, rule)
    at_default = [None if at.value is None else row > at.value for row, at in zip(score, thresholds[DEFAULT], strict=True)]
    alarmed = [_alarmed(alarm, scene) for alarm in at_default]
    found = over_seeds(
        AT_THRESHOLD, alarmed, scene, REASONS if any(alarmed) else dict.fromkeys(AT_THRESHOLD, thresholds[DEFAULT][0].reason or "")
    )
    probable = over_seeds(CALIBRATED[:-1], [_probable(row, one, scene) for row, one in zip(score, calibrated)], scene, _why_not(calibrated))
    draws |= ({} if isinstance(missing, str) else {"missing_auc": missing}) | found[1] | probable[1]
    cells |= found[0] | probable[0] | {"missing_auc": cell_of(missing), "temperature": _temperature(calibrated)}
    ordered = {name: cells[name] for name in RECORD_METRICS}
    return RecordJudgement(ordered, draws, thresholds, calibrated, fault_rows(test, rule))


def fit_all(val: Judged, rule: RecordRule, supervised: bool) -> dict[str, list[Threshold]]:
    """By method the threshold of each seed on its raw scores; for logits also that of a probability of one half, which no temperature moves."""
    each = [
        {method: _noted(one) for method, one in fit_thresholds(score, val.label, rule.target_false_alarm_rate).items()} for score in val.score
    ]
    half = {HALF: [Threshold(HALF, 0.0, 0.5)] * len(each)} if supervised else {}
    return {method: [one[method] for one in each] for method in each[0]} | half


def _noted(threshold: Threshold) -> Threshold:
    return threshold if threshold.value is None else threshold._replace(note="; ".join(filter(None, (threshold.note, SEEN))))


def fit_temperature(logit: Floats, label: ArrayLike) -> Calibration:
    """On validation records alone. logit, label: (n,), may be empty."""
    if len(np.unique(label)) < 2:
        return Calibration(None, "no temperature without normal and anomalous validation records")
    return Calibration(float(calibration.temperature(logit, np.asarray(label))))


def fault_rows(test: Judged, rule: RecordRule) -> list[dict[str, Any]]:
    """Each kind of fault against all normal records: how many, and AUROC with its interval."""
    rows, label, fault = [], np.asarray(test.label), np.asarray(test.fault, dtype=object)
    for name in sorted(set(fault[label == 1].tolist())):
        own = (label == 0) | (fault == name) & (label == 1)
        try:
            group = np.asarray(test.group)[own]
            cell = cell_of(bootstrap_draws(test.score[:, own], label[own], group, {"roc_auc": auroc_of_counts}, rule.resamples)["roc_auc"])
        except Undefined as undefined:
            cell = {"value": None, "reason": str(undefined)}
        low, high = cell.get("low"), cell.get("high")
        rows.append(
            {
                "fault": name or "not named",
                "records": int(own.sum() - (label == 0).sum()),
                "roc_auc": cell["value"],
                "low": low,
                "high": high,
            }
        )
    return rows


def scene_of(anomalous: Flags, group: Sequence[str], seeds: int, rule: RecordRule) -> Scene:
    """The draws of `bootstrap_draws`."""
    drawn, shares = draw(anomalous, np.asarray(group), seeds, rule.resamples)
    weight = np.vstack([np.ones(len(anomalous)), drawn.weight])
    return Scene(anomalous, weight, shares, drawn.resolved)


def _ranked(test: Judged, rule: RecordRule) -> tuple[dict[str, Cell], dict[str, Draws]]:
    try:
        require_both_classes(np.asarray(test.label) == 1, "record")
    except Undefined as undefined:
        return {name: {"value": None, "reason": str(undefined)} for name in RANKED}, {}
    draws = bootstrap_draws(test.score, test.label, np.asarray(test.group), RANKED, rule.resamples)
    return {name: cell_of(one) for name, one in draws.items()}, draws


def _alarmed(alarm: Flags | None, scene: Scene) -> dict[str, Floats]:
    """AT_THRESHOLD of one seed, (1 + R,) each, NaN where a draw has no value; nothing where there is no threshold. alarm: (N,)."""
    if alarm is None:
        return {}
    hit, missed, false, quiet = (scene.weight @ flags for flags in _outcomes(alarm, scene.anomalous))
    recall, false_alarms = _ratio(hit, hit + missed), _ratio(false, false + quiet)
    return {
        "f1": _ratio(2 * hit, 2 * hit + missed + false),
        "recall": recall,
        "precision": _ratio(hit, hit + false),
        "balanced_accuracy": (recall + 1 - false_alarms) / 2,
        "false_alarm_rate": false_alarms,
    }


def _probable(logit: Floats, calibrated: Calibration, scene: Scene) -> dict[str, Floats]:
    """CALIBRATED but the temperature, of one seed, (1 + R,) each; the bins of the calibration error are those of the data in every draw."""
    found = {"f1_at_half": _alarmed(logit > 0, scene)["f1"], "ece_before": _calibration_error(calibration.probability(logit), scene)}
    if calibrated.temperature is None:
        return found
    probability = calibrated.probability(logit)
    wrong = np.logaddexp(0, np.where(scene.anomalous, -logit, logit) / calibrated.temperature)  # nats
    total = scene.weight.sum(1)
    found["ece"] = _calibration_error(probability, scene)
    found["brier"] = scene.weight @ (probability - scene.anomalous) ** 2 / total
    return found | {"nll": scene.weight @ wrong / total}


def _calibration_error(probability: Floats, scene: Scene) -> Floats:
    """(1 + R,): the value is that of `calibration.ece`, the draws weigh its bins."""
    count = calibration.reliability(probability, scene.anomalous).count
    place = np.empty(len(probability), dtype=np.int64)
    place[np.argsort(probability)] = np.repeat(np.arange(len(count)), count)
    gap = (place[:, None] == np.arange(len(count))) * (probability - scene.anomalous)[:, None]  # (N, bins)
    return np.abs(scene.weight @ gap).sum(1) / scene.weight.sum(1)


def _outcomes(alarm: Flags, anomalous: Flags) -> tuple[Flags, Flags, Flags, Flags]:
    return alarm & anomalous, ~alarm & anomalous, alarm & ~anomalous, ~alarm & ~anomalous


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def over_seeds(
    names: Sequence[str], seeds: Sequence[Mapping[str, Floats]], scene: Scene, reasons: Mapping[str, str]
) -> tuple[dict[str, Cell], dict[str, Draws]]:
    """Means over the seeds that have a value on the data. seeds: by name (1 + R,), a name may be absent."""
    cells, draws = {}, {}
    for name in names:
        have = [place for place, one in enumerate(seeds) if name in one and np.isfinite(one[name][0])]
        if not have:
            cells[name] = {"value": None, "reason": reasons[name]}
            continue
        rows = np.stack([seeds[place][name] for place in have], 1)  # (1 + R, seeds)
        draws[name] = _draws(float(rows[0].mean()), rows[1:], scene.shares[:, have], scene.resolved)
        cells[name] = cell_of(draws[name]) | ({"over": f"{len(have)} of {len(seeds)} seeds"} if len(have) < len(seeds) else {})
    return cells, draws


def _draws(value: float, samples: Floats, shares: Floats, resolved: bool) -> Draws:
    """A draw without a value (no alarm in it, say) is left out, and the others are repeated in its place. samples, shares: (R, S)."""
    if not resolved:
        return Draws(value, np.resize([0.0, max(1.0, value)], len(samples)))
    share = shares * np.isfinite(samples)
    total = share.sum(1)
    mean = np.nansum(samples * share, axis=1)[total > 0] / total[total > 0]
    return Draws(value, np.resize(mean, len(samples)) if len(mean) else np.resize([0.0, 1.0], len(samples)))


def _why_not(calibrated: Sequence[Calibration]) -> dict[str, str]:
    reason = calibrated[0].reason if calibrated else RAW
    return dict.fromkeys(CALIBRATED, reason) | ({"f1_at_half": REASONS["f1_at_half"]} if calibrated else {})


def _temperature(calibrated: Sequence[Calibration]) -> Cell:
    """The mean over seeds; low and high are the lowest and the highest of them."""
    fitted = [one.temperature for one in calibrated if one.temperature is not None]
    if not fitted:
        return {"value": None, "reason": _why_not(calibrated)["temperature"]}
    return {"value": float(np.mean(fitted)), "low": min(fitted), "high": max(fitted)}


def cell_of(found: Draws | str) -> Cell:
    return {"value": None, "reason": found} if isinstance(found, str) else found.interval._asdict()
