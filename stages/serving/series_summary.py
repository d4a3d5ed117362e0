"""What the report page says of one data set of signals, as plain data: verdict, table, charts, warnings.

The detector that is shown in detail is the one that is recommended, as its first seed sees the test steps, at the threshold that held-out normal steps
gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages import io
from stages.datasets.segments import open_segments, regions_in, variables_of
from stages.metrics.series_result import read_predictions
from stages.metrics.series_tables import step_kinds
from stages.params import Params
from stages.plots import series_charts
from stages.serving.leaderboard import Row, cell, columns
from stages.serving.verdict import recommended, why

COLOURED = 5  # curves that have a colour of their own
CONTROLS = ("random", "max-z")
AROUND = 150  # steps shown before and after an event


def section(params: Params, name: str, rows: list[Row], result: Mapping[str, Any]) -> dict[str, Any]:
    """name: of the table. rows: of the leaderboard, ranked. result: by model, the contents of its metrics JSON."""
    dataset, shown, best = rows[0].dataset, columns(rows), recommended(rows)
    recordings = io.read_json(Path("data", dataset, "recordings.json"))
    judged = [row for row in rows if row.refused is None]
    drawn = _comparison(judged, result) | (_detail(params, dataset, best, judged, result) if best else {})
    return {
        "task": "series",
        "unit": "step",
        "name": name,
        "rows": rows,
        "columns": shown,
        "recommended": best.model if best else None,
        "verdict": _verdict(best, judged, result),
        "note": "PA-F1 marks a whole event as found for one step in it: luck reaches what `random` has, so nothing is ranked by it.",
        "seeds": {row.model: result[row.model].get("seeds", []) for row in rows},
        "charts": drawn,
        "categories": list(result[best.model]["categories"]) if best else [],
        "curves": {},
        "detail": [],
        "data": _data(dataset, recordings),
        "warnings": _warnings(recordings),
    }


def _verdict(best: Row | None, judged: Sequence[Row], result: Mapping[str, Any]) -> dict[str, Any]:
    if best is None:
        return {"headline": "No detector could be judged; the table says why.", "why": [], "tiles": []}
    said = [f"Its mean VUS-PR is {cell(best.metrics['vus_pr'])}.", *why(best, judged, "step")]
    if chance := next((row for row in judged if row.model == "random"), None):
        said.append(f"Chance is {cell(chance.metrics['vus_pr'])}.")
    missed = best.metrics["missed_event_rate"]["value"]
    tiles = [] if missed is None else [(f"{100 * (1 - missed):.0f} %", "of events found")]
    for metric, text in (("false_alarms_per_10k", "false alarms per 10,000 normal steps"), ("delay", "steps to the first alarm, median")):
        if (value := best.metrics[metric]["value"]) is not None:
            tiles.append((f"{value:.0f}" if value >= 10 else f"{value:.1f}", text))
    if best.latency_ms is not None:
        tiles.append((f"{best.latency_ms:.1f} ms", "a step of a stream"))
    return {"headline": f"Take {best.model}", "why": said, "tiles": tiles}


def _comparison(judged: Sequence[Row], result: Mapping[str, Any]) -> dict[str, Any]:
    """Every detector on every category, and on every kind of anomaly."""
    cells = [
        {"model": row.model, "category": category, **metrics["vus_pr"], "control": row.model in CONTROLS}
        for row in judged
        for category, metrics in result[row.model]["categories"].items()
    ]
    if not cells:
        return {}
    known = [{"low": None, "high": None} | one for one in cells]
    drawn = {"quality": series_charts.intervals(known, "VUS-PR", list(dict.fromkeys(one["category"] for one in cells)))}
    drawn |= _parts(result)
    found = [{"model": row.model, **one} for row in judged for one in _found_by_kind(row)]
    return drawn | ({"kinds": series_charts.by_kind(found, [row.model for row in judged])} if len({one["kind"] for one in found}) > 1 else {})


def _parts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of the first detector that has parts, what each is worth alone."""
    parts = next((one["parts"] for one in result.values() if "parts" in one), {})
    rows = [
        {"category": category, "part": part, "value": values["vus_pr"], "low": None, "high": None}
        for category, of in parts.items()
        for part, values in of.items()
    ]
    return {"parts": series_charts.parts(rows, "VUS-PR", list(parts))} if rows else {}


def _found_by_kind(row: Row) -> list[dict[str, Any]]:
    """Share of each kind's events that raised an alarm, over all categories."""
    path = row.folder / "kinds.json"
    tables = [of["types"] for of in io.read_json(path).values()] if path.is_file() else []
    found = []
    for kind in dict.fromkeys(kind for table in tables for kind in table):
        own = [(table[kind]["events"], table[kind]["event_recall"]["value"]) for table in tables if kind in table]
        known = [(events, recall) for events, recall in own if recall is not None]
        events = sum(events for events, _ in known)
        recall = sum(events * recall for events, recall in known) / events if events else None
        found.append({"kind": kind, "recall": recall, "events": events})
    return found


def _detail(params: Params, dataset: str, best: Row, judged: Sequence[Row], result: Mapping[str, Any]) -> dict[str, Any]:
    """By category: the recommended detector over time, its scores by kind of step, two telling events; the curves of all."""
    thresholds, drawn = io.read_json(best.folder / "thresholds.json"), {}
    seen = {row.model: read_predictions(row.folder, "test", result[row.model]["seeds"][0]) for row in judged}
    for category, own in seen[best.model].items():
        segments = open_segments(dataset, category, "test")
        regions = [(region.start, region.stop, region.kind) for region in regions_in(dataset, category, segments)]
        deployed = next(iter(thresholds[category].values()))[0]["value"]
        drawn[f"timeline:{category}"] = series_charts.timeline(own["score"], regions, deployed)
        anomalous, lengths = own["label"] == 1, [segment.steps for segment in segments]
        kinds = step_kinds(anomalous, params.signals.protocol.disturbed_steps, lengths)
        scores = {name: own["score"][steps] for name, steps in zip(series_charts.KINDS, kinds, strict=True)}
        drawn[f"histogram:{category}"] = series_charts.histogram(scores, deployed)
        drawn |= _curves(category, {model: of[category] for model, of in seen.items() if category in of}, float(anomalous.mean()))
        if deployed is not None:
            values = np.concatenate([segment.values for segment in segments])
            drawn |= _events(category, best, values, own["score"], regions, deployed, variables_of(dataset, category))
    return drawn


def _curves(category: str, seen: Mapping[str, Mapping[str, np.ndarray]], share: float) -> dict[str, Any]:
    named = list(seen)[:COLOURED]
    shown = {model: one for model, one in seen.items() if model in (*named, *CONTROLS)}
    points = [{"model": model, **point} for model, one in shown.items() for point in series_charts.curve_points(one["score"], one["label"])]
    return {f"{curve}:{category}": series_charts.curves(points, named, curve, share) for curve in ("PR", "ROC")} if points else {}


def _events(
    category: str, best: Row, values: np.ndarray, score: np.ndarray, regions: Sequence[Any], threshold: float, variables: Sequence[str]
) -> dict[str, Any]:
    """The clearest event that was found and the one that was missed worst, with the signals around them."""
    path = best.folder / category / "attribution.parquet"
    shares = _columns(path) if path.is_file() else None
    drawn = {}
    for outcome, (start, stop, kind) in series_charts.telling_events(score, regions, threshold).items():
        around = slice(max(0, start - AROUND), min(len(score), stop + AROUND))
        own = shares[around] if shares is not None else None
        chart = series_charts.event(values[around], score[around], own, variables, (start, stop), threshold, around.start)
        drawn[f"{outcome}:{category}"] = chart | {"description": f"{outcome}: {kind.replace('_', ' ')}"}
    return drawn


def _columns(path: Path) -> np.ndarray:
    import pyarrow.parquet

    return np.stack([column.to_numpy() for column in pyarrow.parquet.read_table(path).columns], axis=1)


def _data(dataset: str, recordings: Mapping[str, Any]) -> dict[str, Any]:
    manifest = io.read_json(Path("data", dataset, "manifest.json"))
    steps: dict[str, dict[str, int]] = {}
    for segment in manifest["segments"]:
        own = steps.setdefault(segment["split"], {"steps": 0})
        own["steps"] += segment["stop"] - segment["start"]
    return {"about": recordings["about"], "counts": steps}


def _warnings(recordings: Mapping[str, Any]) -> list[str]:
    return [f"{problem['code']} {problem['path']}: {problem['what']}" for problem in recordings["problems"]]
