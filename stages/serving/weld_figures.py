"""From cells to figures: what each row comes to under each protocol, with intervals over sessions and seeds, and how rows differ.

AUROC and the missed share at 5 % false alarms are means over folds. `pooled_auroc` ranks the records of all folds of P2 together, after each model's
scores were put on one scale by its own validation records: a logit divided by its temperature, a raw score in deviations of normal ones. Classes, and the
calibration error, are judged over the records of all folds of P2 together, each of which is tested once, and averaged over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.metrics import calibration
from stages.metrics.bootstrap import Interval
from stages.metrics.classes import accuracy, class_counts, macro_f1
from stages.metrics.counts import Metric, auroc_of_counts
from stages.metrics.folds import FoldScores, fold_draws, paired_classes, paired_folds
from stages.metrics.inputs import Floats, Undefined
from stages.metrics.ranking import auroc
from stages.metrics.record_judgement import fnr_at_fpr_05_of_counts
from stages.serving.weld_rows import HEADLINE, StudyRow
from stages.serving.weld_study import Plan, found

METRICS: dict[str, Metric] = {"auroc": auroc_of_counts, "fnr_at_fpr_05": fnr_at_fpr_05_of_counts}


class Scored(NamedTuple):
    """One row under one protocol."""

    tested: list[FoldScores]  # a fold each
    cells: dict[str, list[dict[str, Any]]]  # by fold what the files of its seeds say
    ids: dict[str, tuple[str, ...]]  # by fold the test records
    val: dict[str, tuple[str, ...]]

    @property
    def first(self) -> dict[str, Any]:
        return next(iter(self.cells.values()))[0]

    @property
    def supervised(self) -> bool:
        return bool(self.first["supervised"])


class Results(NamedTuple):
    scored: dict[tuple[str, str], Scored]  # by row and protocol
    refused: dict[tuple[str, str], str]
    kind: dict[str, str]  # by record id its class
    label: dict[str, int]


def gathered(planned: Plan, out: Path) -> Results:
    """All cells read; a row that was refused in one cell of a protocol is refused in it."""
    from stages.datasets.weld_protocols import class_of_row

    label = {row["record_id"]: int(row["label"]) for row in planned.table}
    session = {row["record_id"]: row["group"] or row["record_id"] for row in planned.table}
    results = Results({}, {}, {row["record_id"]: class_of_row(row) for row in planned.table}, label)
    rows = dict.fromkeys((under, cell.row.name) for under, cell in planned.cells)
    for protocol, name in rows:
        pairs = found(planned, name, protocol, out)
        if refused := next((told["refused"] for _, told in pairs if "refused" in told), None):
            results.refused[name, protocol] = refused
            continue
        results.scored[name, protocol] = _scored(pairs, label, session)
    return results


def _scored(pairs: Sequence[tuple[Any, dict[str, Any]]], label: Mapping[str, int], session: Mapping[str, str]) -> Scored:
    cells: dict[str, list[dict[str, Any]]] = {}
    folds = {}
    for cell, told in pairs:
        cells.setdefault(cell.fold.name, []).append(told)
        folds[cell.fold.name] = cell.fold
    tested = [
        FoldScores(
            name,
            np.array([one["test"] for one in each]),
            np.array([label[one] for one in folds[name].test]),
            np.array([session[one] for one in folds[name].test]),
        )
        for name, each in cells.items()
    ]
    return Scored(tested, cells, {name: fold.test for name, fold in folds.items()}, {name: fold.val for name, fold in folds.items()})


def ranked(scored: Scored, metric: str) -> Interval:
    return fold_draws(scored.tested, METRICS[metric]).interval


def difference(first: Scored, second: Scored, metric: str = "auroc") -> Interval:
    return paired_folds(first.tested, second.tested, METRICS[metric]).interval


def with_scores(scored: Scored, choose: Callable[[dict[str, Any]], list[float]]) -> list[FoldScores]:
    """The same folds with other scores of the same cells."""
    return [one._replace(score=np.array([choose(told) for told in scored.cells[one.fold]])) for one in scored.tested]


def subset_auroc(scored: Scored, subset: str) -> Interval:
    return fold_draws(with_scores(scored, lambda told: told["subsets"][subset]), auroc_of_counts).interval


def over_folds(results: Results, row: StudyRow) -> dict[str, float | None]:
    """What is judged over the records of all folds of P2 together, a mean over seeds; None where a row cannot have it."""
    scored = results.scored[row.name, HEADLINE]
    seeds = range(len(scored.tested[0].score))
    label = np.concatenate([one.label for one in scored.tested])
    scaled = [np.concatenate([_scaled(results, scored, fold.fold, seed) for fold in scored.tested]) for seed in seeds]
    probable = [calibration.ece(calibration.probability(one), label) for one in scaled] if scored.supervised else []
    told: dict[str, float | None] = {"pooled_auroc": _mean([auroc(one, label) for one in scaled]), "ece": _mean(probable)}
    return told | {name: _mean(values) for name, values in _guesses(results, scored, seeds).items()}


def _scaled(results: Results, scored: Scored, fold: str, seed: int) -> np.ndarray:
    """(N,) of one model's test scores on the scale of its own validation records; as they are where these do not say."""
    told = scored.cells[fold][seed]
    val, label = np.array(told["val"]), np.array([results.label[one] for one in scored.val[fold]])
    test = np.array(told["test"])
    if scored.supervised:
        try:
            return test / calibration.temperature(val, label)
        except Undefined:
            return test
    normal = val[label == 0]
    return (test - normal.mean()) / (normal.std() or 1.0) if len(normal) else test


def _guesses(results: Results, scored: Scored, seeds: Sequence[int]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"accuracy": [], "macro_f1": [], "knn_accuracy": [], "knn_macro_f1": []}
    if "predicted" not in scored.first:
        return found
    names = sorted(set(results.kind.values()))
    truth = [names.index(results.kind[one]) for fold in scored.tested for one in scored.ids[fold.fold]]
    for seed in seeds:
        for prefix, key in (("", "predicted"), ("knn_", "neighbours")):
            guess = [names.index(one) for fold in scored.tested for one in scored.cells[fold.fold][seed][key]]
            count = class_counts(truth, guess, len(names))
            found[f"{prefix}accuracy"].append(float(accuracy(count)))
            found[f"{prefix}macro_f1"].append(float(macro_f1(count)))
    return found


def told_apart(results: Results, first: Scored, second: Scored, metric: Callable[[Floats], Floats] = macro_f1) -> Interval | None:
    """The difference in macro F1, or another figure of the confusion, over the records of all folds; None where one of them tells no classes."""
    if any("predicted" not in one.first for one in (first, second)):
        return None
    (truth, one, classes), (_, other, _) = _told(results, first), _told(results, second)
    return paired_classes(first.tested, truth, one, other, classes, metric).interval


def of_classes(results: Results, scored: Scored, metric: Callable[[Floats], Floats]) -> float | None:
    """A figure of the confusion over the records of all folds, a mean over seeds; None where the row tells no classes."""
    if "predicted" not in scored.first:
        return None
    truth, told, classes = _told(results, scored)
    return _mean([float(metric(class_counts(truth, one, classes))) for one in told])


def _told(results: Results, scored: Scored) -> tuple[np.ndarray, np.ndarray, int]:
    """(N,) the class of each record of all folds, (S, N) what each seed said, as positions, and how many classes there are."""
    names = sorted(set(results.kind.values()))
    truth = np.array([names.index(results.kind[one]) for fold in scored.tested for one in scored.ids[fold.fold]])
    seeds = range(len(scored.tested[0].score))
    said = [[names.index(one) for fold in scored.tested for one in scored.cells[fold.fold][seed]["predicted"]] for seed in seeds]
    return truth, np.array(said), len(names)


def milliseconds(scored: Scored) -> float | None:
    """The median over cells."""
    found = [told["ms"] for each in scored.cells.values() for told in each if told["ms"] is not None]
    return round(float(np.median(found)), 3) if found else None


def best_single(results: Results, names: Sequence[str], protocol: str) -> str | None:
    """The single modality with the highest AUROC on the same test records, which favours it."""
    there = [name for name in names if (name, protocol) in results.scored]
    return max(there, key=lambda name: ranked(results.scored[name, protocol], "auroc").value, default=None)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


