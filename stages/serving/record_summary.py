"""What the report page says of one data set of records, as plain data: verdict, table, charts, the worst cases with what each modality said.

The model that is shown in detail is the one that is recommended, and where records have kinds of fault and it tells none, the mistakes are those of
the model that tells them best; as its first seed sees the test records, at the threshold that held-out normal records
gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages import io
from stages.datasets.images import UnreadableImage, read_image
from stages.datasets.samples import root_of
from stages.params import Params
from stages.plots import page, record_charts
from stages.serving.class_summary import class_section
from stages.serving.class_verdict import first_told
from stages.serving.leaderboard import Row, cell, columns
from stages.serving.record_tables import DEEP, MID, has_classes, read_csv
from stages.serving.record_thresholds import first_threshold
from stages.serving.record_timeline import pictures, timeline
from stages.serving.verdict import recommended, why

COMPARED = (DEEP, MID, "perceiver-moe", "no-modality-dropout", "concat-mlp")  # in the curve of missing modalities, beside the best, where they are there
MOST_COMPARED = 5
CASES, WELDS = 2, 10  # of the worst misses, and as many of the worst false alarms; where there are classes, with a timeline each
PICTURE = 256  # pixels of a side


def section(params: Params, name: str, rows: list[Row], result: Mapping[str, Any]) -> dict[str, Any]:
    """name: of the table. rows: of the leaderboard, ranked. result: by model, the contents of its metrics JSON."""
    dataset, best = rows[0].dataset, recommended(rows)
    about = io.read_json(Path("data", dataset, "dataset.json"))
    judged = [row for row in rows if row.refused is None]
    classes = class_section(dataset, rows, best, result) if has_classes(result) else None
    told = next((row for row in judged if classes and row.model == classes["model"]), None)
    shown = told or best  # whose mistakes are shown: one that tells faults also gives a verdict and a moment
    cases, experts = _cases(dataset, shown, *((WELDS, CASES) if classes else (CASES,))) if shown else [], _experts(judged)
    drawn = _comparison(judged, best, result[best.model]["modalities"] if best else []) | (_detail(best) if best else {})
    if classes:
        drawn |= classes.pop("charts")
        _add_timelines(dataset, shown, cases)
    return {
        "task": "records",
        "unit": "record",
        "name": name,
        "rows": rows,
        "columns": columns(rows),
        "recommended": best.model if best else None,
        "shown": shown.model if shown else None,
        "verdict": _verdict(best, judged),
        "note": _controls(judged, result),
        "seeds": {row.model: result[row.model].get("seeds", []) for row in rows},
        "charts": drawn
        | ({"experts": experts.pop("chart")} if experts else {})
        | {f"case:{place}": case.pop("chart") for place, case in enumerate(cases)},
        "cases": cases,
        "experts": experts,
        "classes": classes,
        "temperature": _temperature(best) if best else None,
        "curves": {},
        "detail": [],
        "data": _data(dataset, about),
        "warnings": [f"{problem['code']} {problem['path']}: {problem['what']}" for problem in about["problems"]],
    }


def _verdict(best: Row | None, judged: Sequence[Row]) -> dict[str, Any]:
    if best is None:
        return {"headline": "No model could be judged; the table says why.", "why": [], "tiles": []}
    said = [f"Its ROC AUC is {cell(best.metrics['roc_auc'])}.", *why(best, [row for row in judged if row.kind != "control"], "record")]
    if presence := next((row for row in judged if row.model == "presence"), None):
        said.append(f"Which modalities are there tells by itself {cell(presence.metrics['roc_auc'])}.")
    control = next((row for row in judged if row.kind == "control" and row.model != "presence"), None)  # rows are ranked
    if control and control.metrics["roc_auc"]["value"] is not None and (control.metrics["roc_auc"].get("low") or 0.0) > 0.5:
        said.append(f"The control {control.model}, which looks at nothing that a record shows, reaches {cell(control.metrics['roc_auc'])}.")
    tiles = []
    for metric, text in (("recall", "of anomalous records found"), ("false_alarm_rate", "of normal records raise an alarm")):
        if (value := best.metrics.get(metric, {}).get("value")) is not None:
            tiles.append((f"{100 * value:.0f} %", text))
    if (value := best.metrics.get("missing_auc", {}).get("value")) is not None:
        tiles.append((f"{value:.3f}".removeprefix("0"), "ROC AUC on average as modalities vanish"))
    if best.latency_ms is not None:
        tiles.append((f"{best.latency_ms:.1f} ms", "a record, from its tokens"))
    return {"headline": f"Take {best.model}", "why": said, "tiles": tiles}


def _controls(judged: Sequence[Row], result: Mapping[str, Any]) -> str:
    """What each control does see, in the words of its result; none of them looks at what a record shows."""
    said = [f"{row.model} {result[row.model]['blind']}" for row in judged if row.kind == "control"]
    return f"Controls know nothing of what a record shows: {'; '.join(said)}." if said else ""


def _comparison(judged: Sequence[Row], best: Row | None, modalities: Sequence[str]) -> dict[str, Any]:
    """All models side by side: interval, modalities missing, faults."""
    known = [{"model": row.model, "kind": row.kind, "low": None, "high": None, **row.metrics["roc_auc"]} for row in judged]
    drawn: dict[str, Any] = {"quality": record_charts.ranking(known)} if any(one["value"] is not None for one in known) else {}
    faults = [{"model": row.model, **one} for row in judged for one in read_csv(row.folder / "faults.csv")]
    if len({one["fault"] for one in faults if one["roc_auc"] is not None}) > 1:
        drawn["faults"] = record_charts.by_fault(faults, [row.model for row in judged])
    wanted = dict.fromkeys([best.model, *COMPARED] if best else COMPARED)
    named = {row.model: rows for model in wanted for row in judged if row.model == model and (rows := read_csv(row.folder / "subsets.csv"))}
    named = dict([*named.items()][:MOST_COMPARED])
    points = [{"model": model, "present": one["modalities"].count("+") + 1, **one} for model, rows in named.items() for one in rows]
    if max((one["present"] for one in points), default=0) > 1:
        drawn["missing"] = record_charts.missing(points, list(named))
    if best and len(named.get(best.model, ())) > 1:
        drawn["subsets"] = record_charts.subsets(named[best.model], modalities)
    return drawn


def _detail(best: Row) -> dict[str, Any]:
    """The recommended model by itself: whether its probabilities are right, and what each modality adds."""
    drawn = {}
    if stored := _stored(best, "calibration.json"):
        drawn["reliability"] = record_charts.reliability(_bins(stored["before"]), _bins(stored["after"] or {}))
    if rows := _contributions(best):
        anomalous = np.array([row["label"] == 1 for row in rows])
        drawn["spreads"] = record_charts.spreads(
            {name: np.array([row[name] for row in rows], dtype=float) for name in _modalities(rows)}, anomalous
        )
    return drawn


def _cases(dataset: str, best: Row, most: int, unsure: int = 0) -> list[dict[str, Any]]:
    """The worst misses, at most so many, as many of the worst false alarms, and `unsure` of the faults that were found, nearest to the threshold; each with
    what each modality added and a picture where there is one.
    """
    rows, threshold = _contributions(best), first_threshold(best.folder).value
    if threshold is None or not rows:
        return []
    media = {row["record_id"]: row for row in io.read_table(Path("data", dataset, "samples.parquet"))}
    root, names = root_of(Path("data", dataset, "dataset.json")), _modalities(rows)
    missed = sorted((row for row in rows if row["label"] == 1 and row["score"] <= threshold), key=lambda row: row["score"])[:most]
    alarms = sorted((row for row in rows if row["label"] == 0 and row["score"] > threshold), key=lambda row: -row["score"])[:most]
    found = sorted((row for row in rows if row["label"] == 1 and row["score"] > threshold), key=lambda row: row["score"])[:unsure]
    cases, outcomes = [], {"missed": missed, "false alarm": alarms, "found, but barely": found}
    for outcome, row in ((outcome, row) for outcome, own in outcomes.items() for row in own):
        own = media[row["record_id"]]
        added = {name: None if own.get(f"{name}_path", "") is None else row[name] for name in names}
        cases.append({
            "record_id": row["record_id"],
            "outcome": outcome,
            "fault": (own["fault"] or "").replace("_", " "),
            "margin": row["score"] - threshold,
            "sum": sum(value or 0.0 for value in added.values()),
            "picture": _picture(root, own.get("image_path")),
            "chart": record_charts.contribution(added),
            "timeline": None,
            "told": None,
        })  # fmt: skip
    return cases


def _picture(root: Path, path: str | None) -> str | None:
    """A small JPEG as a data URI; None where the record has no picture, or one that cannot be read now."""
    if not path:
        return None
    try:
        return page.thumbnail(read_image(pictures(root / path)[0]), PICTURE)
    except (UnreadableImage, OSError, IndexError):
        return None


def _add_timelines(dataset: str, best: Row | None, cases: list[dict[str, Any]]) -> None:
    """What was told of each case, its verdict, and its media on one clock."""
    if best is None or not cases:
        return
    root = root_of(Path("data", dataset, "dataset.json"))
    media = {row["record_id"]: row for row in io.read_table(Path("data", dataset, "samples.parquet"))}
    spans = {row["record_id"]: row for row in _rows(best, "spans.parquet")}
    told = first_told(best.folder)
    for case in cases:
        name = case["record_id"]
        case["timeline"] = timeline(root, media[name], spans.get(name))
        case["told"] = told.get(name)


def _experts(judged: Sequence[Row]) -> dict[str, Any]:
    """Of the first model that has experts: its name, the chart of their use, and a sentence on what their choice has to do with what a record is."""
    found = ((row, (_stored(row, "experts.json") or {}).get("layers")) for row in judged)
    row, layers = next(((row, layers) for row, layers in found if layers), (None, []))
    if row is None:
        return {}
    names = list(layers[0]["information"]["present"])
    told = {name: np.mean([layer["information"]["present"][name] for layer in layers]) for name in names}
    most = max(names, key=lambda name: told[name])
    even, known = (np.mean([one["entropy"] for one in layers]), np.mean([one["information"]["class"] for one in layers]))
    text = (
        f"How often each expert is a latent's first choice. Evenness (entropy over its highest) is {even:.2f}. The choice tells {known:.3f} nats of the"
        f" label, and of no modality's presence more than the {told[most]:.3f} nats of {most}."
    )
    return {"model": row.model, "said": text, "chart": record_charts.experts([layer["first_choice"] for layer in layers])}


def _temperature(best: Row) -> float | None:
    return (_stored(best, "calibration.json") or {}).get("temperature")


def _bins(stored: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of calibration.json as rows; none where no temperature could be fitted."""
    names = ("predicted", "observed", "records")
    return [
        dict(zip(names, one, strict=True))
        for one in zip(*(stored.get(name, ()) for name in ("predicted", "observed", "count")), strict=True)
    ]


def _stored(row: Row, name: str) -> dict[str, Any] | None:
    path = row.folder / name
    return io.read_json(path) if path.is_file() else None


def _contributions(row: Row) -> list[dict[str, Any]]:
    return _rows(row, "contributions.parquet")


def _rows(row: Row, name: str) -> list[dict[str, Any]]:
    path = row.folder / name
    return io.read_table(path) if path.is_file() else []


def _modalities(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in rows[0] if name not in ("record_id", "label", "score", "seed")]


def _data(dataset: str, about: Mapping[str, Any]) -> dict[str, Any]:
    samples = io.read_json(Path("data", dataset, "manifest.json"))["samples"]
    names, counts = {0: "normal", 1: "anomalous"}, {}
    for sample in samples:
        split = counts.setdefault(sample["split"], {})
        kind = names.get(sample["label"], "unlabelled")
        split[kind] = split.get(kind, 0) + 1
    said = {key: value for key, value in about["about"].items() if isinstance(value, str | int | float)}
    stored = about["about"].get("modalities")  # of files of tokens, by name their widths
    return {"about": {"modalities": ", ".join(stored or about["modalities"])} | said, "counts": counts}
