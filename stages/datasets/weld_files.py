"""The files of one weld as a welding cell writes them: the log of its sensors, with a clock in text, and its photographs.

A log is a CSV with a column `Time` (and `Date`, `Part No`, `Remarks`, which are no sensors): headers in any case and with blanks around them, comma,
semicolon or tab, decimal comma where the separator is none. Sensors are called by their header in lower snake case, `primary_weld_current`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.datasets import images
from stages.datasets.media import MAX_SERIES_BYTES, Signal
from stages.datasets.samples import DataError

SENSORS = ("pressure", "co2_weld_flow", "feed", "primary_weld_current", "wire_consumed", "secondary_weld_voltage")  # in the release's order
CURRENT = "primary_weld_current"
NOMINAL = {  # centre and spread of the release's sensors, rough figures of an engineer
    "pressure": (1.8, 0.5),
    "co2_weld_flow": (15.0, 5.0),
    "feed": (70.0, 30.0),
    CURRENT: (180.0, 60.0),
    "wire_consumed": (50.0, 50.0),
    "secondary_weld_voltage": (22.0, 5.0),
}
NO_SENSORS = ("date", "time", "part_no", "remarks")
SECONDS = "time_s"  # a clock in numbers, where there is none in text
EMPTY = frozenset({"", "-", "na", "n/a", "nan", "null", "none"})
CLOCK = re.compile(r"(\d{1,2}):(\d{2}):(\d{2})(?:[.,:](\d{1,6}))?\s*([AaPp][Mm])?")
DAY_S = 86400.0


def plain(name: str) -> str:
    """A name of a column, a class or a session in lower snake case."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def read_log(path: Path) -> Signal:
    """The sensors of a log, (T, V) with NaN where a cell is empty, and seconds from its first row.

    Raises DataError (E430, E434) for a file that is no such log, a clock that cannot be read or runs backwards, or an infinite value.
    """
    header, rows, decimal = _cells(path)
    sensors = [at for at, name in enumerate(header) if name not in (*NO_SENSORS, SECONDS)]
    values = np.empty((len(rows), len(sensors)), np.float32)
    for place, row in enumerate(rows):
        values[place] = [_number(path, place, header[at], row[at] if at < len(row) else "", decimal) for at in sensors]
    return Signal(values, _clock(path, header, rows, decimal), tuple(header[at] for at in sensors))


def arc_on(signal: Signal, current: str = CURRENT, above: float = 5.0, steps: int = 3) -> float | None:
    """The moment at which the current rises above `above` ampere and stays so for `steps` rows; None where it never does, or is not measured."""
    return _arc(signal, current, above, steps, first=True)


def arc_off(signal: Signal, current: str = CURRENT, above: float = 5.0, steps: int = 3) -> float | None:
    """The moment of the last row of such a stay."""
    return _arc(signal, current, above, steps, first=False)


def photos(folder: Path) -> list[Path]:
    """The pictures of a folder in order of their names; none where it is not there."""
    return sorted(path for path in folder.iterdir() if images.is_image_name(path) and path.is_file()) if folder.is_dir() else []


def angles(paths: Sequence[Path], views: int) -> list[int]:
    """From which of `views` angles each photograph was taken: the number at the end of its name, counted from 0 or from 1, where all have one that
    is possible; else their order."""
    found = [re.search(r"(\d+)$", path.stem) for path in paths]
    numbers = [int(one[1]) for one in found if one]
    for first in (0, 1):
        if len(numbers) == len(set(numbers)) == len(paths) and all(first <= number < first + views for number in numbers):
            return [number - first for number in numbers]
    return list(range(len(paths)))


def cropped(picture: NDArray[np.uint8], crop: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """(H, W, 3) without a share of the left, the top, the right and the bottom; at least one pixel stays."""
    height, width = picture.shape[:2]
    left, top = int(crop[0] * width), int(crop[1] * height)
    return picture[top : max(height - int(crop[3] * height), top + 1), left : max(width - int(crop[2] * width), left + 1)]


def chosen_sensors(path: Path, variables: Sequence[str], values: NDArray[np.floating], nominal: Mapping[str, tuple[float, float]]) -> NDArray[np.float32]:
    """(T, V) of some sensors, in the order of `nominal` and as (value - centre) / spread; 0, which is nominal, where nothing is known.

    Raises DataError (E434) for a sensor that the log has not.
    """
    names = [plain(name) for name in nominal]
    if missing := [name for name in names if name not in variables]:
        have = ", ".join(variables)
        raise DataError(f"E434 {path} has no sensor {missing[0]!r}; it has {have}. Add it, or take it out of `nominal`")
    centre, spread = np.array(list(nominal.values())).T
    scaled = (values[:, [list(variables).index(name) for name in names]] - centre) / spread
    return np.nan_to_num(scaled).astype(np.float32)


def _cells(path: Path) -> tuple[list[str], list[list[str]], str]:
    """The header in plain names, the rows below it, and the decimal mark."""
    if not path.is_file() or not path.stat().st_size:
        raise DataError(f"E430 {path} is {'empty (0 bytes)' if path.is_file() else 'not here'}. Copy it again from where it was made")
    if path.stat().st_size > MAX_SERIES_BYTES:
        raise DataError(f"E434 {path} has more than {MAX_SERIES_BYTES >> 20} MiB. Cut it into records")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        mark = max(",;\t", key=lines[0].count) if lines else ","
        rows = [row for row in csv.reader(lines, delimiter=mark) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"E434 {path} is no table of text: {error}. Export it as CSV in UTF-8") from error
    header = [plain(name) for name in rows[0]] if rows else []
    if len(rows) < 2 or not {"time", SECONDS} & set(header) or len(set(header)) < len(header):
        found = ", ".join(header) or "none"
        raise DataError(f"E434 {path} is no log of sensors: its columns are {found}, {max(len(rows) - 1, 0)} rows. Expected Time and sensors, each once")
    return header, rows[1:], "." if mark == "," else ","


def _number(path: Path, place: int, name: str, cell: str, decimal: str) -> float:
    cell = cell.strip()
    if cell.lower() in EMPTY:
        return np.nan
    try:
        value = float(cell.replace(decimal, "."))
    except ValueError:
        raise DataError(f"E434 {path}: row {place} of {name} holds {cell!r}, expected a number or nothing. Mend the cell, or empty it") from None
    if abs(value) > float(np.finfo(np.float32).max):  # infinite, or it would be as float32
        raise DataError(f"E434 {path} holds an infinite value in {name}. Leave the cell empty where the sensor gave none")
    return value


def _clock(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], decimal: str) -> NDArray[np.float64]:
    """(T,) seconds from the first row. Rows that share a stamp in whole seconds lie at equal distances within that second."""
    name = "time" if "time" in header else SECONDS
    at = header.index(name)
    cells = [row[at].strip() if at < len(row) else "" for row in rows]
    time_s = np.array([_moment(path, place, cell, decimal) for place, cell in enumerate(cells)])
    time_s += DAY_S * np.concatenate([[0], np.cumsum(np.diff(time_s) < -DAY_S / 2)])  # past midnight
    if (np.diff(time_s) < 0).any():
        place = int(np.argmax(np.diff(time_s) < 0)) + 1
        raise DataError(f"E434 {path}: the clock runs backwards at row {place} ({cells[place]}). Sort the rows by time, or cut the file there")
    if (time_s == np.floor(time_s)).all():
        _, start, count = np.unique(time_s, return_index=True, return_counts=True)
        time_s += (np.arange(len(time_s)) - np.repeat(start, count)) / np.repeat(count, count)
    return time_s - time_s[0]


def _moment(path: Path, place: int, cell: str, decimal: str) -> float:
    match = CLOCK.fullmatch(cell)
    if match:
        hour = int(match[1]) % 12 + 12 * (match[5].lower() == "pm") if match[5] else int(match[1])
        return hour * 3600 + int(match[2]) * 60 + int(match[3]) + float(f"0.{match[4] or 0}")
    try:
        moment = float(cell.replace(decimal, "."))
    except ValueError:
        moment = np.nan
    if not np.isfinite(moment):
        raise DataError(f"E434 {path}: row {place} has the time {cell!r}, expected 13:05:09.250 or seconds. Mend it, or take the row out")
    return moment


def _arc(signal: Signal, current: str, above: float, steps: int, *, first: bool) -> float | None:
    if current not in signal.variables or len(signal.values) < steps:
        return None
    burning = np.nan_to_num(signal.values[:, signal.variables.index(current)], nan=-np.inf) > above
    stays = np.flatnonzero(np.lib.stride_tricks.sliding_window_view(burning, steps).all(1))
    if not len(stays):
        return None
    return float(signal.time_s[stays[0] if first else stays[-1] + steps - 1])
