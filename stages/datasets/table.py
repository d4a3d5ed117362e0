"""Sample tables: a user's CSV is read (byte-order mark, comma, semicolon or tab, headers in any case), ours written as parquet and CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from stages import io
from stages.datasets.samples import DataError, Sample
from stages.datasets.verify import Checked

DELIMITERS = ",;\t"
COLUMNS = ("sample_id", "category", "split", "label", "defect_type", "group", "image_path", "mask_path", "content_hash", "width", "height")
HASH = "dhash"  # 32 bytes, in the parquet file only


def read_rows(path: Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    """One dict of stripped text per row, keyed by lower-case header. Raises DataError where a required column is missing."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as CSV UTF-8") from error
    header = lines[0] if lines else ""
    delimiter = max(DELIMITERS, key=header.count)
    rows = list(csv.reader(lines, delimiter=delimiter))
    columns = [column.strip().lower() for column in rows[0]] if rows else []
    missing = [column for column in required if column not in columns]
    if missing:
        raise DataError(f"{path} has the columns {', '.join(columns) or 'none'}; missing: {', '.join(missing)}")
    return [dict(zip(columns, (cell.strip() for cell in row), strict=False)) for row in rows[1:] if any(row)]


def write_samples(folder: Path, rows: list[Checked]) -> None:
    """`samples.parquet` and, for people, the same as `samples.csv`, which the adapter `folder` reads back."""
    import pyarrow

    table = [(*_fields(row), row.dhash) for row in rows]
    kinds = {"label": pyarrow.int8(), "width": pyarrow.int32(), "height": pyarrow.int32(), HASH: pyarrow.binary(32)}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in (*COLUMNS, HASH)])
    io.write_table(folder / "samples.parquet", {name: [row[at] for row in table] for at, name in enumerate(schema.names)}, schema)
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *(row[:-1] for row in table)])
    io.write_text(folder / "samples.csv", text.getvalue())


def write_labels(path: Path, root: Path, samples: Sequence[Sample]) -> None:
    """A CSV for people to correct and for the adapter `folder` to read back. Raises DataError where it would not lie above the images."""
    above = path.resolve().parent
    if not root.resolve().is_relative_to(above):
        raise DataError(f"{path} must lie in {root} or in a folder above it: the paths in it are relative to the CSV's own folder")
    inside = root.resolve().relative_to(above)
    rows = [
        [
            (inside / sample.image_path).as_posix(),
            sample.defect_type if sample.label is not None else "",
            sample.category,
            sample.split or "",
            (inside / sample.mask_path).as_posix() if sample.mask_path else "",
            sample.group if sample.group != sample.sample_id else "",
        ]
        for sample in samples
    ]
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "label", "category", "split", "mask", "group"), *rows])
    io.write_text(path, text.getvalue())


def _fields(row: Checked) -> tuple[Any, ...]:
    sample = row.sample
    place = (sample.sample_id, sample.category, sample.split, sample.label, sample.defect_type, sample.group)
    return (*place, sample.image_path, sample.mask_path, row.content_hash, row.width, row.height)
