"""Turn raw signals into recordings, checked.

Reads the source of one data set through its adapter, writes data/<dataset>/recordings/<category>/<name>.parquet and data/<dataset>/recordings.json. One
recording is held at a time, so that memory is bounded by the longest.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages import io, params
from stages.datasets import signal_adapters
from stages.datasets.recordings import Recording, Region, runs_of
from stages.datasets.samples import DataError
from stages.datasets.segments import recording_path, write_recording
from stages.datasets.signal_checks import Checked, check
from stages.errors import OK, guarded


def main(dataset: str) -> int:
    folder = Path("data", dataset)
    entry = params.load().signals.entry("datasets", dataset)
    found = signal_adapters.read(entry.adapter, Path(entry.source), entry.options, at=("series", "datasets", dataset))
    rows: list[dict[str, Any]] = []
    problems = []
    for recording in _of_categories(found, entry.categories, dataset):
        checked = check(recording)
        row = _row(checked)
        _agree(row, rows)
        write_recording(folder / row["path"], checked.recording)
        rows.append(row)
        problems += [*row["about"].pop("problems", ()), *checked.problems]
    if not rows:
        raise DataError(f"E319 {entry.source} gives no recording. Check `source` of series.datasets.{dataset} in params.yaml")
    for problem in problems:
        print(f"{problem.severity} {problem.code}: {problem.path}: {problem.what}. {problem.fix}", file=sys.stderr)
    content = {"dataset": dataset, "adapter": entry.adapter, "about": _shared(rows), "recordings": rows}
    io.write_json(folder / "recordings.json", content | {"problems": [problem._asdict() for problem in problems]})
    return OK


def _of_categories(found: Iterator[Recording], wanted: list[str] | None, dataset: str) -> Iterator[Recording]:
    """The recordings of these categories only; one that does not come is an error."""
    seen = set()
    for recording in found:
        seen.add(recording.category)
        if wanted is None or recording.category in wanted:
            yield recording
    for category in wanted or ():
        if category not in seen:
            raise params.ParamsError(f"series.datasets.{dataset}.categories: no category {category!r}{params.nearest(category, seen)}")


def _agree(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Raises DataError where two recordings have one name, or those of a category differ in their variables."""
    for other in rows:
        if row["recording_id"].lower() == other["recording_id"].lower():  # file systems may not tell them apart
            raise DataError(
                f"E319 two recordings are called {row['recording_id']}. Rename a file, so that names differ without their endings"
            )
        if row["category"] == other["category"] and row["variables"] != other["variables"]:
            raise DataError(
                f"E317 {row['recording_id']} has the variables {', '.join(row['variables'])}, but {other['recording_id']} "
                f"{', '.join(other['variables'])}. Give both the same columns in the same order, or put them into different categories"
            )


def _row(checked: Checked) -> dict[str, Any]:
    recording = checked.recording
    recording_id = f"{recording.category}/{recording.name}"
    return {
        "recording_id": recording_id,
        "category": recording.category,
        "path": recording_path(recording_id),
        "steps": len(recording.values),
        "variables": list(recording.variables),
        "median_step_s": checked.median_step_s,
        "breaks": checked.breaks,
        "missing": checked.missing,
        "constant": checked.constant,
        "train_steps": recording.train_steps,
        "labelled": recording.label is not None,
        "regions": [region._asdict() for region in _regions(recording)],
        "content_hash": hashlib.sha256(recording.values.tobytes()).hexdigest(),
        "about": dict(recording.about),
    }


def _regions(recording: Recording) -> tuple[Region, ...]:
    """What is known of the anomalies: from the adapter, or the runs of the label."""
    if recording.regions or recording.label is None:
        return recording.regions
    return tuple(Region(start, stop, "anomaly") for start, stop in runs_of(recording.label))


def _shared(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What all recordings say about themselves; it is taken out of their rows."""
    first = dict(rows[0]["about"])
    shared = {key: value for key, value in first.items() if all(row["about"].get(key) == value for row in rows)}
    for row in rows:
        row["about"] = {key: value for key, value in row["about"].items() if key not in shared}
    return shared


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
