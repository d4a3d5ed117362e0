"""From what was redrawn to one score a step.

Two quantities of a step come from the windows that hide it: how far the redrawn values are from the true ones, and how far the student is from the
teacher. `fixed`, `adaptive` and `normalised` add their squares with different weights. `multiscale` looks at the signed error instead: hidden steps
are redrawn from their surroundings, so that on normal data the error is noise around 0, and a shift of many small steps that no single one shows is
plain in their mean. It takes the mean and the spread of the error over windows of several lengths, whitens each over the variables with what normal
validation data shows, and adds the squared lengths.

All statistics come from normal validation data alone and are buffers.

T time steps, V variables, S lengths, F statistics of a step (V means, and V spreads where the length is at least SPREAD_FROM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

ScoreMode = Literal["fixed", "adaptive", "normalised", "multiscale"]
MAD = 1.4826  # makes the median absolute deviation of normal data its standard deviation
SPREAD_FROM = 10  # steps, for a spread to be worth measuring
RIDGE = 0.02  # of the variances, added to a covariance before it is inverted
CLIP = 3.0  # robust deviations; single bursts of normal data would drown what the spread is to show
LEAST = 1e-4  # variance of a standardised error that counts as no movement


class Errors(NamedTuple):
    """Means over the windows that hid a step; NaN where none did."""

    signed: Tensor  # (T, V) true - redrawn
    squared: Tensor  # (T, V) of the same
    discrepancy: Tensor  # (T, V) (teacher - student) squared


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


class Multiscale(nn.Module):
    """Squared length of the whitened mean of the signed error, and of the log of its spread, over windows centred on each step."""

    def __init__(self, lengths: Sequence[int], spread_weight: float) -> None:
        """lengths: of the windows in steps. spread_weight: of the spreads beside the means; 0 leaves them out."""
        super().__init__()
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths must name at least one window of at least one step, got {list(lengths)}")
        self.lengths, self.weights = tuple(lengths), (1.0, spread_weight)
        self.spread_lengths = tuple(length for length in lengths if length >= SPREAD_FROM) if spread_weight else ()
        self.register_buffer("centre", torch.empty(0))  # (V,)
        self.register_buffer("deviation", torch.empty(0))  # (V,)
        for name in ("level", "liveliness"):
            self.register_buffer(f"{name}_middle", torch.empty(0))  # (S, V)
            self.register_buffer(f"{name}_whiten", torch.empty(0))  # (S, V, V), scaled so that the squared length has the median 1

    @property
    def reach(self) -> int:
        """A score depends on the errors of so many steps on either side."""
        return max(self.lengths) // 2

    def fit(self, normal: Sequence[Tensor]) -> Self:
        """normal: signed errors of normal stretches, (T, V) each."""
        every = torch.cat(list(normal))
        self.centre = every.median(0).values
        self.deviation = (MAD * (every - self.centre).abs().median(0).values).clamp(min=1e-6)
        shares = [self._shared(part) for part in normal]
        self.level_middle, self.level_whiten = _whitening([[moving_mean(part, length) for part in shares] for length in self.lengths])
        if self.spread_lengths:
            measured = [[log_spread(part, length) for part in shares] for length in self.spread_lengths]
            self.liveliness_middle, self.liveliness_whiten = _whitening(measured)
        return self

    def forward(self, signed: Tensor) -> Tensor:
        """(T, V) signed errors to the part of each variable in the score, (T, V) >= 0; their sum is the score."""
        shared = self._shared(signed)
        parts = _squares([moving_mean(shared, length) for length in self.lengths], self.level_middle, self.level_whiten)
        if not self.spread_lengths:
            return parts
        spreads = [log_spread(shared, length) for length in self.spread_lengths]
        return parts + self.weights[1] * _squares(spreads, self.liveliness_middle, self.liveliness_whiten)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _shared(self, signed: Tensor) -> Tensor:
        return (signed - self.centre) / self.deviation


def moving_mean(series: Tensor, length: int) -> Tensor:
    """(T, V) means over `length` steps centred on each step, or over those of them that there are."""
    steps = len(series)
    total = torch.cat([series.new_zeros(1, series.shape[1], dtype=torch.float64), series.double().cumsum(0)])
    first = (torch.arange(steps, device=series.device) - length // 2).clamp(min=0)
    stop = (torch.arange(steps, device=series.device) - length // 2 + length).clamp(max=steps)
    return ((total[stop] - total[first]) / (stop - first)[:, None]).float()


def log_spread(series: Tensor, length: int) -> Tensor:
    """(T, V) log variance over `length` steps centred on each step; a sensor that stands still has a very low one."""
    series = series.clamp(-CLIP, CLIP)
    return (moving_mean(series.square(), length) - moving_mean(series, length).square()).clamp(min=LEAST).log()


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
