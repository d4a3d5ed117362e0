"""SMAP and MSL: telemetry of a satellite and of the rover Curiosity, a channel with its commands in each file.

    train/P-1.npy  test/P-1.npy     (T, 25) or (T, 55): the channel itself, then commands as 0 and 1; scaled, times removed
    labeled_anomalies.csv           chan_id, spacecraft, anomaly_sequences [[2149, 2349], ...] with both ends in, class [point, ...]

A channel is a category. Kyle Hundman et al., KDD 2018.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from stages.datasets.recordings import Recording, Region, label_of
from stages.datasets.samples import DataError
from stages.datasets.table import read_rows

ABOUT = {"licence": "see github.com/khundman/telemanom", "citation": "Hundman et al., Detecting Spacecraft Anomalies Using LSTMs, KDD 2018"}


def read(source: Path, *, spacecraft: Literal["SMAP", "MSL"] = "SMAP") -> Iterator[Recording]:
    """Two recordings a channel, train and test. Raises DataError where a file is missing or is no array of numbers."""
    table = next((path for path in (source / "labeled_anomalies.csv", source.parent / "labeled_anomalies.csv") if path.is_file()), None)
    if table is None or not (source / "test").is_dir():
        raise DataError(f"{source} must hold train/, test/ and labeled_anomalies.csv (which may lie one folder higher)")
    rows = read_rows(table, ("chan_id", "spacecraft", "anomaly_sequences", "class"))
    channels: dict[str, list[Region]] = {}
    for row in rows:  # a channel may have two rows
        if row["spacecraft"] == spacecraft:
            channels.setdefault(row["chan_id"], []).extend(_regions(row, table))
    for channel, regions in sorted(channels.items()):
        train, test = (_values(source / part / f"{channel}.npy") for part in ("train", "test"))
        variables = ("telemetry", *(f"command_{number}" for number in range(1, train.shape[1])))
        about = ABOUT | {"name": spacecraft}
        ordered = tuple(sorted(regions))
        yield Recording("train", channel, variables, train, None, train_steps=len(train), about=about)
        yield Recording("test", channel, variables, test, label_of(ordered, len(test)), None, ordered, 0, about)


def _regions(row: dict[str, str], table: Path) -> Iterator[Region]:
    try:
        sequences = json.loads(row["anomaly_sequences"])
        kinds = [kind.strip() for kind in row["class"].strip("[] ").split(",")]
        for number, (first, last) in enumerate(sequences):
            yield Region(int(first), int(last) + 1, kinds[number] if number < len(kinds) and kinds[number] else "anomaly", ("telemetry",))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{table}: {row['chan_id']} has anomaly_sequences {row['anomaly_sequences']!r}, no list of [first, last]"
        ) from error


def _values(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path} is missing, which labeled_anomalies.csv names")
    try:
        values = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} is no array of numbers: {error}") from error
    if values.ndim != 2:
        raise DataError(f"{path} has shape {values.shape}, expected (steps, variables)")
    return values.astype(np.float32)
