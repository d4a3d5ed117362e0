"""Any folder of signals, or one file: CSV or parquet, a row a step, a column a variable.

    <file>                                    one recording; its category is its name
    <folder>/*.csv                            one category
    <folder>/<category>/*.csv                 a category for each sub-folder
    <category>/train/*.csv, test/*.csv        where the user fixes the split

A column of time and one of labels are found by their usual names, or given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.datasets.recordings import Recording
from stages.datasets.samples import DataError
from stages.datasets.signal_file import SUFFIXES, read_columns
from stages.datasets.tree import folders

TRAIN, TEST = ("train", "training"), ("test", "testing")


def read(source: Path, *, time: str | None = None, label: str | None = None, drop: tuple[str, ...] = (), separator: str | None = None,
         decimal: str | None = None, time_format: str | None = None, skip_rows: int = 0, train_steps: int | None = None) -> Iterator[Recording]:  # fmt: skip
    """time, label: columns, "" for none; drop: columns to leave out; train_steps: the first steps of each file, which are for training.

    Raises DataError where there is no file, or one that cannot be read.
    """
    options = {"time": time, "label": label, "drop": drop, "separator": separator, "decimal": decimal, "time_format": time_format}
    options["skip_rows"] = skip_rows
    if source.is_file():
        yield recording(source, source.stem, source.stem, train_steps, options)
        return
    if not source.is_dir():
        raise DataError(f"{source} is neither a folder nor a file. Set `source` of the data set in params.yaml")
    categories = [source] if _holds_signals(source) else [child for child in folders(source) if _holds_signals(child)]
    if not categories:
        seen = ", ".join(child.name for child in sorted(source.iterdir())[:20]) or "nothing"
        raise DataError(f"E319 {source} holds no {', '.join(SUFFIXES)} files; seen there: {seen}. Put a recording in each file")
    for category in categories:
        yield from _category(category, train_steps, options)


def recording(path: Path, category: str, name: str, train_steps: int | None, options: dict[str, Any]) -> Recording:
    """One file as a recording; `train_steps` past its end are all of it."""
    columns = read_columns(path, **options)
    steps = len(columns.values)
    return Recording(
        name,
        category,
        columns.variables,
        columns.values,
        columns.label,
        columns.time_s,
        train_steps=None if train_steps is None else min(train_steps, steps),
        about={"problems": columns.problems},
    )


def files_of(folder: Path) -> list[Path]:
    """Files of signals in this very folder, 2 before 10."""
    files = [
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith((".", "_"))
    ]
    return sorted(files, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])


def _part(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((child for child in folders(folder) if child.name.lower() in names), None)


def _holds_signals(folder: Path) -> bool:
    return bool(files_of(folder)) or _part(folder, TRAIN) is not None


def _category(folder: Path, train_steps: int | None, options: dict[str, Any]) -> Iterator[Recording]:
    name = folder.resolve().name
    for path in files_of(folder):
        yield recording(path, name, path.stem, train_steps, options)
    train, test = _part(folder, TRAIN), _part(folder, TEST)
    if train is None:
        return
    if test is None:
        raise DataError(
            f"{folder} has {train.name}/ but no test/. Add it, or take the files out of {train.name}/ to have them split by time"
        )
    for part, is_train in ((train, True), (test, False)):
        for path in files_of(part):
            whole = recording(path, name, f"{'train' if is_train else 'test'}-{path.stem}", 0, options)
            yield whole._replace(train_steps=len(whole.values) if is_train else 0)
