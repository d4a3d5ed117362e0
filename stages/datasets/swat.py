"""SWaT, Secure Water Treatment: 51 sensors and actuators of a water plant, a row a second, attacked 36 times in four of eleven days.

    SWaT_Dataset_Normal_v1.csv (or _v0), SWaT_Dataset_Attack_v0.csv      as exported from the workbooks: Timestamp, FIT101, ..., Normal/Attack

A line of plant stages may stand above the header, times may be `28/12/2015 10:00:00 AM`, and `A ttack` is an attack. The data are given on request
by iTrust, Singapore University of Technology and Design. J. Goh et al., CRITIS 2016.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.datasets.recordings import Recording
from stages.datasets.samples import DataError
from stages.datasets.signal_file import Columns, form_of, read_columns

ABOUT = {"name": "SWaT", "licence": "on request from iTrust, SUTD", "citation": "Goh, Adepu, Junejo and Mathur, CRITIS 2016"}
LINES = 5  # the header is one of the first


def read(source: Path, *, time_format: str | None = None) -> Iterator[Recording]:
    """Two recordings, the normal days for training and the days of attacks. Raises DataError where one of the files is missing or there are two."""
    normal, attack = (_columns(_file(source, word), time_format) for word in ("normal", "attack"))
    steps = len(normal.values)
    train = Recording(
        "normal", "swat", normal.variables, normal.values, np.zeros(steps, np.int8), normal.time_s, train_steps=steps, about=ABOUT
    )
    yield train
    yield Recording("attack", "swat", attack.variables, attack.values, attack.label, attack.time_s, train_steps=0, about=ABOUT)


def _file(source: Path, word: str) -> Path:
    found = [path for path in sorted(source.glob("*.csv")) if word in path.stem.lower()]
    if len(found) != 1:
        seen = ", ".join(path.name for path in found) or "none"
        raise DataError(
            f"{source} must hold one CSV file with {word!r} in its name, found {seen}. Export the workbook, and keep one version of it"
        )
    return found[0]


def _columns(path: Path, time_format: str | None) -> Columns:
    with path.open(encoding=form_of(path).encoding, errors="replace") as file:
        lines = [file.readline().lower() for _ in range(LINES)]
    above = next((number for number, line in enumerate(lines) if "timestamp" in line), 0)
    return read_columns(path, time="Timestamp", label="Normal/Attack", separator=",", skip_rows=above, time_format=time_format)
