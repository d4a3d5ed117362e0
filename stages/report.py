"""The leaderboard and the pictures behind it on one page.

Reads every metrics/<dataset>, writes metrics/report/index.html: one file, no request, works from a disk.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stages import errors, io
from stages.params import Params, load
from stages.serving.leaderboard import COLUMNS, Row, cell, leaderboard, results

METRICS = Path("metrics")


def main() -> int:
    from stages.plots import page

    params = load()
    datasets = [_section(params, dataset, rows) for dataset, rows in leaderboard(params).items()]
    io.write_text(METRICS / "report" / "index.html", page.render(params.report.title, datasets, cell))
    print(f"report: {METRICS / 'report' / 'index.html'}")
    return errors.OK


def _section(params: Params, dataset: str, rows: list[Row]) -> dict[str, Any]:
    manifest = io.read_json(Path("data", dataset, "manifest.json"))
    shown = {name: title for name, title in COLUMNS.items() if any(row.metrics.get(name, {}).get("value") is not None for row in rows)}
    missing = {name: row.metrics[name]["reason"] for row in rows for name in COLUMNS if name not in shown and name in row.metrics}
    best = next((row for row in rows if row.refused is None), None)
    categories = sorted({sample["category"] for sample in manifest["samples"]})
    return {
        "name": dataset,
        "rows": rows,
        "columns": shown,
        "categories": len(categories),
        "verdict": _verdict(best, rows),
        "note": "; ".join(f"{COLUMNS[name]} n/a: {reason}" for name, reason in missing.items()),
        "warnings": _warnings(dataset, manifest),
        "shifts": [shift for result in results(params) if result["dataset"] == dataset for shift in _shifts(result)],
        "best": [_category(params, dataset, best.model, category) for category in categories] if best else [],
    }


def _shifts(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per model and shifted test split: the plain mean over categories of what is left there."""
    by_category = list(result.get("shift", {}).values())
    splits = sorted({split for shifts in by_category for split in shifts})
    return [{"model": result["model"], "split": split, **_means([shifts[split] for shifts in by_category if split in shifts])} for split in splits]


def _means(cells: list[dict[str, Any]]) -> dict[str, str]:
    found = {}
    for name in cells[0]:
        values = [one[name]["value"] for one in cells if one[name]["value"] is not None]
        found[name] = f"{sum(values) / len(values):.3f}" if values else "n/a"
    return found


def _verdict(best: Row | None, rows: list[Row]) -> str:
    if best is None:
        return "No model could be fitted; the table says why."
    trivial = [row for row in rows if row.model in ("mean-image", "brightness", "local-contrast", "random-score") and row.rank]
    floor = f" The strongest trivial row, {trivial[0].model}, reaches {cell(trivial[0].metrics['image_auroc'])}." if trivial else ""
    return f"{best.model} ranks first with a mean image AUROC of {cell(best.metrics['image_auroc'])}.{floor}"


def _warnings(dataset: str, manifest: dict[str, Any]) -> list[str]:
    about = io.read_json(Path("data", dataset, "dataset.json"))
    found = (
        [f"{len(manifest['leaks'])} training images were removed because they also stand in the test split"]
        if manifest.get("leaks")
        else []
    )
    if about.get("quarantined"):
        found.append(f"{len(about['quarantined'])} unreadable images were set aside")
    return found + [f"{problem['code']} {problem['path']}: {problem['what']}" for problem in about.get("problems", [])]


def _category(params: Params, dataset: str, model: str, category: str) -> dict[str, Any]:
    """Histogram, threshold and worst cases of the best model on one category."""
    from stages.plots import page

    folder = _folder(params, dataset, model)
    pictures = io.read_json(folder / category / "overlays" / "index.json")
    worst = [picture for picture in pictures if picture["kind"] in ("miss", "false-alarm")][: params.report.worst_cases]
    threshold = io.read_json(folder / "thresholds.json")[category]["thresholds"]["conformal"]
    return {
        "category": category,
        "model": model,
        "threshold": _promise(threshold),
        "histogram": page.embedded((folder / category / "histogram_scores.png").read_bytes()),
        "pictures": [
            {
                "png": page.embedded((folder / category / "overlays" / picture["file"]).read_bytes()),
                "caption": f"{picture['kind']}: {picture['sample_id']}",
            }
            for picture in worst
        ],
    }


def _folder(params: Params, dataset: str, model: str) -> Path:
    run = next(run for run in params.runs.values() if run.dataset == dataset and model in params.rows(run.model))
    return METRICS.joinpath(dataset, run.model, *([model] if model != run.model else []))


def _promise(threshold: dict[str, Any]) -> str:
    from stages.metrics.thresholds import Threshold
    from stages.metrics.thresholds_text import promise_text

    if threshold["value"] is None:
        return f"No threshold: {threshold['reason']}"
    note = f" {threshold['note']}." if threshold["note"] else ""
    return f"Threshold {threshold['value']:.4g} from {threshold['achieved']['n_normal']} held-out good images: {promise_text(Threshold(**threshold))}.{note}"


if __name__ == "__main__":
    sys.exit(errors.guarded(main))
