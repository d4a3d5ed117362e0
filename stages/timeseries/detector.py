"""The contract of a detector of signals: raw values in, one score a step out.

T steps, V variables. Normalisation belongs to the model: it is learnt from the training segments alone, stored with it, and the same for a stored
series, a stream and an export. A subclass sees standardised values without gaps and defines `learn` and `rate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
from torch import Tensor

from stages.datasets.recordings import Segment
from stages.types import NotFitted, Refusal, Resizing

if TYPE_CHECKING:
    from stages.training import Run

UNSUPERVISED = ("unsup-clean", "unsup-contaminated")
REGIMES = (*UNSUPERVISED, "weak", "synth-erase")  # what a fit may know of the anomalies in its training data


class Stretch(NamedTuple):
    """A segment as a detector sees it."""

    values: Tensor  # (T, V) float32, standardised, without gaps
    label: Tensor | None  # (T,) int8; None but in the regime `weak`


class Reading(NamedTuple):
    """All that a detector says of the same steps, see the methods of these names."""

    score: Tensor
    attribution: Tensor | None
    components: dict[str, Tensor]


class SeriesDetector(Resizing):
    """Everything learnt is a parameter or a buffer, so `state_dict()` is the whole model.

    Buffers that `learn` creates are registered empty in `__init__`; they take the size of what is loaded.
    """

    regimes: tuple[str, ...] = UNSUPERVISED
    past: int = 0  # the score of a step depends on so many steps before it ...
    future: int = 0  # ... and after it: what a stream has to wait for
    stride: int = 1  # windows start at multiples of it, counted from the start of a segment

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.empty(0))
        self.register_buffer("spread", torch.empty(0))

    def fit(self, train: Sequence[Segment], val: Sequence[Segment], run: Run) -> Self:
        """Learn from the training segments. val: held-out normal segments, may be empty; thresholds come from others, which no fit sees.

        Labels in `train` are there only in the regime `weak`. Raises Refusal where there is nothing to learn from.
        """
        if not any(segment.steps for segment in train):
            raise Refusal("there is no step to learn from")
        self._learn_scale(train)
        self.learn(*([self._stretch(segment) for segment in segments] for segments in (train, val)), run)
        return self.eval()

    @torch.no_grad()
    def score(self, values: Tensor) -> Tensor:
        """Higher is more anomalous, raw and unbounded, (T,) float32. values: (T, V) in the units of train, NaN where missing; any T >= 1."""
        return self.rate(self.standardised(values)).float()

    @torch.no_grad()
    def attribution(self, values: Tensor) -> Tensor | None:
        """What each variable adds to the score of a step, (T, V) >= 0; None where the method cannot say."""
        return None

    @torch.no_grad()
    def components(self, values: Tensor) -> dict[str, Tensor]:
        """Scores of the same steps by parts of the method alone, (T,) each, to see what each is worth; none where it has no parts."""
        return {}

    @torch.no_grad()
    def read(self, values: Tensor) -> Reading:
        """Score, attribution and components of the same steps; a detector for which they have a costly part in common works it out once."""
        return Reading(self.score(values), self.attribution(values), self.components(values))

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        raise NotFitted(f"{type(self).__name__} does not define learn")

    def rate(self, values: Tensor) -> Tensor:
        """(T, V) standardised to (T,)."""
        raise NotFitted(f"{type(self).__name__} does not define rate")

    def standardised(self, values: Tensor) -> Tensor:
        """(T, V) float32: mean 0 and deviation 1 on train, a missing value as the last one seen (at the start: the mean)."""
        if self.centre.numel() == 0:
            raise NotFitted(f"{type(self).__name__} has learnt nothing yet: call fit(train, val, run) or load_state_dict first")
        if values.ndim != 2 or values.shape[1] != len(self.centre):
            raise ValueError(f"expected (T, {len(self.centre)}) values, as many variables as in training, got {tuple(values.shape)}")
        return filled((values.to(self.centre) - self.centre) / self.spread)

    def _learn_scale(self, train: Sequence[Segment]) -> None:
        """Mean and standard deviation of each variable; one that never moves keeps its own unit, so that a later move shows."""
        values = torch.cat([torch.from_numpy(segment.values) for segment in train]).double()
        centre = values.nanmean(0)
        if not centre.isfinite().all():
            raise Refusal(f"variable {int((~centre.isfinite()).nonzero()[0, 0])} (counted from 0) has no finite value in the training data")
        spread = (values - centre).square().nanmean(0).sqrt()
        self.centre = centre.float()
        self.spread = torch.where(spread > 1e-6 * centre.abs().clamp(min=1e-6), spread, 1.0).float()

    def _stretch(self, segment: Segment) -> Stretch:
        label = None if segment.label is None else torch.from_numpy(segment.label)
        return Stretch(self.standardised(torch.from_numpy(segment.values)), label)


def filled(values: Tensor) -> Tensor:
    """(T, V) with every value that is not finite replaced by the last finite one before it, or 0 where there is none."""
    known = values.isfinite()
    if known.all():
        return values
    steps = torch.arange(len(values), device=values.device)[:, None].expand_as(values)
    last = torch.where(known, steps, -1).cummax(0).values
    return torch.where(last >= 0, values.gather(0, last.clamp(min=0)), 0.0)
