"""One file of signals, CSV or parquet, to columns of numbers: separator, decimal comma, byte-order mark, encoding and kind of time are found out.

Nothing is guessed where a wrong guess would look right: dates that can be read day first and month first are refused, and a cell that is no number
is a missing value that is counted and named.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.recordings import Labels, Values
from stages.datasets.samples import DataError, Problem

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
SEPARATORS = ";\t|,"
MISSING = ["", "na", "n/a", "nan", "null", "none", "-", "--", "?", "#n/a"]
MISSING += [text.upper() for text in MISSING] + ["NaN", "Null", "None"]
TIME = ("time", "timestamp", "datetime", "date_time", "date", "time_s", "ts", "zeit", "zeitstempel")
LABEL = ("label", "labels", "anomaly", "is_anomaly", "anomalous", "attack", "normal/attack", "outlier")
NORMAL = ("0", "0.0", "false", "normal", "ok", "good", "no", "benign")
FORMATS = (
    "%d.%m.%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %I:%M:%S %p",
    "%m/%d/%Y %I:%M:%S %p",
    "%Y/%m/%d %H:%M:%S",
)
FORMATS += tuple(form.replace(":%S", "") for form in FORMATS)
PEEK = 2**16  # bytes that the form of a file is told from
MOST_BYTES = 2**31  # of the cells of one parquet file, eight bytes each; its compressed pages tell nothing of that


class Columns(NamedTuple):
    """What one file holds."""

    variables: tuple[str, ...]
    values: Values  # (T, V), NaN where a cell is empty or no number
    time_s: NDArray[np.float64] | None  # (T,)
    label: Labels | None  # (T,)
    problems: tuple[Problem, ...] = ()


class Form(NamedTuple):
    encoding: str
    separator: str
    decimal: str
    header: bool
    skip_rows: int


def read_columns(
    path: Path,
    *,
    time: str | None = None,
    label: str | None = None,
    drop: Sequence[str] = (),
    separator: str | None = None,
    decimal: str | None = None,
    time_format: str | None = None,
    skip_rows: int = 0,
) -> Columns:
    """The columns of a file. time, label: their columns, found by name where not given; "" for none. drop: columns to leave out.

    skip_rows: lines above the header.

    Raises DataError with what was found and how to mend it.
    """
    form = None if path.suffix.lower() == ".parquet" else form_of(path, separator, decimal, skip_rows)
    table = _csv(path, form) if form else _parquet(path)
    if not table.num_rows or not table.num_columns:
        raise DataError(f"E319 {path} holds no row of numbers. Export it again, or take the file away")
    names = _unique([name.strip() for name in table.column_names], path)
    table = table.rename_columns(names)
    missing = [name for name in (time, label, *drop) if name and name not in names]
    if missing:
        raise DataError(f"E317 {path} has no column {missing[0]!r}; its columns: {', '.join(names)}. Set the options of the data set")
    when, what = _column_for(time, TIME, names), _column_for(label, LABEL, names)
    counted = {name for name in names if name in ("", "unnamed: 0", "index") and _counts_rows(table[name])}
    rest = [name for name in names if name not in {when, what, *drop, *counted}]
    values, kept, problems = _numbers(path, table, rest, form.decimal if form else ".")
    return Columns(
        kept,
        values,
        None if when is None else seconds(path, table[when], time_format),
        None if what is None else labels(path, table[what]),
        problems,
    )


def form_of(path: Path, separator: str | None = None, decimal: str | None = None, skip_rows: int = 0) -> Form:
    """How a text file is written, told from its first 64 KiB."""
    with path.open("rb") as file:
        start = file.read(PEEK)
    if not start.strip():
        raise DataError(f"E319 {path} is empty. Export it again, or take the file away")
    if b"\0" in start and not start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"E317 {path} is no text: it holds zero bytes. Export it as CSV, or give it the ending of its kind")
    encoding = _encoding(path, start)
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(start)
    lines = [line for line in text.splitlines() if line.strip()][skip_rows : skip_rows + 50] or [""]
    separator = separator or next((mark for mark in SEPARATORS if _parts(lines, mark)), ",")
    cells = [cell.strip().strip('"') for line in lines[1:] for cell in line.split(separator)]
    comma = separator != "," and any(re.fullmatch(r"[-+]?\d+,\d+([eE][-+]?\d+)?", cell) for cell in cells)
    decimal = decimal or ("," if comma else ".")
    header = not all(_is_number(cell.strip().strip('"').replace(decimal, ".")) for cell in lines[0].split(separator))
    return Form(encoding, separator, decimal, header, skip_rows)


def seconds(path: Path, column: pyarrow.ChunkedArray, time_format: str | None = None) -> NDArray[np.float64]:
    """(T,) seconds of a column of dates, of clock times or of numbers; large whole numbers are milli-, micro- or nanoseconds since 1970."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type):
        column = _dates(path, pc.utf8_trim_whitespace(column), time_format)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"E314 {path}: {column.null_count} rows have no time, the first is row {row}. Fill them in or take the rows out")
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type) or pa.types.is_time(column.type):
        ticks = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[column.type.unit]
        whole = column.cast(pa.int32()).cast(pa.int64()) if column.type.bit_width == 32 else column.cast(pa.int64())
        return whole.to_numpy() / ticks
    if pa.types.is_boolean(column.type):
        raise DataError(f"E314 {path}: the column of time holds yes and no. Name another as `time`, or set it to '' for none")
    moments = column.cast(pa.float64(), safe=False).to_numpy()
    largest = np.abs(moments).max()
    return moments / next((scale for least, scale in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)) if largest > least), 1)


def labels(path: Path, column: pyarrow.ChunkedArray) -> Labels:
    """(T,) int8: 0 for 0, false and words for normal, 1 for anything else. Raises DataError where a cell is empty."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"E317 {path}: {column.null_count} rows have no label, the first is row {row}. Label them, or set `label` to ''")
    words = pc.utf8_lower(pc.utf8_trim_whitespace(column.cast(pa.string())))
    return (~pc.is_in(words, value_set=pa.array(NORMAL)).to_numpy(zero_copy_only=False)).astype(np.int8)


def _csv(path: Path, form: Form) -> pyarrow.Table:
    import pyarrow as pa
    from pyarrow import csv

    try:
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(
                encoding=form.encoding, skip_rows=form.skip_rows, autogenerate_column_names=not form.header, use_threads=False
            ),
            parse_options=csv.ParseOptions(delimiter=form.separator),
            convert_options=csv.ConvertOptions(decimal_point=form.decimal, null_values=MISSING, strings_can_be_null=True),
        )
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"E317 {path} is no table: {reason}. Mend that line, or set `separator` and `decimal` of the data set") from error


def _parquet(path: Path) -> pyarrow.Table:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with pa.parquet.ParquetFile(path) as file:
            rows, columns = file.metadata.num_rows, file.metadata.num_columns
            if rows * columns * 8 > MOST_BYTES:
                what = f"declares {rows} rows of {columns} columns, {rows * columns * 8} bytes as numbers, at most {MOST_BYTES} are read"
                raise DataError(f"E317 {path} {what}. Cut it into several files")
            return file.read()
    except pa.ArrowException as error:
        raise DataError(f"E317 {path} is no parquet file: {str(error).splitlines()[0]}. Export it again") from error


def _encoding(path: Path, start: bytes) -> str:
    """By the byte-order mark; else UTF-8 if the whole file is, else Windows-1252."""
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    for mark, encoding in marks:
        if start.startswith(mark):
            return encoding
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _parts(lines: list[str], mark: str) -> bool:
    """Whether every line has as many of the mark as the first, outside quotes, and that has some."""
    counts = {re.sub(r'"[^"]*"', "", line).count(mark) for line in lines[:5]}
    return len(counts) == 1 and counts != {0}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _unique(names: list[str], path: Path) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"E317 {path} has two columns {twice[0]!r}. Rename one")
    return names


def _column_for(given: str | None, known: tuple[str, ...], names: list[str]) -> str | None:
    if given is not None:
        return given or None
    return next((name for word in known for name in names if name.lower() == word), None)


def _counts_rows(column: pyarrow.ChunkedArray) -> bool:
    import pyarrow as pa

    if not pa.types.is_integer(column.type) or column.null_count:
        return False
    return bool((np.diff(column.to_numpy()) == 1).all())


def _numbers(path: Path, table: pyarrow.Table, names: list[str], decimal: str) -> tuple[Values, tuple[str, ...], tuple[Problem, ...]]:
    """(T, V) float32 of the columns that hold numbers, their names, and what was wrong in them."""
    columns, kept, problems = [], [], []
    for name in names:
        column, bad = _number(table[name], decimal)
        if bad is not None and np.isnan(column).all():
            what = f"column {name!r} holds no numbers, such as {bad!r}; it is left out"
            problems.append(Problem("E317", "warning", str(path), what, "List it under `drop` to silence this"))
            continue
        if bad is not None:
            what = f"column {name!r} has cells that are no numbers, such as {bad!r}; they count as missing"
            problems.append(Problem("E317", "warning", str(path), what, "Mend them, or set `decimal` if the comma is meant"))
        columns.append(column)
        kept.append(name)
    if not columns:
        raise DataError(
            f"E319 {path} has no column of numbers; its columns: {', '.join(table.column_names)}. Check `separator` and `decimal`"
        )
    return np.stack(columns, 1), tuple(kept), tuple(problems)


def _number(column: pyarrow.ChunkedArray, decimal: str) -> tuple[NDArray[np.float32], str | None]:
    """(T,) float32 with NaN for nulls, and the first cell that is text but no number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(column.type):
        numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
        if not (numeric or pa.types.is_null(column.type)):
            return np.full(len(column), np.nan, np.float32), str(column.type)
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float32), None
    text = pc.utf8_trim_whitespace(column)
    if decimal == ",":
        text = pc.replace_substring(text, ",", ".")
    fits = pc.match_substring_regex(text, r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
    numbers = pc.if_else(fits, text, pa.scalar(None, pa.string())).cast(pa.float64())
    bad = column.filter(pc.and_(pc.invert(fits), column.is_valid()))
    return numbers.to_numpy(zero_copy_only=False).astype(np.float32), bad[0].as_py() if len(bad) else None


def _dates(path: Path, column: pyarrow.ChunkedArray, time_format: str | None) -> pyarrow.ChunkedArray:
    """A column of text as moments. Raises DataError where no form fits every cell, or two do and differ."""
    import pyarrow.compute as pc

    read = {}
    for form in [time_format] if time_format else FORMATS:
        moments = pc.strptime(column, format=form, unit="s", error_is_null=True)
        if moments.null_count == column.null_count:
            read[form] = moments
    if not read:
        fix = "Write it as 2024-12-31 23:59:59, or set `time_format` of the data set"
        raise DataError(f"E314 {path}: no known form of time fits {column[0].as_py()!r} and the rest. {fix}")
    first = next(iter(read))
    if any(not moments.equals(read[first]) for moments in read.values()):
        raise DataError(
            f"E314 {path}: {column[0].as_py()!r} may be {' or '.join(read)}. Set `time_format` of the data set to the one that is meant"
        )
    return read[first]
