"""Whether one sample of records looks like another: the population stability index, Kolmogorov-Smirnov, and how large both are by chance.

PSI = sum over bins of (q - p) ln(q / p), p the share of the reference in a bin, q that of what is new (Lewis, "An Introduction to Credit Scoring", 1994;
Siddiqi, "Credit Risk Scorecards", 2006). Its usual reading: below 0.1 the same, 0.1 to 0.25 look at it, above 0.25 another population. That reading knows no
sample size: with n and m independent records and B bins the index of one population is about (B - 1)(1/n + 1/m), its law (1/n + 1/m) chi-squared with B - 1
degrees of freedom (Yurdakul, "Statistical Properties of Population Stability Index", 2018), so 100 records against 100 give 0.18 for nothing. Records of one
session are alike, which makes it larger still. So the bound by chance comes from permutation of whole groups: they are shuffled between both sides, bins are
made anew each time, and 95 % of what that gives lies below the bound. The p of Kolmogorov-Smirnov is had from the same permutations, and adjusted for all
statistics at once by the largest one of each permutation (Westfall & Young, "Resampling-Based Multiple Testing", 1993, single step): it bounds the chance
of any false alarm as Holm's does, and knows that the statistics hang together.

Deviations: bins lie between order statistics of the reference (no interpolation), so that a monotone map changes nothing; a value that fills several
quantiles is a bin of its own, so that shares and constants are seen; an empty bin counts as half a record.

n records of the reference, m new ones, N = n + m, R permutations, G groups.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BINS = 10
PERMUTATIONS = 999
LEVEL = 0.05
SMALL, LARGE = 0.1, 0.25  # of the usual reading
EMPTY = 0.5  # records that an empty bin counts as
STEADY, WATCH, MOVED = "steady", "watch", "moved"
RULE = (
    f"moved: adjusted p at most {LEVEL:g} and PSI at least {SMALL:g}; watch: adjusted p at most {LEVEL:g}, "
    f"or PSI at least {SMALL:g} and above its bound by chance; steady: neither"
)


class Shift(NamedTuple):
    """One statistic on both sides. PSI and KS are NaN where one side has no value."""

    psi: float
    psi_by_chance: float  # 95 % of permutations stay below
    ks: float  # largest distance of the two distribution functions
    ks_p_naive: float  # SciPy's, as if records were independent
    p: float  # by permutation of groups, of this statistic alone
    p_adjusted: float  # likewise, for all statistics at once
    excess: float  # (ks - its mean by chance) / its deviation by chance
    verdict: str


def psi(reference: ArrayLike, new: ArrayLike, bins: int = BINS) -> float:
    """Population stability index of two samples without NaN. Raises ValueError where one is empty."""
    both, is_new = _both(reference, new)
    return float(_psi(_Sorted(both), is_new[None], bins)[0])


def permuted_sides(is_new: Flags, group: ArrayLike, permutations: int, seed: int = 0) -> Flags:
    """(R, N): which records are new when whole groups change sides. As many groups are new as before; a name on both sides is two groups."""
    names = np.array([f"{int(side)} {name}" for side, name in zip(is_new, np.asarray(group))])
    _, first, of_record = np.unique(names, return_index=True, return_inverse=True)
    new_group = np.asarray(is_new)[first]
    draws = np.random.default_rng(seed).permuted(np.tile(new_group, (permutations, 1)), axis=1)
    return draws[:, of_record]


def compare(
    values: Sequence[ArrayLike], is_new: ArrayLike, group: ArrayLike, permutations: int = PERMUTATIONS, bins: int = BINS, seed: int = 0
) -> list[Shift]:
    """What became of each statistic. values: (N,) each, NaN where a record has none; is_new: (N,); group: (N,), what must not be split."""
    from scipy.stats import ks_2samp

    new = np.asarray(is_new, dtype=bool)
    sides = np.concatenate([new[None], permuted_sides(new, group, permutations, seed)])  # the first row is what is
    rows = [np.asarray(value, dtype=np.float64) for value in values]
    indices, distances = (np.full((len(rows), len(sides)), np.nan) for _ in range(2))
    naive = np.full(len(rows), np.nan)
    for place, row in enumerate(rows):
        there = ~np.isnan(row)
        if not (there & new).any() or not (there & ~new).any():
            continue
        ordered, own = _Sorted(row[there]), sides[:, there]
        indices[place], distances[place] = _psi(ordered, own, bins), _ks(ordered, own)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where its exact p cannot be had it takes the asymptotic one, and says so
            naive[place] = ks_2samp(row[there & ~new], row[there & new]).pvalue
    excess, alone, adjusted = _p_values(distances)
    bound = np.array([np.quantile(row[1:][~np.isnan(row[1:])], 1 - LEVEL) if not np.isnan(row[0]) else np.nan for row in indices])
    told = (indices[:, 0], bound, distances[:, 0], naive, alone, adjusted, excess)
    return [Shift(*map(float, one), _verdict(one[0], one[1], one[5])) for one in zip(*told, strict=True)]


def fewest_p(is_new: ArrayLike, group: ArrayLike) -> float:
    """The least p that any permutation of these groups can give: 1 / ways of choosing as many new groups."""
    from math import comb

    new, names = np.asarray(is_new, dtype=bool), np.asarray(group)
    count = len(set(names[new].tolist()))
    return 1 / comb(count + len(set(names[~new].tolist())), count)


def _verdict(index: float, bound: float, p: float) -> str:
    if np.isnan(index):
        return STEADY
    if p <= LEVEL:
        return MOVED if index >= SMALL else WATCH
    return WATCH if index >= SMALL and index > bound else STEADY


def _p_values(distance: Floats) -> tuple[Floats, Floats, Floats]:
    """(S, 1 + R) to (S,) each: the excess of the first column, its p alone and its p among all. NaN rows stay NaN."""
    known = ~np.isnan(distance[:, 0])
    chance = distance[known]
    with np.errstate(invalid="ignore"):
        centre, spread = np.nanmean(chance, axis=1, keepdims=True), np.nanstd(chance, axis=1, keepdims=True)
    standard = np.nan_to_num(
        (chance - centre) / np.where(spread > 0, spread, 1), nan=-np.inf
    )  # a permutation may leave a side without values
    found = [np.full(len(distance), np.nan) for _ in range(3)]
    if known.any():
        largest = standard.max(0)
        found[0][known] = standard[:, 0]
        found[1][known] = (standard >= standard[:, :1] - 1e-12).mean(1)
        found[2][known] = (largest >= standard[:, :1] - 1e-12).mean(1)
    return found[0], found[1], found[2]


class _Sorted:
    """N values in order; `below[i]` and `through[i]` count those that are less than the i-th, and at most as large."""

    def __init__(self, values: Floats) -> None:
        self.order = values.argsort(kind="stable")
        ordered = values[self.order]
        self.below, self.through = np.searchsorted(ordered, ordered, "left"), np.searchsorted(ordered, ordered, "right")

    def cumulative(self, sides: Flags) -> NDArray[np.int64]:
        """(R, N + 1) how many of the first i values are of a side."""
        counts = np.zeros((len(sides), len(self.order) + 1), np.int64)
        np.cumsum(sides[:, self.order], axis=1, out=counts[:, 1:])
        return counts


def _ks(values: _Sorted, is_new: Flags) -> Floats:
    """(R,); NaN where a side is empty."""
    new = values.cumulative(is_new)
    reference = np.arange(new.shape[1]) - new
    at = np.unique(values.through)  # distribution functions are compared between values, not within ties
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(new[:, at] / new[:, -1:] - reference[:, at] / reference[:, -1:]).max(1)


def _psi(values: _Sorted, is_new: Flags, bins: int) -> Floats:
    """(R,); NaN where a side is empty. Bins are cut where the reference of each row has its quantiles."""
    new = values.cumulative(is_new)
    reference = np.arange(new.shape[1]) - new
    size = reference[:, -1:]
    wanted = np.ceil(size * np.arange(1, bins) / bins).clip(min=1)  # (R, bins - 1)
    at = np.stack([(reference[:, 1:] >= wanted[:, place : place + 1]).argmax(1) for place in range(bins - 1)], 1)
    low, high = values.below[at], values.through[at]
    again = np.zeros(high.shape, bool)
    again[:, 1:] |= high[:, 1:] == high[:, :-1]
    again[:, :-1] |= high[:, 1:] == high[:, :-1]
    cuts = np.sort(np.concatenate([np.where(again, low, high), high], 1), axis=1)
    cuts = np.concatenate([np.zeros_like(size), cuts, np.full_like(size, new.shape[1] - 1)], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = (np.diff(np.take_along_axis(side, cuts, 1), axis=1) for side in (reference, new))
        either = (p + q) > 0
        p, q = (np.maximum(side, EMPTY) / total for side, total in ((p, size), (q, new[:, -1:])))
        found = np.where(either, (q - p) * np.log(q / p), 0).sum(1)
    return np.where((size[:, 0] > 0) & (new[:, -1] > 0), found, np.nan)


def _both(reference: ArrayLike, new: ArrayLike) -> tuple[Floats, Flags]:
    sides = [np.asarray(one, dtype=np.float64) for one in (reference, new)]
    if any(one.ndim != 1 or not len(one) or np.isnan(one).any() for one in sides):
        raise ValueError(f"both samples must be (n,) without NaN and not empty, got shapes {sides[0].shape} and {sides[1].shape}")
    return np.concatenate(sides), np.arange(sum(map(len, sides))) >= len(sides[0])
