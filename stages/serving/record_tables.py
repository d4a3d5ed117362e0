"""The tables over all models of one data set of records that has kinds of fault, as CSV, as Markdown and for the page, and the sentences that they allow.

main: every model beside what the setting alone can tell. missing: every subset of the modalities. faults: each kind of fault against normal records.
classes: F1 of each class. Two models are compared on the test records that both have been judged on, resampled by group in the same draws.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages import io
from stages.metrics import tables
from stages.metrics.bootstrap import Interval, paired_draws
from stages.metrics.counts import auroc_of_counts
from stages.metrics.inputs import Undefined
from stages.serving.leaderboard import Row, cell

DEEP, MID, SETPOINT = "cross-attention", "mid-fusion", "setpoint-only"  # D, C2 and C3: what the comparison is about, and what it stands beside
LETTERS = {  # of the rows of the comparison, in the order of the tables, those of `assay weld study` too
    "majority": "control",
    "random": "control",
    "chance": "control",
    "duration-only": "control",
    "session-only": "control",
    SETPOINT: "C3",
    "paper-baseline": "A",
    "video-only": "B",
    "image-only": "B",
    "audio-only": "B",
    "sensor-only": "B",
    "late-fusion": "C1",
    MID: "C2",
    "gated-fusion": "C4",
    DEEP: "D",
    "perceiver-moe": "E",
    "process-to-result": "F",
}
MAIN = {
    "roc_auc": "ROC AUC",
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "knn_macro_f1": "macro F1 of 5 neighbours",
    "fnr_at_fpr_01": "missed at 1 %",
    "fnr_at_fpr_05": "missed at 5 %",
    "fnr_at_fpr_10": "missed at 10 %",
    "ap_at_05": "AP at 5 %",
    "ap_at_20": "AP at 20 %",
    "ece": "ECE",
    "aurc": "AURC",
}
COSTS = {"latency_ms_p50": "ms", "parameters": "parameters"}
SETTING = ["setpoint"]  # the modalities of the control that sees the setting alone
TELLS = 0.6  # an ROC AUC of that control from which on, its interval being above one half, the setting is said to tell the fault
RESAMPLES = 2000


class Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]  # for people; the CSV has full precision
    note: str
    csv: str
    left: int = 1  # columns that are names


class Seen(NamedTuple):
    """The test records as the seeds of one model see them."""

    record_id: list[str]
    label: np.ndarray  # (N,)
    group: np.ndarray  # (N,)
    score: np.ndarray  # (S, N)


class Difference(NamedTuple):
    """ROC AUC of one model less that of another."""

    first: str
    second: str
    interval: Interval
    records: int

    @property
    def text(self) -> str:
        value, low, high = (f"{number:+.3f}".replace("0.", ".", 1) for number in self.interval)
        return f"{value} [{low}, {high}]"


class Comparison(NamedTuple):
    tables: dict[str, Table]
    said: list[str]


def has_classes(result: Mapping[str, Any]) -> bool:
    """result: by model, the contents of its metrics JSON."""
    return any("classes" in one for one in result.values())


def compared(rows: Sequence[Row], result: Mapping[str, Any]) -> Comparison:
    """rows: of the leaderboard, ranked. result: as of `has_classes`."""
    judged = sorted((row for row in rows if row.refused is None), key=lambda row: (_place(row.model), row.rank or 0))
    seen = {row.model: _seen(row.folder) for row in judged}
    setting = next((row.model for row in judged if result[row.model]["modalities"] == SETTING), None)
    over = {row.model: difference(row.model, setting, seen) for row in judged if setting and row.model != setting}
    said = [_deep(seen, judged, result), _setting(setting, judged, over), _guess(result)]
    found = {"main": _main(judged, setting, over), "missing": _missing(judged), "faults": _faults(judged), "classes": _classes(judged)}
    return Comparison({name: table for name, table in found.items() if table.rows}, [text for text in said if text])


def files(dataset: str, found: Comparison) -> dict[str, str]:
    """File name -> text."""
    texts = {f"{dataset}-{name}.csv": table.csv for name, table in found.tables.items()}
    return texts | {f"{dataset}-{name}.md": markdown(table, found.said if name == "main" else ()) for name, table in found.tables.items()}


def markdown(table: Table, said: Sequence[str] = ()) -> str:
    """said: sentences that follow the note."""
    lines = [table.header, ["---"] * table.left + ["---:"] * (len(table.header) - table.left), *table.rows]
    text = " ".join(filter(None, (table.note, *said)))
    note = f"\n{text}\n" if text else ""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n{note}"


def difference(first: str, second: str, seen: Mapping[str, Seen | None]) -> Difference | None:
    """None where one of them is not there, or where the records that both have been judged on are of one label."""
    one, other = seen.get(first), seen.get(second)
    if one is None or other is None:
        return None
    where = {name: place for place, name in enumerate(other.record_id)}
    mine = [place for place, name in enumerate(one.record_id) if name in where]
    theirs = [where[one.record_id[place]] for place in mine]
    try:
        drawn = paired_draws(one.score[:, mine], other.score[:, theirs], one.label[mine], one.group[mine], auroc_of_counts, RESAMPLES)
    except Undefined:
        return None
    return Difference(first, second, drawn.interval, len(mine))


def _seen(folder: Path) -> Seen | None:
    path = folder / "predictions.parquet"
    rows = [row for row in io.read_table(path) if row["split"] == "test"] if path.is_file() else []
    if not rows:
        return None
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    score = np.array([row["score"] for row in rows]).reshape(-1, len(first))
    columns = ([row[name] for row in first] for name in ("record_id", "label", "group"))
    record_id, label, group = columns
    return Seen(record_id, np.array(label), np.array(group), score)


def _deep(seen: Mapping[str, Seen | None], judged: Sequence[Row], result: Mapping[str, Any]) -> str:
    """What attention between the modalities is worth, over joining their means and over the best of one modality."""
    single = [row for row in judged if row.kind != "control" and len(result[row.model]["modalities"]) == 1 and row.metrics["roc_auc"]["value"]]
    best = max(single, key=lambda row: row.metrics["roc_auc"]["value"]).model if single else None
    found = [one for one in (difference(DEEP, other, seen) for other in (MID, best) if other and other != DEEP) if one]
    if not found:
        return ""
    chosen = {best: " (the best of one modality on these very records, which favours it)"}
    parts = [f"{one.text} over {one.second}{chosen.get(one.second, '')}, {_verdict(one.interval)}" for one in found]
    return f"ROC AUC of {DEEP} on the same {found[0].records} test records: {'; '.join(parts)}."


def _verdict(interval: Interval) -> str:
    if interval.holds_zero:
        return "which these records cannot tell from no difference"
    return "which is better" if interval.value > 0 else "which is worse"


def _setting(setting: str | None, judged: Sequence[Row], over: Mapping[str, Difference | None]) -> str:
    control = next((row.metrics["roc_auc"] for row in judged if row.model == setting), None)
    if control is None or control["value"] is None:
        return ""
    if control["value"] < TELLS or control["low"] <= 0.5:
        return f"The setting tells little of the fault: {setting}, which sees nothing of the process, has an ROC AUC of {cell(control)}."
    looking = [(row.model, over[row.model]) for row in judged if row.kind != "control" and over.get(row.model)]
    if not looking:
        return f"The setting tells the fault: {setting}, which sees nothing of the process, has an ROC AUC of {cell(control)}, and no model stands beside it."
    above = [name for name, one in looking if one and one.interval.low > 0]
    shown = f"above it {'are' if len(above) > 1 else 'is'} {', '.join(above)} alone" if above else "no model is above it"
    return (
        f"The setting tells the fault: {setting}, which sees nothing of the process, has an ROC AUC of {cell(control)}. A model that is not above it has not "
        f"shown that looking at the process helps; by the paired 95 % intervals {'all models are above it' if len(above) == len(looking) else shown}."
    )


def _guess(result: Mapping[str, Any]) -> str:
    guess = next((one["guess"] for one in result.values() if "guess" in one), None)
    if guess is None:
        return ""
    return (
        f"{100 * guess['anomalous']:.0f} % of the test records are anomalous: calling every one so has an average precision of {guess['pr_auc']:.3f} and an F1 "
        f"of {guess['f1']:.3f}, and calling all of them {guess['class'].replace('_', ' ')} an accuracy of {guess['accuracy']:.3f}."
    )


def _main(judged: Sequence[Row], setting: str | None, over: Mapping[str, Difference | None]) -> Table:
    metrics = {name: title for name, title in MAIN.items() if any(row.metrics.get(name, {}).get("value") is not None for row in judged)}
    header = ["row", "model", *metrics.values(), *([f"over {setting}"] if setting else []), "ms"]
    shown, stored = [], []
    for row in judged:
        found = over.get(row.model)
        beside = [found.text if found else ""] if setting else []
        speed = f"{row.latency_ms:.1f}" if row.latency_ms is not None else ""
        name = row.model + (f" ({row.label})" if row.label else "")
        shown.append([LETTERS.get(row.model, ""), name, *(cell(row.metrics.get(metric)) for metric in metrics), *beside, speed])
        stored.append(_stored(row, metrics, found))
    note = "Value [95 % interval over groups of records and seeds]."
    return Table("All models beside the setting alone", header, shown, note, tables.rows_csv(stored, list(stored[0]) if stored else []), 2)


def _stored(row: Row, metrics: Mapping[str, str], over: Difference | None) -> dict[str, Any]:
    cells = {name: row.metrics.get(name, {}) for name in metrics}
    figures = {f"{name}{end}": one.get(key) for name, one in cells.items() for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))}
    interval = over.interval._asdict() if over else dict.fromkeys(Interval._fields)
    beside = {"over_setting": interval["value"], "over_setting_low": interval["low"], "over_setting_high": interval["high"]}
    costs = {name: row.cost.get(name) for name in COSTS}
    return {"row": LETTERS.get(row.model, ""), "model": row.model, "label": row.label, "kind": row.kind} | figures | beside | costs


def _missing(judged: Sequence[Row]) -> Table:
    found = {row.model: {one["modalities"]: one for one in read_csv(row.folder / "subsets.csv")} for row in judged if row.kind != "control"}
    every = {name: one for rows in found.values() for name, one in rows.items()}
    order = sorted(every, key=lambda name: (float(every[name]["count"] or 0), name))
    cells = {(name, model): rows.get(name) for model, rows in found.items() for name in order}
    return _wide("What is left when modalities are missing, ROC AUC", "modalities", order, list(found), cells, "roc_auc", ())


def _faults(judged: Sequence[Row]) -> Table:
    found = {row.model: {one["fault"]: one for one in read_csv(row.folder / "faults.csv")} for row in judged}
    order = sorted({name for rows in found.values() for name in rows})
    cells = {(name, model): rows.get(name) for model, rows in found.items() for name in order}
    return _wide("Each kind of fault against all normal records, ROC AUC", "fault", order, list(found), cells, "roc_auc", ("records",))


def _classes(judged: Sequence[Row]) -> Table:
    read = {row.model: {one["class"]: one for one in read_csv(row.folder / "classes.csv")} for row in judged}
    found = {model: rows for model, rows in read.items() if rows}
    order = list(dict.fromkeys(name for rows in found.values() for name in rows))
    cells = {(name, model): rows.get(name) for model, rows in found.items() for name in order}
    return _wide("Each class, F1", "class", order, list(found), cells, "f1", ("records",))


def _wide(
    title: str,
    first: str,
    order: Sequence[str],
    models: Sequence[str],
    cells: Mapping[tuple[str, str], dict[str, Any] | None],
    figure: str,
    about: Sequence[str],
) -> Table:
    """A line for each of `order`, a column for each model. about: columns of the cells that all models share."""
    shown, stored = [], []
    for name in order:
        own = [cells[name, model] for model in models]
        shared = {key: next((int(one[key]) for one in own if one), None) for key in about}
        shown.append([name.replace("_", " "), *(str(value) for value in shared.values()), *(_text(one, figure) for one in own)])
        line: dict[str, Any] = {first: name} | shared
        for model, one in zip(models, own, strict=True):
            line |= {model: one and one[figure], f"{model}_low": one and one["low"], f"{model}_high": one and one["high"]}
        stored.append(line)
    return Table(title, [first, *about, *models], shown, "Value [95 % interval].", tables.rows_csv(stored, list(stored[0]) if stored else []))


def _text(one: Mapping[str, Any] | None, figure: str) -> str:
    return cell({"value": one[figure], "low": one["low"], "high": one["high"]}) if one else ""


def read_csv(path: Path) -> list[dict[str, Any]]:
    """A table as evaluate wrote it: numbers are numbers, empty cells None, none where it is not there."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(name: str, text: str) -> Any:
    if name in ("fault", "modalities", "class", "training"):
        return text
    return float(text) if text else None


def _place(model: str) -> int:
    names = list(LETTERS)
    return names.index(model) if model in names else len(names)
