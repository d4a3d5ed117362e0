"""What may enter a metric: finite scores and 0/1 labels of equal length. Checked once, where data enters."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Undefined(ValueError):
    """The metric has no value for this input; the message says why. Shown as n/a with that reason, never as 0 or NaN."""


def checked_scores(score: ArrayLike, what: str = "score") -> Floats:
    """(N,) float64, finite and not empty."""
    values = np.asarray(score, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{what} must have shape (N,), got {values.shape}")
    if not values.size:
        raise Undefined(f"no {what}: there is nothing to measure")
    check_finite(values, what)
    return values


def checked_pair(score: ArrayLike, label: ArrayLike) -> tuple[Floats, Flags]:
    """(N,) finite scores and (N,) labels as booleans, True = anomalous."""
    values = checked_scores(score)
    return values, checked_label(label, len(values))


def checked_label(label: ArrayLike, size: int) -> Flags:
    """(N,) booleans from labels that are 0 or 1 and nothing else."""
    given = np.asarray(label)
    if given.shape != (size,):
        raise ValueError(f"label must have shape ({size},) as the scores have, got {given.shape}")
    anomalous = given == 1
    if not np.all(anomalous | (given == 0)):
        raise ValueError(
            f"labels must be 0 (normal) or 1 (anomalous), got {given[~(anomalous | (given == 0))][0]!r}; leave unlabelled samples out"
        )
    return anomalous


def check_finite(values: NDArray, what: str) -> None:
    if not np.isfinite(values).all():
        bad = np.argwhere(~np.isfinite(values))
        raise ValueError(
            f"{what} must be finite, got {len(bad)} NaN or infinite values, the first at index {tuple(bad[0].tolist())}; look at the model"
        )


def require_both_classes(anomalous: Flags, unit: str = "image") -> None:
    """Refuse a set with one class: ranking metrics compare anomalous with normal."""
    if not anomalous.any():
        raise Undefined(f"no anomalous {unit} among {anomalous.size}: there is nothing to find")
    if anomalous.all():
        raise Undefined(f"no normal {unit} among {anomalous.size}: false alarms cannot be counted")
