"""Scores while rows arrive: the same as of the whole series, `future` steps late, from as many rows as one score can depend on.

A detector says how far a score looks back and ahead and where its windows may start (`past`, `future`, `stride`). So the rows from `past` before the
next step to score, down to a multiple of the stride, are all that has to be kept, and with the last value of every variable, which stands in for
missing ones, they are the whole state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stages.timeseries.detector import SeriesDetector
from stages.types import NotFitted


class StepScore(NamedTuple):
    step: int  # counted from the first row pushed
    score: float
    added: Tensor | None  # (V,) what each variable adds; None where nobody asked or the method cannot say


class Stream:
    """One series as it arrives. Rows kept: at most past + future + stride + every.

    every: score in runs of so many steps, which costs less for a detector whose windows are dear, and makes a score late by up to every - 1 more.
    explain: also what the variables add.
    """

    def __init__(self, detector: SeriesDetector, *, every: int = 1, explain: bool = False) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if detector.centre.numel() == 0:
            raise NotFitted(f"{type(detector).__name__} has learnt nothing yet: fit or load it before a stream is scored")
        self.detector, self.every, self.explain = detector, every, explain
        self.variables = len(detector.centre)
        self.rows = torch.empty(0, self.variables)  # of the steps from `start`, gaps filled
        self.last = torch.full((self.variables,), torch.nan)  # the last finite value of each variable
        self.start, self.scored = 0, 0  # the step of the first row kept; the next step to score

    @property
    def seen(self) -> int:
        """How many rows were pushed."""
        return self.start + len(self.rows)

    def push(self, row: Sequence[float] | Tensor) -> list[StepScore]:
        """The steps whose score is now known, in order. row: (V,) in the units of train, NaN where missing."""
        values = torch.as_tensor(row, dtype=torch.float32).cpu()
        if values.shape != (self.variables,):
            raise ValueError(f"expected a row of {self.variables} values, as many variables as in training, got {tuple(values.shape)}")
        known = ((values - self.detector.centre.cpu()) / self.detector.spread.cpu()).isfinite()
        self.last = torch.where(known, values, self.last)
        self.rows = torch.cat([self.rows, self.last[None]])
        ready = self.seen - self.detector.future
        return self._score(ready) if ready - self.scored >= self.every else []

    def flush(self) -> list[StepScore]:
        """The steps that still wait for their future, judged by what there is, as at the end of a stored series. More rows may follow."""
        return self._score(self.seen) if self.scored < self.seen else []

    def state(self) -> dict[str, Tensor]:
        """All that a later stream of the same detector needs to go on: plain tensors."""
        return {
            "rows": self.rows.clone(),
            "last": self.last.clone(),
            "place": torch.tensor([self.start, self.scored]),
            "reach": self._reach(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave. Raises ValueError where it is that of another detector."""
        if state.keys() != self.state().keys() or state["last"].shape != self.last.shape or not torch.equal(state["reach"], self._reach()):
            raise ValueError("this is the state of a stream of another detector; start without it")
        self.rows, self.last = state["rows"].clone(), state["last"].clone()
        self.start, self.scored = state["place"].tolist()

    def _reach(self) -> Tensor:
        return torch.tensor([self.detector.past, self.detector.future, self.detector.stride])

    def _score(self, ready: int) -> list[StepScore]:
        """Of the steps from the first unscored one up to `ready`; then forget the rows that no later score depends on."""
        due = slice(self.scored - self.start, ready - self.start)
        scores = self.detector.score(self.rows)[due].tolist()
        added = self.detector.attribution(self.rows) if self.explain else None
        parts = [None] * len(scores) if added is None else added[due].cpu()
        found = [StepScore(step, score, part) for step, score, part in zip(range(self.scored, ready), scores, parts)]
        stride = self.detector.stride
        keep = max(0, (ready - self.detector.past) // stride * stride)
        self.rows, self.start, self.scored = self.rows[keep - self.start :].clone(), keep, ready
        return found
