"""What an adapter of signals returns, and what a detector of signals is given.

A recording is what one file or one machine said over time. A row of it says what the data set's authors say and nothing more: no label where nobody
labelled, no split where they fixed none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
Labels = NDArray[np.int8]


class Region(NamedTuple):
    """One known anomaly: the steps start .. stop - 1 of its recording."""

    start: int
    stop: int
    kind: str  # "spike", "memory_leak", ...; "anomaly" where nobody said
    variables: tuple[str, ...] = ()  # those that show it; empty where nobody said
    magnitude: float | None = None  # in the unit of the generator; None where nobody said


class Recording(NamedTuple):
    """T steps of V variables in their own units."""

    name: str  # unique in its category
    category: str  # what one model is fitted for: a machine, a rig, a difficulty
    variables: tuple[str, ...]
    values: Values  # (T, V); NaN where a value is missing
    label: Labels | None  # (T,) 1 = anomalous; None where nobody labelled
    time_s: NDArray[np.float64] | None = None  # (T,) seconds since any origin; None where rows alone give the order
    regions: tuple[Region, ...] = ()  # what is known of the anomalies beyond the label
    train_steps: int | None = None  # the first steps, which the data set gives for training; None: the protocol's share
    about: Mapping[str, Any] = MappingProxyType({})


class Segment(NamedTuple):
    """An unbroken stretch of one recording within one split: no window reaches over its ends."""

    recording: str  # "<category>/<name>"
    start: int  # the recording's step that its first row is
    values: Values  # (T, V), raw
    label: Labels | None  # (T,)

    @property
    def steps(self) -> int:
        return len(self.values)


def label_of(regions: Iterable[Region], steps: int) -> Labels:
    """(steps,) 1 within the regions."""
    label = np.zeros(steps, np.int8)
    for region in regions:
        label[region.start : region.stop] = 1
    return label


def runs_of(label: NDArray[Any]) -> list[tuple[int, int]]:
    """The stretches (start, stop) where `label` is not 0, in order."""
    edges = np.diff(np.r_[0, np.asarray(label) != 0, 0].astype(np.int8))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist()))
