"""Every record looked at once: its id, its label and its files, which are hashed; what is unusable is taken out and named.

Whether a file can be decoded shows when it is encoded; `extract_records` quarantines those that cannot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from stages import io
from stages.datasets.record_adapters import RecordReading, RecordRow
from stages.datasets.records import UNKNOWN
from stages.datasets.samples import DataError, Problem
from stages.progress import Advance

SPLITS = ("train", "val", "test")
MISSING_LIMIT = 0.05  # of all files that a data set names; more than that is no accident
LISTED = 5  # names in one problem
WITHOUT = "Their records go on without that modality"
COMPLAINTS = {  # cause -> code, what, fix
    "not there": ("E420", "files that are not there", WITHOUT),
    "empty": ("E421", "files that are empty", WITHOUT),
    "outside": ("E428", "paths that leave the data folder", "Bring these files into it, and correct the paths"),
    "no file left": ("E422", "records that have no file left and are out", "Bring their files, or drop the rows"),
}


class CheckedRecords(NamedTuple):
    rows: list[RecordRow]  # usable ones by id; `paths` holds the files that are there, `content` a hash of each
    problems: list[Problem]
    files: int  # that the data set names
    lost: int  # of them, those that are not there, empty or outside of its folder


def check(reading: RecordReading, advance: Advance = lambda count: None) -> CheckedRecords:
    """Look at all records of a reading; `advance` is told of each one done. Raises DataError where rows contradict themselves or too much is lost."""
    _refuse_wrong(reading)
    rows, lost = [], defaultdict(list)
    for row in sorted(reading.rows, key=lambda row: row.record_id):
        present = {}
        for modality, path in row.paths.items():
            if cause := _why_not(reading, path, folder=modality in row.content):
                lost[cause].append(path)
            else:
                present[modality] = row.content.get(modality) or io.file_hash(reading.root / path)
        if present:
            paths = {name: row.paths[name] for name in present}
            rows.append(row._replace(paths=paths, content=present, group=row.group or row.record_id))
        else:
            lost["no file left"].append(row.record_id)
        advance(1)
    problems = [*reading.problems, *(_problem(cause, sorted(paths)) for cause, paths in sorted(lost.items()))]
    files, missing = sum(len(row.paths) for row in reading.rows), sum(len(lost[cause]) for cause in ("not there", "empty", "outside"))
    if not rows or missing > MISSING_LIMIT * files:
        told = "; ".join(problem.what for problem in problems) or "it names no record"
        raise DataError(f"E423 {reading.root} lacks {missing} of the {files} files that its records name, at most 5 % may be: {told}. "
                        "Check `source` in params.yaml and the paths in the table")  # fmt: skip
    return CheckedRecords(rows, problems, files, missing)


def _why_not(reading: RecordReading, path: str, folder: bool) -> str | None:
    """folder: whether it may be one, its adapter having looked into it."""
    place = reading.root / path
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        return "outside"
    if folder and place.is_dir():
        return None if any(place.iterdir()) else "empty"
    if not place.is_file():
        return "not there"
    return None if place.stat().st_size else "empty"


def _problem(cause: str, names: Sequence[str]) -> Problem:
    listed = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    code, what, fix = COMPLAINTS[cause]
    return Problem(code, "warning", names[0], f"{what}: {len(names)} ({listed})", fix)


def _refuse_wrong(reading: RecordReading) -> None:
    seen: dict[str, str] = {}
    for row in reading.rows:
        if not row.record_id:
            raise DataError(
                f"E424 a record of {reading.root} has no id ({', '.join(row.paths.values()) or 'and no file'}). Fill in record_id"
            )
        if (name := row.record_id.lower()) in seen:  # file systems may not tell them apart
            raise DataError(f"E424 two records are called {seen[name]} and {row.record_id}; ids must differ by more than case. Rename one")
        seen[name] = row.record_id
        if row.label not in (0, 1, UNKNOWN):
            raise DataError(
                f"E424 {row.record_id} has the label {row.label!r}, expected 0 (normal), 1 (anomalous) or {UNKNOWN} (unknown). Correct it"
            )
        if row.split not in (None, *SPLITS):
            raise DataError(f"E424 {row.record_id} has the split {row.split!r}, expected {', '.join(SPLITS)} or none. Correct it")
        if unknown := sorted(set(row.paths) - set(reading.modalities)):
            raise DataError(
                f"E424 {row.record_id} has {', '.join(unknown)}, which is none of the modalities {', '.join(reading.modalities)}"
            )
