"""What the report page says of one data set, as plain data: verdict, table, plots, pictures, warnings.

The model that is shown in detail is the one that is recommended. What is told of test images is told at the default threshold, which no test image
has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages import io
from stages.datasets.images import read_image
from stages.metrics.confusion import Confusion, confusion
from stages.metrics.thresholds import Threshold
from stages.metrics.thresholds_text import promise_text
from stages.params import Params
from stages.plots import charts, page
from stages.serving.leaderboard import COLUMNS, Row, cell, columns
from stages.serving.verdict import Scores, recommended, test_scores, why

PICTURES = 24  # on the page, of one data set


def section(params: Params, dataset: str, rows: list[Row], result: Mapping[str, Any]) -> dict[str, Any]:
    """rows: of the leaderboard, ranked. result: by model, the contents of its metrics JSON."""
    manifest = io.read_json(Path("data", dataset, "manifest.json"))
    scores = {row.model: test_scores(row.folder) for row in rows if row.refused is None}
    curves, shown = _curves(rows, scores), columns(rows)
    missing = {name: row.metrics[name]["reason"] for row in rows for name in COLUMNS if name not in shown and name in row.metrics}
    best = recommended(rows)
    detail = _detail(best, scores[best.model]) if best else []
    return {
        "task": "image",
        "unit": "image",
        "name": dataset,
        "rows": rows,
        "columns": shown,
        "recommended": best.model if best else None,
        "errors_together": next((one["errors_together"] for one in result.values() if "errors_together" in one), []),
        "verdict": _verdict(params, best, rows, detail),
        "note": "; ".join([*(f"{COLUMNS[name]} n/a: {reason}" for name, reason in missing.items()), *_learnt_from(result)]),
        "seeds": {row.model: result[row.model].get("seeds", []) for row in rows},
        "charts": _charts(rows, result, curves),
        "curves": curves,
        "detail": detail,
        "pictures": _pictures(params, best, detail) if best else [],
        "shifts": [shift for row in rows for shift in _shifts(row, result[row.model])],
        "data": _data(dataset, manifest),
        "warnings": _warnings(dataset, manifest),
    }


def _verdict(params: Params, best: Row | None, rows: Sequence[Row], detail: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A headline, the reasons, and the figures that matter on a line of production."""
    if best is None:
        return {"headline": "No model could be fitted; the table says why.", "why": [], "tiles": []}
    single = [row for row in rows if not row.members and not row.transductive]
    first, said = single[0], [f"Its mean image AUROC is {cell(best.metrics['image_auroc'])}.", *why(best, single, "image")]
    if ensemble := next((row for row in rows if row.members), None):
        better = ensemble.rank == 1 and first.tied is False
        which = "better than any model alone, at the price of asking all" if better else f"not shown to be better than {first.model} alone"
        said.append(f"The mean of {', '.join(ensemble.members)} reaches {cell(ensemble.metrics['image_auroc'])}: {which}.")
    if floor := next((row for row in rows if row.rank and _is_trivial(params, row.model)), None):
        said.append(f"The strongest trivial baseline, {floor.model}, reaches {cell(floor.metrics['image_auroc'])}.")
    return {"headline": f"Take {best.model}", "why": said, "tiles": _tiles(best, detail)}


def _learnt_from(result: Mapping[str, Any]) -> list[str]:
    """Of models that learn from images beside the user's own, which those were."""
    return [f"{model} learns from {', '.join(one['auxiliary'].values())} as well" for model, one in result.items() if one.get("auxiliary")]


def _is_trivial(params: Params, model: str) -> bool:
    rows = {name: entry for model_entry in params.models for name, entry in params.rows(model_entry).items()}
    return model in rows and rows[model].detector.startswith("trivial.")


def _tiles(best: Row, detail: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    judged = [one["matrix"] for one in detail if one["matrix"]]
    promised = [one["promise"]["false_alarms_per_1000"] for one in detail if one["promise"]]
    tiles = []
    if promised:
        tiles.append((f"{np.mean(promised):.0f}", "false alarms expected per 1,000 good"))
    if judged:
        total = Confusion(*np.sum(judged, axis=0).tolist())
        tiles.append((f"{total.fn} of {total.tp + total.fn}", "bad test images missed"))
        tiles.append((f"{total.fp} of {total.tn + total.fp}", "good test images flagged"))
    if best.latency_ms is not None:
        tiles.append((f"{best.latency_ms:.0f} ms", "an image, decoded to scored"))
    return tiles


def _curves(rows: Sequence[Row], scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, list[dict[str, Any]]]:
    """By category, the points of every model's curves on the test images, from its first seed."""
    categories = dict.fromkeys(category for of_model in scores.values() for category in of_model)
    return {
        category: [
            {"model": row.shown, **point}
            for row in rows
            if category in scores.get(row.model, {})
            for point in charts.curve_points(scores[row.model][category].score[0], scores[row.model][category].label)
        ]
        for category in categories
    }


def _charts(rows: Sequence[Row], result: Mapping[str, Any], curves: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    ranked = [row for row in rows if row.refused is None and row.metrics["image_auroc"]["value"] is not None]
    timed = [
        {"model": row.shown, "latency_ms": row.latency_ms, "auroc": auroc["value"], "low": auroc["low"], "high": auroc["high"]}
        for row, auroc in ((row, row.metrics["image_auroc"]) for row in ranked)
        if row.latency_ms
    ]
    models = [row.shown for row in ranked]
    cells = [
        {"model": row.shown, "category": category, "auroc": metrics["image_auroc"]["value"]}
        for row in ranked
        for category, metrics in result[row.model]["categories"].items()
        if metrics["image_auroc"]["value"] is not None
    ]
    drawn = {}
    if timed:
        drawn["cost"] = charts.cost_against_quality(timed)
    if cells:
        drawn["categories"] = charts.by_category(cells, models)
    drawn |= {f"curves:{category}": charts.curves(points, models) for category, points in curves.items() if points}
    return drawn


def _detail(best: Row, scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """By category, what the threshold explorer needs of the recommended model, from its first seed."""
    thresholds = io.read_json(best.folder / "thresholds.json")
    held_out = [row for row in io.read_table(best.folder / "predictions.parquet") if row["split"] in ("train", "val") and row["label"] == 0]
    seed = min((row["seed"] for row in held_out), default=0)
    return [
        _category(
            category,
            one,
            thresholds[category],
            [row["image_score"] for row in held_out if (row["category"], row["seed"]) == (category, seed)],
        )
        for category, one in scores.items()
    ]


def _category(category: str, scores: Scores, stored: Mapping[str, Any], held_out: list[float]) -> dict[str, Any]:
    default = Threshold(**stored["thresholds"][stored["default"]])
    values = {name: one["value"] for name, one in stored["thresholds"].items() if one["value"] is not None}
    values |= {
        f"{name} (oracle, test-fitted)": one["value"] for name, one in stored["oracle (test-fitted)"].items() if one["value"] is not None
    }
    values = {name: values[name] for name in sorted(values, key=lambda name: name != stored["default"])}
    score, label = scores.score[0], scores.label
    good, bad = score[label == 0].tolist(), score[label == 1].tolist()
    fits = default.value is not None
    return {
        "category": category,
        "good": _rounded(good),
        "bad": _rounded(bad),
        "thresholds": values,
        "default": default.value,
        "note": f"{promise_text(default)}. {default.note or ''}".strip() if fits else f"No threshold: {default.reason}",
        "promise": default.achieved if fits else None,
        "matrix": tuple(confusion(score, label, default.value)) if fits and len(score) else None,
        "suspicious": [one["sample_id"] for one in stored["suspicious_training_images"][:5]],
        "histogram": charts.scores(good, bad, held_out, values) if len(score) else None,
    }


def _rounded(values: Sequence[float]) -> list[float]:
    """Six digits: enough to move a slider over, and a third of the page's weight."""
    return [float(f"{value:.6g}") for value in sorted(values)]


def _pictures(params: Params, best: Row, detail: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The worst misses and false alarms of every category in turn, at most PICTURES in all."""
    by_category = []
    for category in (one["category"] for one in detail):
        folder = best.folder / category / "overlays"
        worst = [picture for picture in io.read_json(folder / "index.json") if picture["kind"] in ("miss", "false-alarm")]
        by_category.append([
            {"picture": page.thumbnail(read_image(folder / one["file"])), "kind": one["kind"], "sample_id": one["sample_id"]}
            for one in worst[: min(params.report.worst_cases, max(2, PICTURES // len(detail)))]
        ])  # fmt: skip
    return [picture for pictures in by_category for picture in pictures][:PICTURES]


def _shifts(row: Row, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per model and shifted test split: the plain mean over categories of what is left there."""
    by_category = list(result.get("shift", {}).values())
    splits = sorted({split for shifts in by_category for split in shifts})
    return [
        {"model": row.shown, "split": split, **_means([shifts[split] for shifts in by_category if split in shifts])}
        for split in splits
    ]


def _means(cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found = {}
    for name in cells[0]:
        values = [one[name]["value"] for one in cells if one[name]["value"] is not None]
        found[name] = f"{sum(values) / len(values):.3f}" if values else "n/a"
    return found


def _data(dataset: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Where the images come from and how many there are of each kind in each split."""
    about = io.read_json(Path("data", dataset, "dataset.json"))
    names, counts = {0: "good", 1: "bad", None: "unknown"}, {}
    for sample in manifest["samples"]:
        split = counts.setdefault(sample["split"], {})
        split[names[sample["label"]]] = split.get(names[sample["label"]], 0) + 1
    return {"about": {key: value for key, value in about["about"].items() if isinstance(value, str | int | float)}, "counts": counts}


def _warnings(dataset: str, manifest: Mapping[str, Any]) -> list[str]:
    about, found = io.read_json(Path("data", dataset, "dataset.json")), []
    if leaks := manifest.get("leaks"):
        found.append(f"{len(leaks)} training images were removed because they also stand in the test split")
    if quarantined := about.get("quarantined"):
        found.append(f"{len(quarantined)} unreadable images were set aside")
    return found + [f"{problem['code']} {problem['path']}: {problem['what']}" for problem in about.get("problems", [])]
