"""What is written down of one model on one data set: its result as it stands in git, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import io
from stages.metrics import tables
from stages.metrics.judgement import DEFAULT, Judgement, Scored, mean_over

PREDICTION = ("sample_id", "category", "split", "seed", "label", "image_score")  # columns of predictions.parquet
AVERAGING = "unweighted mean over categories"
SUSPICIOUS = 10


def result_folder(dataset: str, model: str, row: str) -> Path:
    """Where the tables, thresholds and pictures of one model lie; the row's name stands below where the model is a group."""
    return Path("metrics", dataset, model, *([row] if row != model else []))


def result_of(about: dict[str, Any], judgements: Mapping[str, Judgement], refused: Mapping[str, str]) -> dict[str, Any]:
    """`about` and the metrics of every category and their mean; of a model that was refused everywhere, the reason.

    refused: by category, why there is no model.
    """
    if not judgements:
        return about | {"refused": next(iter(refused.values()))}
    cells = {category: judgement.cells for category, judgement in judgements.items()}
    shift = {category: judgement.shift for category, judgement in judgements.items() if judgement.shift}
    result = about | {"averaging": AVERAGING, "categories": cells, "mean": mean_over(judgements)}
    return result | ({"shift": shift} if shift else {}) | ({"refused_categories": dict(refused)} if refused else {})


def predictions_of(
    seeds: Sequence[int],
    splits: Mapping[str, list[dict[str, Any]]],
    scored: Mapping[str, Sequence[Scored]],
    out_of_fold: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """One row per image, split and seed, with at least the columns of PREDICTION; the split "train" holds the out-of-fold scores of the first seed."""
    rows = [
        {**sample, "seed": seed, "image_score": float(score)}
        for split, samples in splits.items()
        for seed, one in zip(seeds, scored[split], strict=True)
        for sample, score in zip(samples, one.score, strict=True)
    ]
    return rows + [{**row, "split": "train", "seed": seeds[0]} for row in out_of_fold]


def tables_of(result: dict[str, Any]) -> dict[str, str]:
    """File name -> text, for the tables of a result."""
    if "refused" in result:
        return {}
    cells, mean = result["categories"], result["mean"]
    return {
        "summary_metrics.csv": tables.summary_csv(cells, mean),
        "summary_metrics_pretty.csv": tables.pretty_csv(cells, mean),
        "summary_metrics_pretty.md": tables.pretty_markdown(cells, mean),
        **{f"{category}/metrics.csv": tables.metrics_csv(own) for category, own in cells.items()},
    }


class Judged(NamedTuple):
    """One model on one category."""

    judgement: Judgement
    predictions: list[dict[str, Any]]  # as `predictions_of` gives them
    out_of_fold: list[dict[str, Any]]  # rows with sample_id and image_score


def write_tables(folder: Path, result: dict[str, Any], judged: Mapping[str, Judged]) -> None:
    """All of one model on one data set but what stands in git: tables, thresholds.json, predictions.parquet. judged: by category."""
    for file, text in tables_of(result).items():
        io.write_text(folder / file, text)
    thresholds = {category: thresholds_of(one.judgement, one.out_of_fold) for category, one in judged.items()}
    io.write_json(folder / "thresholds.json", thresholds)
    rows = [prediction for one in judged.values() for prediction in one.predictions]
    io.write_table(folder / "predictions.parquet", {column: [row[column] for row in rows] for column in PREDICTION})


def thresholds_of(judgement: Judgement, out_of_fold: list[dict[str, Any]]) -> dict[str, Any]:
    """What predict and export read: thresholds with what they promise, and the training images that look most like defects.

    out_of_fold: rows with sample_id and image_score.
    """
    suspicious = sorted(out_of_fold, key=lambda row: (-row["image_score"], row["sample_id"]))[:SUSPICIOUS]
    return {
        "default": DEFAULT,
        "thresholds": {method: threshold.to_dict() for method, threshold in judgement.thresholds.items()},
        "oracle (test-fitted)": {method: threshold.to_dict() for method, threshold in judgement.oracle.items()},
        "suspicious_training_images": [{"sample_id": row["sample_id"], "image_score": row["image_score"]} for row in suspicious],
    }
