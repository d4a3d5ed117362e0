"""Windows over signals: views, not copies, until a batch of them is taken. No window reaches over the end of a segment.

B windows of a batch, L steps of a window, V variables.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from enum import IntEnum

import torch
from torch import Tensor

from stages.timeseries.detector import Stretch
from stages.types import Batch

WINDOWS_AT_ONCE = 256  # what iteration and scoring hold in memory


class Kind(IntEnum):
    """What a window is a sample of, when its last steps are asked about."""

    PURE_NORMAL = 0  # no anomalous step
    DISTURBING_NORMAL = 1  # anomalous steps, none of them among the last: label 0
    ANOMALY = 2  # anomalous steps among the last


def views(values: Tensor, length: int, stride: int = 1) -> Tensor:
    """(W, L, V) windows that start at 0, stride, 2 * stride, ... and lie within (T, V) values; none where T < length."""
    if len(values) < length:
        return values.new_empty(0, length, *values.shape[1:])
    return values.unfold(0, length, stride).movedim(-1, 1)


def lengthened(values: Tensor, length: int) -> Tensor:
    """At least `length` steps: the first one is repeated in front where there are fewer."""
    missing = length - len(values)
    return values if missing <= 0 else torch.cat([values[:1].expand(missing, *values.shape[1:]), values])


def kinds(label: Tensor, length: int, stride: int, mask_last_n: int) -> Tensor:
    """(W,) int64, the Kind of each window over (T,) labels."""
    window = views(label.bool(), length, stride)
    ends, within = window[:, -mask_last_n:].any(1), window.any(1)
    return torch.where(ends, Kind.ANOMALY, torch.where(within, Kind.DISTURBING_NORMAL, Kind.PURE_NORMAL))


class Windows:
    """The windows of several stretches as samples of the training loop, in order of stretch and start.

    A batch has the features `window` (B, L, V) and, where the stretches are labelled, `label` (B, L) int8. Stretches shorter than a window give none,
    unless all are: then each gives one, its first step repeated in front.
    """

    def __init__(self, stretches: Sequence[Stretch], length: int, stride: int) -> None:
        if length < 1 or stride < 1:
            raise ValueError(f"a window and its stride are at least one step, got {length} and {stride}")
        used = [stretch for stretch in stretches if len(stretch.values) >= length]
        if not used:
            used = [_lengthened(stretch, length) for stretch in stretches if len(stretch.values)]
        self._values = [views(stretch.values, length, stride) for stretch in used]
        labels = [stretch.label for stretch in used]
        self._labels = None if not used or any(label is None for label in labels) else [views(label, length, stride) for label in labels]
        self._ends = list(itertools.accumulate(len(windows) for windows in self._values))
        self.samples = self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, WINDOWS_AT_ONCE):
            yield self.take(list(range(start, min(start + WINDOWS_AT_ONCE, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        """Copies of the windows at these positions, in this order."""
        places = [self._place(position) for position in positions]
        features = {"window": torch.stack([self._values[stretch][start] for stretch, start in places])}
        if self._labels is not None:
            features["label"] = torch.stack([self._labels[stretch][start] for stretch, start in places])
        label = features["label"].amax(1).long() if "label" in features else torch.zeros(len(places), dtype=torch.int64)
        return Batch(features, label, None, [f"{stretch}:{start}" for stretch, start in places], [""] * len(places))

    def _place(self, position: int) -> tuple[int, int]:
        if not 0 <= position < self.samples:
            raise IndexError(f"there are {self.samples} windows, asked for number {position}")
        stretch = bisect.bisect_right(self._ends, position)
        return stretch, position - (self._ends[stretch - 1] if stretch else 0)


def _lengthened(stretch: Stretch, length: int) -> Stretch:
    return Stretch(lengthened(stretch.values, length), None if stretch.label is None else lengthened(stretch.label, length))
