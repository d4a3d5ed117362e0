"""SMD, the Server Machine Dataset: 28 machines of an internet company, 38 metrics, a row a minute, five weeks.

    train/machine-1-1.txt  test/machine-1-1.txt  test_label/machine-1-1.txt      numbers with commas, no header
    interpretation_label/machine-1-1.txt                                         15849-16368:1,9,10: which metrics show it, counted from 1

A machine is a category. Ya Su et al., OmniAnomaly, KDD 2019.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.datasets.recordings import Labels, Recording, Region, runs_of
from stages.datasets.samples import DataError
from stages.datasets.signal_file import read_columns
from stages.datasets.signal_folder import files_of

ABOUT = {"name": "SMD", "licence": "MIT", "citation": "Su et al., Robust Anomaly Detection for Multivariate Time Series, KDD 2019"}


def read(source: Path, *, interval_s: float = 60.0) -> Iterator[Recording]:
    """Two recordings a machine, train and test. Raises DataError where a machine lacks a part, or labels and rows differ in number."""
    if not (source / "train").is_dir():
        raise DataError(f"{source} has no folder train. Point `source` at ServerMachineDataset, with train, test and test_label in it")
    for path in files_of(source / "train"):
        machine = path.stem
        for part in ("test", "test_label"):
            if not (source / part / path.name).is_file():
                raise DataError(f"{source / part / path.name} is missing, which belongs to {path}")
        train, test, label = (_values(source / part / path.name) for part in ("train", "test", "test_label"))
        if len(label) != len(test):
            raise DataError(f"{machine}: {len(test)} test rows but {len(label)} labels. Fetch the files again")
        label = (label[:, 0] != 0).astype(np.int8)
        regions = _regions(source / "interpretation_label" / path.name, label)
        yield _recording("train", machine, train, None, (), len(train), interval_s)
        yield _recording("test", machine, test, label, regions, 0, interval_s)


def _values(path: Path) -> np.ndarray:
    return read_columns(path, time="", label="", separator="," if "," in path.open().readline() else ";").values


def _recording(
    name: str, machine: str, values: np.ndarray, label: Labels | None, regions: tuple[Region, ...], train_steps: int, interval_s: float
) -> Recording:
    variables = tuple(f"metric_{number}" for number in range(1, values.shape[1] + 1))
    return Recording(name, machine, variables, values, label, np.arange(len(values)) * interval_s, regions, train_steps, ABOUT)


def _regions(path: Path, label: Labels) -> tuple[Region, ...]:
    """The runs of the label, each with the metrics of the lines that reach into it."""
    lines = path.read_text(encoding="utf-8").split() if path.is_file() else []
    said = [[int(number) for number in re.findall(r"\d+", line)] for line in lines]
    found = []
    for start, stop in runs_of(label):
        metrics = sorted({metric for first, last, *metrics in said if first < stop and last >= start for metric in metrics})
        found.append(Region(start, stop, "anomaly", tuple(f"metric_{metric}" for metric in metrics)))
    return tuple(found)
