"""What is written down of one detector of signals on one data set: its result as it stands in git, its tables, and the draws that compare it with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages import io
from stages.datasets.recordings import Segment
from stages.metrics import tables
from stages.metrics.bootstrap import Draws, mean_interval
from stages.metrics.confusion import Confusion, confusion
from stages.metrics.result import AVERAGING
from stages.metrics.series_judgement import SeriesJudgement
from stages.metrics.series_tables import Cell

COMPARED = ("vus_pr", "pr_auc")  # whose draws are kept
COLUMNS = ("recording", "category", "split", "seed", "step", "label", "score")  # of predictions.parquet


def series_result(
    about: dict[str, Any], judged: Mapping[str, SeriesJudgement], counts: Mapping[str, Sequence[Confusion]], refused: Mapping[str, str]
) -> dict[str, Any]:
    """`about` and the metrics of every category and their mean; of a model that was refused everywhere, the reason.

    counts: by category, see `pooled`. refused: by category.
    """
    if not judged:
        return about | {"refused": next(iter(refused.values()))}
    cells = {category: one.cells for category, one in judged.items()}
    result = about | {"averaging": AVERAGING, "categories": cells, "mean": mean_over(judged), "pooled": pooled(counts)}
    return result | ({"refused_categories": dict(refused)} if refused else {})


def mean_over(judged: Mapping[str, SeriesJudgement]) -> dict[str, Cell]:
    """Unweighted mean over the categories that have each metric; says over how many where some have none."""
    means: dict[str, Cell] = {}
    first = next(iter(judged.values()))
    for name, cell in first.cells.items():
        have = [one for one in judged.values() if one.cells[name]["value"] is not None]
        if not have:
            means[name] = cell
            continue
        beside = {key: value for key, value in have[0].cells[name].items() if key in ("buffer", "inflated")}
        means[name] = mean_interval([one.draws[name] for one in have])._asdict() | beside
        if len(have) < len(judged):
            means[name]["over"] = f"{len(have)} of {len(judged)} categories"
    return means


def counts_at(judgement: SeriesJudgement, scores: Sequence[np.ndarray], label: np.ndarray) -> list[Confusion]:
    """The confusion matrix of each seed at its deployable threshold; none where there is no threshold. scores: (T,) a seed; label: (T,)."""
    deployed = next(iter(judgement.thresholds.values()))
    return [confusion(score, label, at.value) for score, at in zip(scores, deployed, strict=True) if at.value is not None]


def pooled(counts: Mapping[str, Sequence[Confusion]]) -> dict[str, float | None]:
    """F1, false-alarm and missing-alarm rate over the test steps of all categories together, each at its own thresholds: means over the seeds.

    So SKAB compares detectors, which learns one model a file. counts: by category, one a seed.
    """
    together = [Confusion(*np.sum(seeds, axis=0).tolist()) for seeds in zip(*counts.values(), strict=True)]
    rates = {"f1": [one.f1 for one in together]}
    rates["false_alarm_rate"] = [None if one.specificity is None else 1 - one.specificity for one in together]
    rates["missing_alarm_rate"] = [None if one.recall is None else 1 - one.recall for one in together]
    return {name: float(np.mean(values)) if values and None not in values else None for name, values in rates.items()}


def predictions_of(category: str, split: str, seed: int, segments: Sequence[Segment], scores: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """One row per step: the columns of predictions.parquet. scores: one (T,) for each segment."""
    steps = np.concatenate([segment.start + np.arange(segment.steps) for segment in segments])
    labels = np.concatenate([np.zeros(segment.steps, np.int8) if segment.label is None else segment.label for segment in segments])
    names = np.repeat([segment.recording for segment in segments], [segment.steps for segment in segments])
    same = {"category": category, "split": split}
    columns = {"recording": names, **{key: np.full(len(steps), value) for key, value in same.items()}, "seed": np.full(len(steps), seed)}
    return columns | {"step": steps, "label": labels, "score": np.concatenate(scores)}


def write_series_tables(
    folder: Path, result: dict[str, Any], judged: Mapping[str, SeriesJudgement], predictions: Sequence[dict[str, np.ndarray]]
) -> None:
    """All of one model on one data set but what stands in git: tables, thresholds.json, kinds.json, predictions.parquet, draws.parquet."""
    if "refused" in result:
        return
    cells, mean = result["categories"], result["mean"]
    io.write_text(folder / "summary_metrics.csv", tables.summary_csv(cells, mean))
    for category, own in cells.items():
        io.write_text(folder / category / "metrics.csv", tables.metrics_csv(own))
    whole = {category: one.result() for category, one in judged.items()}
    io.write_json(folder / "thresholds.json", {category: one["thresholds"] for category, one in whole.items()})
    kept = ("types", "kinds", "at_false_alarm_rate")
    io.write_json(folder / "kinds.json", {category: {key: one[key] for key in kept} for category, one in whole.items()})
    io.write_table(folder / "predictions.parquet", {name: np.concatenate([one[name] for one in predictions]) for name in COLUMNS})
    io.write_table(folder / "draws.parquet", _draws(judged))


def read_predictions(folder: Path, split: str, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """By category, in order: `step`, `label` and `score` of one split as the detector of one seed saw it."""
    import pyarrow.compute as compute
    import pyarrow.parquet

    wanted = (compute.field("split") == split) & (compute.field("seed") == seed)
    table = pyarrow.parquet.read_table(io.require(folder / "predictions.parquet"), filters=wanted)
    columns = {name: table[name].to_numpy() for name in ("category", "step", "label", "score")}
    return {
        category: {name: column[columns["category"] == category] for name, column in columns.items() if name != "category"}
        for category in dict.fromkeys(columns["category"])
    }


def _draws(judged: Mapping[str, SeriesJudgement]) -> dict[str, Any]:
    """Long: category, metric, value on the data, and the drawn values in the order in which every model was drawn."""
    rows = [(category, name, one.draws[name]) for category, one in judged.items() for name in COMPARED if name in one.draws]
    return {
        "category": [category for category, _, _ in rows],
        "metric": [name for _, name, _ in rows],
        "value": [draws.value for _, _, draws in rows],
        "drawn": [draws.samples.tolist() for _, _, draws in rows],
    }


def tied_with(best: Path, other: Path, metric: str) -> bool | None:
    """Whether the interval of the paired difference of two models' means holds zero; None where they cannot be compared.

    best, other: folders of results on the same data set. Every model's test steps are drawn anew in the same blocks, so the draws are pairs.
    """
    first, second = _read_draws(best, metric), _read_draws(other, metric)
    if not first or first.keys() != second.keys() or any(len(first[key].samples) != len(second[key].samples) for key in first):
        return None
    differences = [
        Draws(one.value - second[category].value, one.samples - second[category].samples) for category, one in first.items()
    ]
    return mean_interval(differences).holds_zero


def _read_draws(folder: Path, metric: str) -> dict[str, Draws]:
    path = folder / "draws.parquet"
    rows = io.read_table(path) if path.is_file() else []
    return {row["category"]: Draws(row["value"], np.array(row["drawn"])) for row in rows if row["metric"] == metric}
