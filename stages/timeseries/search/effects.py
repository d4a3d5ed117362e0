"""What a search teaches beside its winner: whether the quick stage ranks as the full one does, and which factors matter.

The main effect of a factor is eta squared, the share of the variance of a figure over all combinations that the means of the factor's levels account
for (Fisher, "Statistical Methods for Research Workers", 1925). It is never below 0, so a factor that does nothing shows about
(levels - 1) / (combinations - 1): that figure stands beside it as `luck`. Intervals are percentiles over combinations drawn with replacement, widened
to hold the value; draws in which nothing varies are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.bootstrap import N_RESAMPLES, Draws, Interval
from stages.metrics.inputs import Floats, Undefined
from stages.seed import numpy_generator


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Kendall's tau-b, -1..1, of two rankings of the same things. first, second: (N,). Raises Undefined where one of them ranks nothing."""
    once = np.ones((1, len(np.asarray(first))))
    return float(_defined(_taus(_signs(first), _signs(second), once), "all values of a ranking are equal")[0])


def agreement(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Interval:
    """`kendall_tau` with its interval over the things that are ranked."""
    value, times = kendall_tau(first, second), _drawn(len(np.asarray(first)), seed)
    return Draws(value, _defined(_taus(_signs(first), _signs(second), times), "no draw has an order")).interval


def eta_squared(levels: ArrayLike, values: ArrayLike) -> float:
    """Share of the variance of `values` between the means of its levels, 0..1; both (N,). Raises Undefined where nothing varies."""
    _, level = np.unique(np.asarray(levels), return_inverse=True)
    return float(_defined(_eta_squared(level, np.asarray(values, float), np.ones((1, len(level)))), "all values are equal")[0])


def main_effects(rows: Sequence[Mapping[str, Any]], factors: Sequence[str], figure: str, seed: int = 0) -> dict[str, Any]:
    """For each factor: eta_squared with its interval, luck, and the mean of each level. rows: the levels and the figure of each combination."""
    values, times = np.array([row[figure] for row in rows]), _drawn(len(rows), seed)
    effects = {}
    for factor in factors:
        names, level = np.unique([str(row[factor]) for row in rows], return_inverse=True)
        samples = _defined(_eta_squared(level, values, times), "all values are equal")
        effects[factor] = {
            "eta_squared": Draws(eta_squared(level, values), samples).interval._asdict(),
            "luck": (len(names) - 1) / (len(rows) - 1),
            "levels": {str(name): float(values[level == place].mean()) for place, name in enumerate(names)},
        }
    return effects


def _drawn(count: int, seed: int) -> Floats:
    """How often each of `count` things is drawn in each resample, (R, count)."""
    generator = numpy_generator(seed, "search", "effects")
    return generator.multinomial(count, np.full(count, 1 / count), N_RESAMPLES).astype(float)


def _signs(values: ArrayLike) -> Floats:
    """(N, N) which of two is the greater: 1, 0 or -1."""
    values = np.asarray(values, float)
    return np.sign(np.subtract.outer(values, values))


def _taus(first: Floats, second: Floats, times: Floats) -> Floats:
    """tau-b of each row of `times` (R, N), a thing drawn twice being tied with itself; NaN where nothing is ordered."""
    agree, one, other = (np.einsum("rn,nm,rm->r", times, signs, times) for signs in (first * second, first**2, second**2))
    with np.errstate(invalid="ignore"):
        return agree / np.sqrt(one * other)


def _eta_squared(level: NDArray[np.intp], values: Floats, times: Floats) -> Floats:
    """eta squared of each row of `times` (R, N); NaN where nothing varies. level: (N,) counted from 0."""
    member = np.eye(level.max() + 1)[level]  # (N, L)
    count, total = times @ member, times @ (member * values[:, None])  # (R, L)
    mean = total.sum(1) / count.sum(1)
    between = (count * (total / np.maximum(count, 1) - mean[:, None]) ** 2).sum(1)
    around = (times * (values - mean[:, None]) ** 2).sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(around > 1e-12 * (times * values**2).sum(1), between / around, np.nan)


def _defined(samples: Floats, otherwise: str) -> Floats:
    """Those that are numbers. Raises Undefined, saying `otherwise`, where there are none."""
    kept = samples[~np.isnan(samples)]
    if not len(kept):
        raise Undefined(f"{otherwise}: there is nothing to compare")
    return kept
