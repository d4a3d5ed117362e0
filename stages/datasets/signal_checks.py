"""What can be wrong with a recording, looked for once where data enters: mended and told, or refused with what to do.

E311 gaps in time, E312 irregular steps, E313 times that occur twice, E314 rows out of order, E315 missing values, E316 variables that never change,
E318 infinite values, E319 nothing there. E317, cells that are no numbers, is found by the reader of files.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.datasets.recordings import Recording
from stages.datasets.samples import DataError, Problem

GAP = 5.0  # median steps; a longer interval breaks a recording in two
UNEVEN = 0.5  # of the median step, by which an interval may differ
MOSTLY_UNEVEN = 0.1  # share of uneven intervals that is worth a word
GAPPY = 0.01  # share of missing values of one variable that is worth a word
MEANINGLESS = 0.2  # share of gaps, or of times that occur twice with other values, past which the rows are no series
MISSING_AT_MOST = 0.5  # of the values of one variable


class Checked(NamedTuple):
    recording: Recording
    breaks: list[int]  # steps that do not follow from the one before
    missing: int  # values
    constant: list[str]  # variables
    median_step_s: float | None
    problems: list[Problem]


def check(recording: Recording) -> Checked:
    """The recording in order of time, without copies of rows and without infinite values. Raises DataError for what cannot be mended."""
    where = f"{recording.category}/{recording.name}"
    problems: list[Problem] = []
    _refuse_shapes(recording, where)
    recording = _in_order(recording, where, problems)
    recording = _without_copies(recording, where, problems)
    recording = _finite(recording, where, problems)
    breaks, median = _intervals(recording, where, problems)
    return Checked(recording, breaks, _missing(recording, where, problems), _constant(recording, where, problems), median, problems)


def _refuse_shapes(recording: Recording, where: str) -> None:
    steps, variables = recording.values.shape
    if not steps or not variables:
        raise DataError(f"E319 {where} has {steps} steps of {variables} variables. Export it again, or take the file away")
    for name, found in (("label", recording.label), ("time_s", recording.time_s)):
        if found is not None and len(found) != steps:
            raise DataError(f"E319 {where} has {steps} steps but {len(found)} of {name}. Both must come from the same rows")


def _rows(recording: Recording, rows: np.ndarray) -> Recording:
    """The recording with these rows only, in this order; one that is all for training stays so."""
    label, time = (None if part is None else part[rows] for part in (recording.label, recording.time_s))
    train_steps = len(rows) if recording.train_steps == len(recording.values) else recording.train_steps
    return recording._replace(values=recording.values[rows], label=label, time_s=time, train_steps=train_steps)


def _counted(recording: Recording) -> bool:
    """Whether something is known of certain rows by their number."""
    return bool(recording.regions) or recording.train_steps not in (None, 0, len(recording.values))


def _in_order(recording: Recording, where: str, problems: list[Problem]) -> Recording:
    time = recording.time_s
    if time is None or (backward := int((np.diff(time) < 0).sum())) == 0:
        return recording
    if _counted(recording):
        raise DataError(
            f"E314 {where}: time goes back {backward} times, and what is known of its steps counts rows. Sort the file by time first"
        )
    problems.append(
        Problem("E314", "warning", where, f"time goes back {backward} times; the rows are sorted", "Sort the file to silence this")
    )
    return _rows(recording, np.argsort(time, kind="stable"))


def _without_copies(recording: Recording, where: str, problems: list[Problem]) -> Recording:
    """Rows that say again what the one before says at the same time are left out; other rows of the same time stay, if they are few."""
    time = recording.time_s
    if time is None:
        return recording
    again = np.r_[False, np.diff(time) == 0]
    if not again.any():
        return recording
    same = again & np.r_[False, np.isclose(recording.values[1:], recording.values[:-1], rtol=0, atol=0, equal_nan=True).all(1)]
    differing = int((again & ~same).sum())
    if differing > MEANINGLESS * len(time):
        what = f"{differing} of {len(time)} rows have the time of the row before and other values"
        raise DataError(f"E313 {where}: {what}. Give one row a time: a column for each sensor, a file for each machine")
    what = f"{int(again.sum())} times occur twice; {int(same.sum())} copies are left out, {differing} rows with other values stay in the order of the file"
    problems.append(Problem("E313", "warning", where, what, "Give every row its own time"))
    if _counted(recording):
        return recording  # what is known of its steps counts rows
    return _rows(recording, np.flatnonzero(~same))


def _finite(recording: Recording, where: str, problems: list[Problem]) -> Recording:
    infinite = np.isinf(recording.values)
    if not infinite.any():
        return recording
    row, column = (int(found[0]) for found in np.nonzero(infinite))
    what = f"{int(infinite.sum())} values are infinite, the first in row {row} of {recording.variables[column]}; they count as missing"
    problems.append(Problem("E318", "warning", where, what, "Find out what wrote them"))
    return recording._replace(values=np.where(infinite, np.float32("nan"), recording.values))


def _intervals(recording: Recording, where: str, problems: list[Problem]) -> tuple[list[int], float | None]:
    """Steps after a gap, and the median interval in seconds."""
    if recording.time_s is None or len(recording.time_s) < 2:
        return [], None
    intervals = np.diff(recording.time_s)
    median = float(np.median(intervals))
    breaks = (np.flatnonzero(intervals > GAP * median) + 1).tolist()
    if len(breaks) > MEANINGLESS * len(intervals):
        what = f"{len(breaks)} of {len(intervals)} intervals are longer than {GAP:g} times the median of {median:g} s"
        raise DataError(f"E312 {where}: {what}: steps of it mean nothing. Resample it to even steps first")
    if breaks:
        longest = float(intervals.max())
        what = f"{len(breaks)} gaps, the longest {longest:g} s where {median:g} s is usual; no window reaches over one"
        problems.append(Problem("E311", "warning", where, what, "Nothing, if the machine stood still"))
    uneven = float((np.abs(intervals - median) > UNEVEN * median).mean())
    if uneven > MOSTLY_UNEVEN:
        what = f"{uneven:.0%} of the intervals differ from the median of {median:g} s by more than half of it; detectors count steps, not seconds"
        problems.append(Problem("E312", "warning", where, what, "Resample it to even steps if time matters"))
    return breaks, median


def _missing(recording: Recording, where: str, problems: list[Problem]) -> int:
    missing = np.isnan(recording.values)
    share = missing.mean(0)
    worst = int(share.argmax())
    if share[worst] > MISSING_AT_MOST:
        name = recording.variables[worst]
        raise DataError(
            f"E315 {where}: {share[worst]:.0%} of {name} is missing, at most {MISSING_AT_MOST:.0%} may be. List it under `drop`, or mend the file"
        )
    if share[worst] >= GAPPY:
        what = f"{int(missing.sum())} values are missing ({missing.mean():.1%}), most of them of {recording.variables[worst]}; the last one before stands in"
        problems.append(Problem("E315", "warning", where, what, "Nothing, if sensors do drop out"))
    return int(missing.sum())


def _constant(recording: Recording, where: str, problems: list[Problem]) -> list[str]:
    low, high = np.nanmin(recording.values, 0), np.nanmax(recording.values, 0)
    constant = [name for name, same in zip(recording.variables, low == high) if same]
    if constant:
        what = f"{', '.join(constant)} never change; a later move of one will show"
        problems.append(Problem("E316", "warning", where, what, "List them under `drop` if they say nothing"))
    return constant
