"""What is written down of one detector of records on one data set: its result as it stands in git, its tables, and the draws that compare it with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages import io
from stages.metrics import calibration, record_classes, tables
from stages.metrics.inputs import Floats
from stages.metrics.record_classes import ClassJudgement, class_result, write_class_tables
from stages.metrics.record_judgement import DEFAULT, Judged, RecordJudgement
from stages.metrics.result import AVERAGING
from stages.metrics.subsets import CURVE_COLUMNS, SUBSET_COLUMNS, SubsetTable

CATEGORY = "all"  # records are judged together, whatever they show
COMPARED = ("roc_auc", "pr_auc", "missing_auc")  # whose draws are kept
COLUMNS = ("record_id", "split", "seed", "label", "fault", "group", "score", "probability")  # of predictions.parquet
NOTE = "fitted on validation records, which may also have chosen a penalty, or the state of the network that was kept; test records had no part in it"
FAULT_COLUMNS = ("fault", "records", "roc_auc", "low", "high")


class RowTables(NamedTuple):
    """One detector on one data set, all seeds."""

    judgement: RecordJudgement
    splits: dict[str, tuple[Judged, list[str]]]  # test and val as they were scored, and their record ids
    subsets: SubsetTable | None
    contributions: dict[str, Any] | None  # columns of contributions.parquet
    experts: dict[str, Any] | None
    classes: ClassJudgement | None = None  # of a detector that tells them


def record_result(about: dict[str, Any], found: RowTables) -> dict[str, Any]:
    cells = found.judgement.cells | (found.classes.cells if found.classes else {})
    told = class_result(found.classes) if found.classes else {}
    return about | told | {"averaging": AVERAGING, "categories": {CATEGORY: cells}, "mean": cells}


def write_record_tables(folder: Path, seeds: Sequence[int], found: RowTables) -> None:
    """All of one detector but what stands in git."""
    judgement = found.judgement
    io.write_text(folder / "metrics.csv", tables.metrics_csv(judgement.cells | (found.classes.cells if found.classes else {})))
    io.write_text(folder / "faults.csv", tables.rows_csv(judgement.faults, FAULT_COLUMNS))
    io.write_json(folder / "thresholds.json", {CATEGORY: thresholds_of(seeds, judgement)})
    io.write_table(folder / "predictions.parquet", predictions_of(seeds, found), _schema())
    io.write_table(folder / "draws.parquet", _draws(found))
    if judgement.calibration:
        io.write_json(folder / "calibration.json", calibration_of(seeds, found))
    if found.subsets:
        io.write_text(folder / "subsets.csv", tables.rows_csv(found.subsets.rows, SUBSET_COLUMNS))
        io.write_text(folder / "missing_curve.csv", tables.rows_csv(found.subsets.curve, CURVE_COLUMNS))
    if found.contributions:
        io.write_table(folder / "contributions.parquet", found.contributions)
    if found.experts:
        io.write_json(folder / "experts.json", found.experts)
    if found.classes:
        write_class_tables(folder, {split: ids for split, (_, ids) in found.splits.items()}, seeds, found.classes)


def thresholds_of(seeds: Sequence[int], judgement: RecordJudgement) -> dict[str, Any]:
    """What predict reads: by method the threshold of each seed on the raw score; the temperature of each seed, null where there is none."""
    by_method = {method: [threshold.to_dict() for threshold in each] for method, each in judgement.thresholds.items()}
    temperatures = [one.temperature for one in judgement.calibration] or [None] * len(seeds)
    return {"default": DEFAULT, "seeds": list(seeds), "temperatures": temperatures, "thresholds": by_method}


def predictions_of(seeds: Sequence[int], found: RowTables) -> dict[str, Any]:
    """One row per record, split and seed: COLUMNS; probability is null where the score is no logit."""
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for split, (judged, record_id) in found.splits.items():
        for place, (seed, score) in enumerate(zip(seeds, judged.score, strict=True)):
            size = len(record_id)
            known = found.judgement.calibration
            probability = known[place].probability(score).tolist() if known else [None] * size
            own = (record_id, [split] * size, [seed] * size, judged.label, judged.fault, judged.group, score, probability)
            for name, values in zip(COLUMNS, own, strict=True):
                columns[name] += list(values)
    return columns


def calibration_of(seeds: Sequence[int], found: RowTables) -> dict[str, Any]:
    """The bins of the first seed on test records, without and with its temperature, and how far both are off."""
    first, test = found.judgement.calibration[0], found.splits["test"][0]
    logit = test.score[0]
    return {
        "temperature": first.temperature,
        "temperatures": [one.temperature for one in found.judgement.calibration],
        "seeds": list(seeds),
        "reason": first.reason or None,
        "note": NOTE,
        "before": _bins(calibration.probability(logit), test.label),
        "after": None if first.temperature is None else _bins(first.probability(logit), test.label),
    }


def contributions_of(record_id: Sequence[str], label: Floats, score: Floats, shares: Floats, modalities: Sequence[str]) -> dict[str, Any]:
    """Columns of contributions.parquet. shares: (N, M) Shapley values; a row adds up to its score less that of a record without any modality."""
    return {"record_id": list(record_id), "label": list(label), "score": score} | dict(zip(modalities, shares.T, strict=True))


def read_predictions(folder: Path, split: str, seed: int) -> list[dict[str, Any]]:
    """The rows of one split as the detector of one seed saw it."""
    return [row for row in io.read_table(folder / "predictions.parquet") if (row["split"], row["seed"]) == (split, seed)]


def _bins(probability: Floats, label: np.ndarray) -> dict[str, Any]:
    found = calibration.reliability(probability, label)
    columns: Mapping[str, Any] = {name: values.tolist() for name, values in found._asdict().items()}
    return {"ece": calibration.ece(probability, label), **columns}


def _schema() -> Any:
    import pyarrow

    kinds = {"label": "int8", "seed": "int64", "score": "float64", "probability": "float64"}
    return pyarrow.schema([(name, kinds.get(name, "string")) for name in COLUMNS])


def _draws(found: RowTables) -> dict[str, Any]:
    """As series_result writes them: category, metric, value on the data, and the drawn values, in the same draws for every detector."""
    drawn = found.judgement.draws | (found.classes.draws if found.classes else {})
    kept = [(name, drawn[name]) for name in (*COMPARED, *record_classes.COMPARED) if name in drawn]
    return {
        "category": [CATEGORY] * len(kept),
        "metric": [name for name, _ in kept],
        "value": [one.value for _, one in kept],
        "drawn": [one.samples.tolist() for _, one in kept],
    }
