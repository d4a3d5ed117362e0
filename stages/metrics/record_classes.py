"""What is said of a detector that tells classes: accuracy and macro F1, also those of nearest neighbours, with intervals; matrix and table of classes.

Drawn in the same resamples as all else that is said of the detector (`record_judgement`), so that differences of two detectors are pairs. A class of test
records that training never had cannot be told: its records count as wrong, and it stands in the tables with a recall of 0. Figures that other data sets
do not ask for stand here as well: how much is missed at 1 and 10 % false alarms, average precision where 5 or 20 % are anomalous, and the area under
the curve of error against the share of records that a verdict is given for, the surest first.

S seeds, N test records, C classes that were learnt, D >= C with those that only test records have, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages import io
from stages.metrics import tables
from stages.metrics.bootstrap import Draws, bootstrap_draws
from stages.metrics.classes import accuracy, average_precision_at, by_class, class_counts, guess, macro_f1, missed_at
from stages.metrics.counts import Metric
from stages.metrics.inputs import Floats, Undefined, require_both_classes
from stages.metrics.record_judgement import Cell, Judged, RecordRule, Scene, cell_of, fit_temperature, over_seeds, scene_of
from stages.metrics.selective import aurc

RANKED: dict[str, Metric] = {
    "fnr_at_fpr_01": partial(missed_at, allowed=0.01),
    "fnr_at_fpr_10": partial(missed_at, allowed=0.1),
    "ap_at_05": partial(average_precision_at, prevalence=0.05),
    "ap_at_20": partial(average_precision_at, prevalence=0.2),
}
TOLD = ("accuracy", "macro_f1", "knn_accuracy", "knn_macro_f1", "aurc")
CLASS_METRICS = ("accuracy", "macro_f1", "knn_accuracy", "knn_macro_f1", *RANKED, "aurc")
COMPARED = ("accuracy", "macro_f1")  # whose draws are kept
COVERAGE = 0.9  # at most the rest of good records is rejected, and of bad ones accepted
CLASS_COLUMNS = ("class", "records", "precision", "recall", "f1", "low", "high", "knn_f1")
LEARNING = ("seed", "training", "step", "epoch")  # the first columns of learning.csv


class Told(NamedTuple):
    """The test records as all seeds see them."""

    logits: Floats  # (S, N, C)
    neighbour: NDArray[np.int64]  # (S, N) in 0..C-1: what the nearest of the records that were learnt from are
    true: NDArray[np.int64]  # (N,) in 0..D-1
    names: list[str]  # D, the learnt ones first, "normal" the first of them


class ClassJudgement(NamedTuple):
    cells: dict[str, Cell]  # by metric, in the order of CLASS_METRICS
    draws: dict[str, Draws]
    rows: list[dict[str, Any]]  # of classes.csv
    confusion: NDArray[np.int64]  # (D, D) of the first seed, rows are what a record is
    guess: dict[str, Any]  # of `classes.guess`
    unseen: list[str]  # classes that only test records have
    told: dict[str, Told]  # by split
    verdicts: dict[str, Any]  # of verdicts.json


def judge_classes(judged: Mapping[str, Judged], every: dict[str, Told], rule: RecordRule) -> ClassJudgement:
    """judged, every: by split, test and val; the latter may be empty."""
    test, told = judged["test"], every["test"]
    names, known = told.names, told.logits.shape[-1]
    scene = scene_of(np.asarray(test.label) == 1, test.group, len(told.logits), rule)
    own = [class_counts(told.true, one.argmax(1), len(names), scene.weight) for one in told.logits]  # each (1 + R, D, D)
    near = [class_counts(told.true, one, len(names), scene.weight) for one in told.neighbour]
    cells, draws = over_seeds(TOLD, [_seed(*one, told, scene) for one in zip(own, near, told.logits, strict=True)], scene, {})
    ranked = _ranked(test, rule)
    cells |= ranked[0]
    return ClassJudgement(
        {name: cells[name] for name in CLASS_METRICS},
        draws | ranked[1],
        _rows(names, own, near, scene),
        np.rint(own[0][0]).astype(np.int64),
        guess([names[place] for place in told.true], names[0]),
        names[known:],
        every,
        verdicts_of(judged),
    )


def class_result(found: ClassJudgement) -> dict[str, Any]:
    """What stands in git beside the metrics: how many classes were told, those that could not be, and what a guess is worth."""
    known = len(found.told["test"].names) - len(found.unseen)
    return {"classes": known, **({"classes_only_in_test": found.unseen} if found.unseen else {}), "guess": found.guess}


def verdicts_of(judged: Mapping[str, Judged], coverage: float = COVERAGE) -> dict[str, Any]:
    """Accept, reject or review by the first seed: the rule that held-out records gave, how many of them it reviews, and what it makes of the test records."""
    from stages.metrics import verdicts
    from stages.metrics.calibration import probability

    val, test = judged["val"], judged["test"]
    if len(np.unique(val.label)) < 2:
        return {"rule": None, "reason": "no rule without normal and anomalous validation records", "coverage": coverage}
    temperature = fit_temperature(val.score[0], val.label).temperature or 1.0
    each = {split: verdicts.two_classes(probability(one.score[0], temperature)) for split, one in (("val", val), ("test", test))}
    rule = verdicts.fit_verdicts(each["val"], np.asarray(val.label), coverage=coverage)
    counted = {split: verdicts.counts(rule.verdicts(each[split]), np.asarray(judged[split].label)) for split in each}
    return {"rule": rule.to_dict(), "temperature": temperature, "coverage": coverage, **counted}


def write_class_tables(folder: Path, record_ids: Mapping[str, Sequence[str]], seeds: Sequence[int], found: ClassJudgement) -> None:
    """classes.csv, confusion.csv, verdicts.json, and class_predictions.parquet: for each record and seed its class, what was told, and the logits."""
    names = found.told["test"].names
    io.write_text(folder / "classes.csv", tables.rows_csv(found.rows, CLASS_COLUMNS))
    rows = [{"class": name, **dict(zip(names, counts.tolist(), strict=True))} for name, counts in zip(names, found.confusion, strict=True)]
    io.write_text(folder / "confusion.csv", tables.rows_csv(rows, ("class", *names)))
    io.write_json(folder / "verdicts.json", found.verdicts)
    parts = [_predictions(split, record_ids[split], seeds, told) for split, told in found.told.items()]
    io.write_table(folder / "class_predictions.parquet", {name: [value for part in parts for value in part[name]] for name in parts[0]})


def learning_csv(histories: dict[int, list[dict[str, Any]]]) -> str:
    """By seed the history of a fit as one table: LEARNING, then the quantities that were measured; nothing where nothing was."""
    rows = [{"seed": seed, **row} for seed, history in histories.items() for row in history if "step" in row]
    if not rows:
        return ""
    measured = [name for row in rows for name, value in row.items() if name not in LEARNING and isinstance(value, int | float)]
    columns = (*LEARNING, *dict.fromkeys(measured))
    return tables.rows_csv([{name: row.get(name) for name in columns} for row in rows], columns)


def _seed(own: Floats, near: Floats, logits: Floats, told: Told, scene: Scene) -> dict[str, Floats]:
    """TOLD of one seed, (1 + R,) each."""
    wrong, sure = logits.argmax(1) != told.true, _probability(logits).max(1)
    found = {"accuracy": accuracy(own), "macro_f1": macro_f1(own), "knn_accuracy": accuracy(near), "knn_macro_f1": macro_f1(near)}
    return found | {"aurc": aurc(sure, wrong, scene.weight)}


def _probability(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def _ranked(test: Judged, rule: RecordRule) -> tuple[dict[str, Cell], dict[str, Draws]]:
    try:
        require_both_classes(np.asarray(test.label) == 1, "record")
    except Undefined as undefined:
        return {name: {"value": None, "reason": str(undefined)} for name in RANKED}, {}
    draws = bootstrap_draws(test.score, test.label, np.asarray(test.group), RANKED, rule.resamples)
    return {name: cell_of(one) for name, one in draws.items()}, draws


def _rows(names: Sequence[str], own: Sequence[Floats], near: Sequence[Floats], scene: Scene) -> list[dict[str, Any]]:
    """Means over the seeds; F1 with its interval. A figure without a value is None."""
    each, beside = [by_class(count) for count in own], [by_class(count).f1[0] for count in near]
    rows = []
    for place, name in enumerate(names):
        cell = over_seeds(("f1",), [{"f1": one.f1[:, place]} for one in each], scene, {"f1": "no record of this class"})[0]["f1"]
        figures = {figure: _mean([getattr(one, figure)[0, place] for one in each]) for figure in ("precision", "recall")}
        rows.append({
            "class": name, "records": int(each[0].support[0, place]), **figures, "f1": cell["value"], "low": cell.get("low"), "high": cell.get("high"),
            "knn_f1": _mean([one[place] for one in beside]),
        })  # fmt: skip
    return rows


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _predictions(split: str, record_id: Sequence[str], seeds: Sequence[int], told: Told) -> dict[str, list[Any]]:
    names, size = np.asarray(told.names, dtype=object), len(record_id)
    columns: dict[str, Any] = {
        "record_id": list(record_id) * len(seeds),
        "split": [split] * (size * len(seeds)),
        "seed": np.repeat(np.asarray(seeds, np.int64), size).tolist(),
        "class": np.tile(names[told.true], len(seeds)).tolist(),
        "told": names[told.logits.argmax(-1).ravel()].tolist(),
        "neighbours": names[told.neighbour.ravel()].tolist(),
    }
    return columns | {f"logit_{name}": told.logits[:, :, place].ravel().tolist() for place, name in enumerate(told.names[: told.logits.shape[-1]])}
