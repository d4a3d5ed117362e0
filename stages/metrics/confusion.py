"""One confusion matrix and every number that follows from it.

Accuracy, precision, recall, specificity and F1 are properties of the four counts, so they can never disagree with them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.inputs import checked_pair

_WHY_NOT = {
    "accuracy": "no image",
    "precision": "nothing was called anomalous",
    "recall": "no anomalous image",
    "specificity": "no normal image",
    "f1": "no anomalous image, and none was called so",
}


class Confusion(NamedTuple):
    """Counts at one threshold. A ratio of 0 / 0 is None, and `reasons` says why."""

    tp: int
    fn: int
    tn: int
    fp: int

    @property
    def accuracy(self) -> float | None:
        return _ratio(self.tp + self.tn, self.tp + self.fn + self.tn + self.fp)

    @property
    def precision(self) -> float | None:
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """Also called sensitivity, or true positive rate."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float | None:
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def f1(self) -> float | None:
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def rates(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in _WHY_NOT}

    @property
    def reasons(self) -> dict[str, str]:
        """Why each ratio that is None is None."""
        return {name: _WHY_NOT[name] for name, value in self.rates.items() if value is None}


def confusion(score: ArrayLike, label: ArrayLike, threshold: float) -> Confusion:
    """Counts when `score > threshold` is called anomalous. score, label: (N,); one class is enough."""
    values, anomalous = checked_pair(score, label)
    if not np.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, got {threshold}")
    flagged = values > threshold
    return Confusion(
        tp=int((flagged & anomalous).sum()),
        fn=int((~flagged & anomalous).sum()),
        tn=int((~flagged & ~anomalous).sum()),
        fp=int((flagged & ~anomalous).sum()),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
