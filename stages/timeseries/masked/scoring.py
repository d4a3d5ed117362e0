"""From what was redrawn to one score a step.

Two quantities of a step come from the windows that hide it: how far the redrawn values are from the true ones, and how far the student is from the
teacher. `fixed`, `adaptive` and `normalised` add their squares with different weights. `multiscale` looks at the signed error instead: hidden steps
are redrawn from their surroundings, so that on normal data the error is noise around 0, and a shift of many small steps that no single one shows is
plain in their mean. It takes the mean of the error over windows of several lengths and, as liveliness, the logs of the variance of the error and of the
mean squared change of the values from step to step, whitens each over the variables with what normal validation data shows, and adds the squared lengths.

All statistics come from normal validation data alone and are buffers.

T time steps, V variables, S lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from stages.types import Resizing

ScoreMode = Literal["fixed", "adaptive", "normalised", "multiscale"]
MAD = 1.4826  # makes the median absolute deviation of normal data its standard deviation
LIVELY_FROM = 10  # steps, for a variance to be worth measuring
RIDGE = 0.02  # of the variances, added to a covariance before it is inverted
CLIP = 3.0  # robust deviations; single bursts of normal data would drown what the spread is to show
LEAST = 1e-2, 1e-4  # what counts as no movement: variance of the error, squared change of the values


class Errors(NamedTuple):
    """Means over the windows that hid a step; NaN where none did."""

    signed: Tensor  # (T, V) true - redrawn
    squared: Tensor  # (T, V) of the same
    discrepancy: Tensor  # (T, V) (teacher - student) squared
    values: Tensor | None = None  # (T, V) what was redrawn; the mode `multiscale` looks at it too


def components(squared: Tensor, discrepancy: Tensor) -> Tensor:
    """(T, V) each to (T, 2): reconstruction and discrepancy, means over the variables."""
    return torch.stack([squared.mean(1), discrepancy.mean(1)], dim=1)


class Calibration(nn.Module):
    """mean, median and spread of the two components on normal data, and the weights that follow from them."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("mean", "middle", "spread"):
            self.register_buffer(name, torch.tensor([0.0, 0.0] if name != "spread" else [1.0, 1.0]))

    def fit(self, components: Tensor) -> Self:
        """components: (T, 2), reconstruction and discrepancy of normal steps."""
        self.mean = components.mean(0)
        self.middle = components.median(0).values
        self.spread = (MAD * (components - self.middle).abs().median(0).values).clamp(min=1e-12)
        return self

    def combined(self, components: Tensor, mode: ScoreMode, weight: float) -> Tensor:
        """(T, 2) to (T,). weight: of the discrepancy in the mode `fixed`."""
        reconstruction, discrepancy = components.unbind(1)
        if mode == "fixed":
            return reconstruction + weight * discrepancy
        if mode == "adaptive":
            return reconstruction + self.mean[0] / self.mean[1].clamp(min=1e-12) * discrepancy
        return ((components - self.middle) / self.spread).sum(1)


class Multiscale(Resizing):
    """Squared lengths of the whitened means of the signed error, and of the whitened liveliness, over windows centred on each step."""

    def __init__(self, lengths: Sequence[int], liveliness_weight: float) -> None:
        """lengths: of the windows in steps. liveliness_weight: beside the means; 0 leaves it out."""
        super().__init__()
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths must name at least one window of at least one step, got {list(lengths)}")
        self.lengths, self.weight = tuple(lengths), liveliness_weight
        self.lively_lengths = tuple(length for length in lengths if length >= LIVELY_FROM) if liveliness_weight else ()
        for name in ("centre", "deviation", "pace"):  # (V,): of the errors, robust; of the changes of the values
            self.register_buffer(name, torch.empty(0))
        for name in ("level", "liveliness"):  # of V and of 2 V values
            self.register_buffer(f"{name}_middle", torch.empty(0))  # (S, V)
            self.register_buffer(f"{name}_whiten", torch.empty(0))  # (S, V, V), scaled so that the squared length has the median 1

    @property
    def reach(self) -> int:
        """A score depends on the errors of so many steps on either side; one more than half a window, for the change that leads into it."""
        return max(self.lengths) // 2 + 1

    def fit(self, normal: Sequence[Errors]) -> Self:
        """normal: what was found on stretches of normal data."""
        signed = torch.cat([one.signed for one in normal])
        self.centre = signed.median(0).values
        self.deviation = _deviation(signed - self.centre)
        self.pace = _deviation(torch.cat([changes(one.values) for one in normal]))
        self.level_middle, self.level_whiten = _whitening([[self._level(one, length) for one in normal] for length in self.lengths])
        if self.lively_lengths:
            measured = [[self._liveliness(one, length) for one in normal] for length in self.lively_lengths]
            self.liveliness_middle, self.liveliness_whiten = _whitening(measured)
        return self

    def forward(self, found: Errors) -> Tensor:
        """The part of each variable in the score of each step, (T, V) >= 0; their sum is the score."""
        parts = _squares([self._level(found, length) for length in self.lengths], self.level_middle, self.level_whiten)
        if not self.lively_lengths:
            return parts
        measured = [self._liveliness(found, length) for length in self.lively_lengths]
        lively = _squares(measured, self.liveliness_middle, self.liveliness_whiten)  # (T, 2 V)
        return parts + self.weight * lively.unflatten(1, (2, -1)).sum(1)

    def _level(self, found: Errors, length: int) -> Tensor:
        return moving_mean((found.signed - self.centre) / self.deviation, length)

    def _liveliness(self, found: Errors, length: int) -> Tensor:
        """(T, 2 V) logs. The change of a sensor that stands still is 0, also where what was expected of it moves."""
        error = ((found.signed - self.centre) / self.deviation).clamp(-CLIP, CLIP)
        variance = moving_mean(error.square(), length) - moving_mean(error, length).square()
        change = moving_mean((changes(found.values) / self.pace).clamp(-CLIP, CLIP).square(), length)
        return torch.cat([part.clamp(min=least) for part, least in zip((variance, change), LEAST, strict=True)], dim=1).log()


def changes(values: Tensor) -> Tensor:
    """(T, V) from the step before; the first step has none of its own and takes that of the second."""
    if len(values) < 2:
        return torch.zeros_like(values)
    change = values.diff(dim=0)
    return torch.cat([change[:1], change])


def moving_mean(series: Tensor, length: int) -> Tensor:
    """(T, V) means over `length` steps centred on each step, or over those of them that there are."""
    steps = len(series)
    total = torch.cat([series.new_zeros(1, series.shape[1], dtype=torch.float64), series.double().cumsum(0)])
    first = (torch.arange(steps, device=series.device) - length // 2).clamp(min=0)
    stop = (torch.arange(steps, device=series.device) - length // 2 + length).clamp(max=steps)
    return ((total[stop] - total[first]) / (stop - first)[:, None]).float()


def _deviation(centred: Tensor) -> Tensor:
    return (MAD * centred.abs().median(0).values).clamp(min=1e-6)


def _squares(measured: list[Tensor], middle: Tensor, whiten: Tensor) -> Tensor:
    """(T, V): whitened squares, a mean over the lengths."""
    return torch.stack([((one - at) @ root).square() for one, at, root in zip(measured, middle, whiten, strict=True)]).mean(0)


def _whitening(measured: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Medians (S, V) and symmetric inverse roots of the covariances (S, V, V) of what normal stretches show at each length."""
    middles, roots = [], []
    for parts in measured:
        every = torch.cat(parts).double()
        middle = every.median(0).values
        centred = every - middle
        covariance = centred.T @ centred / len(every)
        covariance += torch.diag(RIDGE * covariance.diagonal() + 1e-9)
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors @ torch.diag(values.rsqrt()) @ vectors.T  # symmetric: each variable keeps its name
        typical = (centred @ root).square().sum(1).median()
        middles.append(middle.float())
        roots.append((root / typical.sqrt()).float())
    return torch.stack(middles), torch.stack(roots)
