"""SKAB, the Skoltech Anomaly Benchmark: a water circuit with eight sensors, one row a second, whose valve is closed for a while (valve1).

    anomaly-free/anomaly-free.csv     9,405 steps of normal work
    valve1/0.csv ... 15.csv           about 1,150 steps each, one anomaly in each

Two protocols are published: a model for each file, learnt on its first 400 points; or one for all, learnt on the anomaly-free recording. The files are
under the GNU GPL v3: they are read where they lie and never shipped with Assay. Iurii D. Katser and Vyacheslav O. Kozitsin, Skoltech Anomaly
Benchmark, https://doi.org/10.34740/KAGGLE/DSV/1693952.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from stages.datasets.recordings import Recording
from stages.datasets.samples import DataError
from stages.datasets.signal_folder import files_of, recording

FIRST = 400  # steps
ABOUT = {
    "name": "SKAB",
    "licence": "GPL-3.0",
    "citation": "Katser and Kozitsin, Skoltech Anomaly Benchmark, doi:10.34740/KAGGLE/DSV/1693952",
}
OPTIONS = {"time": "datetime", "separator": ";", "decimal": "."}


def read(source: Path, *, train: Literal["first-400", "anomaly-free"] = "first-400", group: str = "valve1") -> Iterator[Recording]:
    """group: the folder of experiments. first-400: every file is a category of its own; anomaly-free: the group is one. Raises DataError."""
    files = files_of(source / group) if (source / group).is_dir() else []
    normal = source / "anomaly-free/anomaly-free.csv"
    if not files or (train == "anomaly-free" and not normal.is_file()):
        raise DataError(f"{source} has no {group}/*.csv beside anomaly-free/anomaly-free.csv. Point `source` at the folder `data` of SKAB")
    if train == "anomaly-free":
        whole = recording(normal, group, normal.stem, None, OPTIONS | {"label": ""})
        steps = len(whole.values)
        yield whole._replace(label=np.zeros(steps, np.int8), train_steps=steps, about=ABOUT)
    for path in files:
        options = OPTIONS | {"label": "anomaly", "drop": ("changepoint",)}
        category, first = (group, 0) if train == "anomaly-free" else (f"{group}-{path.stem}", FIRST)
        yield recording(path, category, path.stem, first, options)._replace(about=ABOUT)
