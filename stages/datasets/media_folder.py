"""The user's own raw media: a CSV with a row a record, or a folder for each record whose files are told apart by their endings.

    <file>.csv                              record_id, and a column of paths for each modality: image, video, audio, series, text, or any <name>_path;
                                            label, fault, group and split if known. Paths are relative to the CSV's folder and stay inside it
    <folder>/<record>/<files>               one file for each modality; nothing is known of the label
    <folder>/<kind>/<record>/<files>        where one kind is called good, ok or normal: that one is normal, the others are faults of their name
    <folder>/<train|val|test>/<kind>/...    where the user fixes the split

Label: 0 for a name of normal, unknown where it is empty, 1 for everything else. Whatever has no such name of a kind above it is a group.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stages.datasets.folder import ANOMALOUS, NORMAL, TRAIN, VAL, inside, parse_label
from stages.datasets.media import SUFFIXES, kind_of
from stages.datasets.record_adapters import RecordReading, RecordRow
from stages.datasets.records import MODALITIES
from stages.datasets.records import UNKNOWN as UNKNOWN_LABEL
from stages.datasets.samples import DataError, Problem
from stages.datasets.table import read_rows
from stages.datasets.tree import folders

KNOWN = ("record_id", "label", "fault", "group", "split")  # columns that are no modality
PATH = "_path"
TEST = frozenset({"test", "testing"})
ABOUT = {"name": "media_folder", "label": "as the user's table or folder names say: 0 normal, 1 anomalous"}


def read_records(source: Path, folder: Path, *, table: str = "") -> RecordReading:
    """table: the CSV within `source`, where that is a folder that holds one. Raises DataError where there is no record, or no column of paths."""
    del folder
    place = source / table if table else source
    if place.suffix.lower() == ".csv" and place.is_file():
        return _by_table(place)
    if table or not source.is_dir():
        raise DataError(
            f"E426 {place} is {'no CSV file' if place.exists() else 'not there'}. Set `source` or `table` of the data set in params.yaml"
        )
    return _by_folders(source)


def _by_table(table: Path) -> RecordReading:
    rows = read_rows(table, ("record_id",))
    columns = {name: name.removesuffix(PATH) for name in (rows[0] if rows else ()) if name in MODALITIES or name.endswith(PATH)}
    if not columns:
        raise DataError(f"E426 {table} has no column of paths; expected one of {', '.join(MODALITIES)}, or <name>{PATH}. Add one")
    if len(set(columns.values())) < len(columns):
        raise DataError(f"E426 {table} names a modality twice in {', '.join(columns)}. Remove one of the columns")
    return RecordReading(table.parent, list(columns.values()), [_of_row(table.parent, row, columns) for row in rows], (), ABOUT)


def _of_row(root: Path, row: dict[str, str], columns: dict[str, str]) -> RecordRow:
    label = parse_label(row.get("label", ""))
    paths = {modality: inside(root, row[column]) or row[column] for column, modality in columns.items() if row.get(column)}
    fault = row.get("fault", "") or ("" if label != 1 else _fault(row["label"]))
    return RecordRow(
        row["record_id"], paths, UNKNOWN_LABEL if label is None else label, fault, row.get("group", ""), _split(row.get("split", ""))
    )


def _fault(name: str) -> str:
    """The name of a kind, where it says more than that the record is anomalous."""
    return "" if name.strip().lower() in ANOMALOUS else name


def _split(name: str) -> str | None:
    """train, val or test in its other spellings; anything else as it is, for the check to refuse."""
    name = name.strip().lower()
    return next((part for part, names in (("train", TRAIN), ("val", VAL), ("test", TEST)) if name in names), name or None)


def _by_folders(source: Path) -> RecordReading:
    found = list(_record_folders(source))
    if not found:
        endings = ", ".join(ending for endings in SUFFIXES.values() for ending in endings)
        raise DataError(f"E426 {source} has no folder with media in it, one for each record. Expected files that end in {endings}")
    above = {name.lower() for place in found for name in place.relative_to(source).parts[:-1]}
    rows, problems = [], []
    for place in found:
        rows.append(_of_folder(source, place, bool(above & NORMAL), problems))
    present = {modality for row in rows for modality in row.paths}
    return RecordReading(source, [name for name in MODALITIES if name in present], rows, problems, ABOUT)


def _record_folders(folder: Path) -> Iterable[Path]:
    """Folders below that hold media themselves."""
    for child in folders(folder):
        if any(kind_of(path) for path in child.iterdir() if path.is_file()):
            yield child
        else:
            yield from _record_folders(child)


def _of_folder(source: Path, place: Path, labelled: bool, problems: list[Problem]) -> RecordRow:
    parts = list(place.relative_to(source).parts[:-1])
    split = _split(parts.pop(0)) if parts and _split(parts[0]) in ("train", "val", "test") else None
    kind = parts.pop() if labelled and parts else ""
    label = parse_label(kind) if kind else None
    fault = _fault(kind) if label == 1 else ""
    paths: dict[str, str] = {}
    for path in sorted(path for path in place.iterdir() if path.is_file()):
        modality = kind_of(path)
        if modality and modality in paths:
            what = f"{place.name} has several files of {modality}; {Path(paths[modality]).name} is read, {path.name} is not"
            problems.append(
                Problem("E427", "warning", path.as_posix(), what, f"Give each a modality of its own: a CSV with columns <name>{PATH}")
            )
        elif modality:
            paths[modality] = path.relative_to(source).as_posix()
    record_id = place.relative_to(source).as_posix()
    return RecordRow(record_id, paths, UNKNOWN_LABEL if label is None else label, fault, "/".join(parts), split)
