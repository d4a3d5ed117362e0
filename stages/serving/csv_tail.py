"""A CSV file that somebody else is still writing, read row by row as whole lines arrive.

What was read is known by its place in the file and by the file's first bytes, not by its inode: a file that was written anew, as itself and more,
goes on, and one that is shorter or begins with something else is another file.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stages.datasets.signal_file import MISSING, SEPARATORS, TIME
from stages.errors import UserError

HEAD = 1024  # bytes by which a file is known
BLOCK = 2**20  # bytes read at once; no line is longer


class Row(NamedTuple):
    values: list[float]  # in the order of the variables asked for; NaN where missing
    time: str | None
    note: str | None  # what is wrong with it


class Replaced(UserError, RuntimeError):
    """The file is shorter than what was read of it, or begins with something else."""


class CsvTail:
    """The rows of some columns; others are passed over."""

    def __init__(self, path: Path, variables: Sequence[str], offset: int = 0, head: bytes = b"") -> None:
        """offset, head: how many bytes an earlier tail of the same file has read, and the first of them."""
        self.path, self.variables, self.offset, self.head = path, tuple(variables), offset, head
        self.columns: list[str] = []

    def rows(self, last_line_ends: bool = False) -> Iterator[Row]:
        """Those that have arrived since the last call. A line without its end waits, unless `last_line_ends` says that nothing more will come.

        Raises FileNotFoundError, Replaced, or UserError where the header does not name the variables.
        """
        with self.path.open("rb") as file:
            self._require_same(file.read(HEAD))
            if not self.columns:
                file.seek(0)
                header = file.readline(BLOCK)
                if not header.strip() or not (header.endswith(b"\n") or last_line_ends):
                    return
                self._read_header(header)
                if not self.offset:
                    self._advance(header)
            file.seek(self.offset)
            while line := file.readline(BLOCK):
                if not line.endswith(b"\n") and not self._last(line, last_line_ends):
                    return
                self._advance(line)
                if line.strip():
                    yield self._row(line)

    def _require_same(self, start: bytes) -> None:
        size = self.path.stat().st_size
        if size < self.offset or not start.startswith(self.head):
            what = f"has only {size} bytes left" if size < self.offset else "begins with something else now"
            raise Replaced(f"{self.path}, of which {self.offset} bytes were read, {what}: it was cut off or replaced")

    def _last(self, line: bytes, ends: bool) -> bool:
        """Whether a line without its end is one."""
        if len(line) == BLOCK:
            raise UserError(f"{self.path}: no line ends within {BLOCK} bytes after byte {self.offset}. This is no CSV file of signals")
        return ends

    def _advance(self, line: bytes) -> None:
        self.offset += len(line)
        self.head = (self.head + line)[:HEAD]

    def _read_header(self, line: bytes) -> None:
        text = line.decode("utf-8-sig", errors="replace")
        self.separator = next((mark for mark in SEPARATORS if mark in text), ",")
        columns = [name.strip() for name in _fields(text, self.separator)]
        missing = [name for name in self.variables if name not in columns]
        if missing:
            known = f"the model knows the variables {', '.join(self.variables)}"
            raise UserError(f"{self.path}: {known}; the header has no {', '.join(missing)}. It has: {', '.join(columns)}")
        twice = [name for name in self.variables if columns.count(name) > 1]
        if twice:
            raise UserError(f"{self.path}: two columns are called {twice[0]}. Rename one")
        self.columns = columns
        self.places = [columns.index(name) for name in self.variables]
        self.time = next((place for place, name in enumerate(columns) if name.lower() in TIME and name not in self.variables), None)

    def _row(self, line: bytes) -> Row:
        fields = _fields(line.decode("utf-8", errors="replace"), self.separator)
        if len(fields) != len(self.columns):
            note = f"expected {len(self.columns)} fields, got {len(fields)}: all values count as missing"
            return Row([math.nan] * len(self.variables), None, note)
        cells = [fields[place].strip() for place in self.places]
        values = [self._number(cell) for cell in cells]
        wrong = [f"{name} {_described(cell)}" for name, cell, value in zip(self.variables, cells, values) if not math.isfinite(value)]
        time = fields[self.time].strip() if self.time is not None else None
        return Row(values, time, ", ".join(wrong) or None)

    def _number(self, cell: str) -> float:
        try:
            return float(cell if self.separator == "," else cell.replace(",", "."))
        except ValueError:
            return math.nan


def _fields(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])
    except csv.Error:  # a field longer than the reader takes
        return []


def _described(cell: str) -> str:
    return "is missing" if cell.lower() in MISSING else f"is no finite number ({cell[:40]!r}) and counts as missing"
