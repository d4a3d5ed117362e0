"""PSM, Pooled Server Metrics: 25 metrics of an application's servers, a row a minute.

    train.csv  test.csv      timestamp_(min), feature_0, ...; cells of train may be empty
    test_label.csv           timestamp_(min), label

Ahmed Abdulaal et al., Practical Approach to Asynchronous Multivariate Time Series Anomaly Detection, KDD 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.datasets.recordings import Recording
from stages.datasets.samples import DataError
from stages.datasets.signal_file import read_columns

ABOUT = {"name": "PSM", "licence": "CC BY 4.0", "citation": "Abdulaal, Liu and Lancewicki, KDD 2021"}
MINUTES = "timestamp_(min)"


def read(source: Path, *, category: str = "psm") -> Iterator[Recording]:
    """Two recordings, train and test. Raises DataError where a file is missing, or the times of test and its labels differ."""
    for name in ("train.csv", "test.csv", "test_label.csv"):
        if not (source / name).is_file():
            raise DataError(f"{source} has no {name}. Point `source` at the folder that holds train.csv, test.csv and test_label.csv")
    train, test = (read_columns(source / name, time=MINUTES, label="") for name in ("train.csv", "test.csv"))
    said = read_columns(source / "test_label.csv", time=MINUTES, label="")
    if not np.array_equal(said.time_s, test.time_s):
        raise DataError(f"{source}: test.csv and test_label.csv are not of the same minutes. Fetch them again")
    label = (said.values[:, 0] != 0).astype(np.int8)
    yield Recording("train", category, train.variables, train.values, None, train.time_s * 60, train_steps=len(train.values), about=ABOUT)
    yield Recording("test", category, test.variables, test.values, label, test.time_s * 60, train_steps=0, about=ABOUT)
