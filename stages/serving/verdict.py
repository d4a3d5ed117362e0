"""Which model to take: the best one, or, of those that cannot be told from it, one that is much faster.

Two models are compared on the same test images: where the 95 % interval of the paired difference of their mean image AUROC holds zero, the data
cannot tell them apart, and crowning either would be crowning noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages import io
from stages.datasets.samples import manifest_samples

VERDICTS = Path("metrics/report/verdicts.json")  # {data set: the model that the report recommends, or null}


class Scores(NamedTuple):
    """One model on the test images of one category; `sample_id` in the order of the columns."""

    score: np.ndarray  # (S, N), a row for each seed
    label: np.ndarray  # (N,) 0 or 1
    sample_id: list[str]


def test_scores(result: Path) -> dict[str, Scores]:
    """By category, from the predictions.parquet in the folder of a result; empty where it is not there."""
    path = result / "predictions.parquet"
    rows = [row for row in io.read_table(path) if row["split"] == "test"] if path.is_file() else []
    found = {}
    for category in dict.fromkeys(row["category"] for row in rows):
        own = [row for row in rows if row["category"] == category]
        seeds = {seed: [row for row in own if row["seed"] == seed] for seed in sorted({row["seed"] for row in own})}
        first = next(iter(seeds.values()))
        score = np.array([[row["image_score"] for row in one] for one in seeds.values()])
        found[category] = Scores(score, np.array([row["label"] for row in first]), [row["sample_id"] for row in first])
    return found


def tied_with(best: Mapping[str, Scores], other: Mapping[str, Scores], groups: Mapping[str, str]) -> bool | None:
    """Whether the paired interval of the mean image AUROC holds zero; None where the two cannot be compared image by image.

    groups: by sample id, what must be resampled whole.
    """
    from stages.metrics.bootstrap import mean_interval, paired_draws
    from stages.metrics.inputs import Undefined
    from stages.metrics.ranking import IMAGE_METRICS

    if not best or best.keys() != other.keys() or any(best[category].sample_id != other[category].sample_id for category in best):
        return None
    metric, differences = IMAGE_METRICS["image_auroc"], []
    for category, one in best.items():
        group = [groups[sample] for sample in one.sample_id]
        try:
            differences.append(paired_draws(one.score, other[category].score, one.label, group, metric))
        except Undefined:  # a category with one class says nothing about either
            continue
    return mean_interval(differences).holds_zero if differences else None


def group_of(dataset: str, project: Path) -> dict[str, str]:
    """The group of every sample of the manifest."""
    return {sample["sample_id"]: sample["group"] for sample in manifest_samples(dataset, project)}


def recommended(rows: Sequence[Any]) -> Any | None:
    """The best single model of the leaderboard rows; where others are tied with it and answer in at most half its time, the fastest of those."""
    candidates = [row for row in rows if row.candidate]
    if not candidates:
        return None
    best = min(candidates, key=lambda row: row.rank)
    quicker = [row for row in candidates if None not in (row.latency_ms, best.latency_ms) and row.latency_ms <= best.latency_ms / 2]
    return min(quicker, key=lambda row: (row.latency_ms, row.rank), default=best)


def why(best: Any, judged: Sequence[Any], unit: str) -> list[str]:
    """What the recommendation rests on, a sentence or none. best: of `judged`, single models by rank; unit: what the test set has many of, as in "image"."""
    first, tied = judged[0], [row.model for row in judged if row.candidate and row.model != best.model]
    if best.model != first.model:
        return [f"{first.model} ranks first, but the test {unit}s cannot tell the two apart, and {best.model} answers in half the time or less."]
    if tied:
        return [f"Tied with {', '.join(tied)}: the test {unit}s cannot tell them apart."]
    return ["No other model is tied with it: each paired 95 % interval excludes zero."] if any(row.tied is False for row in judged) else []
