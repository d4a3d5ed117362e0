"""95 % intervals by bootstrap over what is independent: parts (groups of images) and training seeds.

A resample draws groups with replacement, whole, and within strata (groups with anomalous images, with normal ones, with both), so that
none has a single class; then it draws as many seeds as there are, and averages the metric over them. A resample is a row of integer
weights on the images: scores are sorted once per seed, and every draw is a cumulative sum of re-weighted counts (see `counts`), all draws
at once.

Percentile intervals (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13), with two rules of our own. The reported
value is the metric of the data, not of the resamples; where it falls outside their quantiles (F1max and AP are biased upwards in
resamples), the interval is widened to hold it. With fewer than two groups of a class nothing can be known about their spread, so the
interval is all that the metric can be. A perfect separation stays perfect in every resample: its interval [1, 1] says that these images
cannot show an error, no more. Seeds drawn from S understate the variance between seeds by (S - 1) / S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.bins import PixelBins
from stages.metrics.counts import Metric
from stages.metrics.inputs import Flags, Floats, check_finite, checked_label, require_both_classes
from stages.metrics.ranking import IMAGE_METRICS, descending, tallies

N_RESAMPLES = 1000
QUANTILES = (0.025, 0.975)


class Interval(NamedTuple):
    """A value and its 95 % interval; low <= value <= high always."""

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """For a paired difference: the two models are tied."""
        return self.low <= 0 <= self.high


class Draws(NamedTuple):
    """A metric (mean over seeds) and its (R,) bootstrap draws."""

    value: float
    samples: Floats

    @property
    def interval(self) -> Interval:
        low, high = np.quantile(self.samples, QUANTILES)
        return Interval(self.value, min(float(low), self.value), max(float(high), self.value))


class Resamples(NamedTuple):
    """How often each of N images is drawn in each of R resamples, (R, N); `resolved` is False if a class has fewer than two groups."""

    weight: NDArray[np.int64]
    resolved: bool


def bootstrap_interval(
    score: ArrayLike, label: ArrayLike, group: ArrayLike | None, metric: Metric, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Interval:
    """Mean over seeds of one metric of `counts`, with its interval.

    score: (S, N), one row per training seed, or (N,); label: (N,) 0/1; group: (N,) any values, None where each image is its own group.
    Raises Undefined where a class is missing.
    """
    return bootstrap_draws(score, label, group, {"": metric}, n_resamples, seed)[""].interval


def image_intervals(
    score: ArrayLike, label: ArrayLike, group: ArrayLike | None = None, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of all of `image_metrics` from the same resamples. Shapes as in `bootstrap_interval`."""
    return {name: draws.interval for name, draws in bootstrap_draws(score, label, group, IMAGE_METRICS, n_resamples, seed).items()}


def bootstrap_draws(
    score: ArrayLike,
    label: ArrayLike,
    group: ArrayLike | None,
    metrics: Mapping[str, Metric],
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Draws]:
    """Value and draws per metric, for `mean_interval`. Shapes as in `bootstrap_interval`."""
    rows, anomalous = _checked(score, label)
    resamples, shares = draw(anomalous, group, len(rows), n_resamples, seed)
    values, samples = _over_seeds(rows, anomalous, resamples.weight, metrics)
    return {name: _draws(values[name], (samples[name] * shares).sum(1), resamples.resolved) for name in metrics}


def draw(anomalous: Flags, group: ArrayLike | None, seeds: int, n_resamples: int, seed: int = 0) -> tuple[Resamples, Floats]:
    """What every bootstrap over images and training seeds draws: weights of the images, (R, N), and shares of the seeds, (R, seeds).

    anomalous: (N,). The same arguments give the same draws, so that metrics and models are pairs.
    """
    rng = np.random.default_rng(seed)
    return resample(anomalous, ~anomalous, group, n_resamples, rng), seed_shares(seeds, n_resamples, rng)


def paired_difference(
    score_a: ArrayLike,
    score_b: ArrayLike,
    label: ArrayLike,
    group: ArrayLike | None,
    metric: Metric,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Metric of model a minus that of model b on the same images, both seen in the same resamples; `holds_zero` means tied.

    Shapes as in `paired_draws`.
    """
    return paired_draws(score_a, score_b, label, group, metric, n_resamples, seed).interval


def paired_draws(
    score_a: ArrayLike,
    score_b: ArrayLike,
    label: ArrayLike,
    group: ArrayLike | None,
    metric: Metric,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Draws:
    """The difference and its draws, for `mean_interval` over categories.

    score_a: (S, N) and score_b: (S', N); their seeds are drawn independently, as seed 0 of one has nothing to do with seed 0 of the other.
    """
    (rows_a, anomalous), (rows_b, _) = _checked(score_a, label), _checked(score_b, label)
    rng = np.random.default_rng(seed)
    resamples = resample(anomalous, ~anomalous, group, n_resamples, rng)
    value, difference = 0.0, np.zeros(n_resamples)
    for sign, rows in ((1, rows_a), (-1, rows_b)):
        values, samples = _over_seeds(rows, anomalous, resamples.weight, {"": metric})
        value += sign * values[""]
        difference += sign * (samples[""] * seed_shares(len(rows), n_resamples, rng)).sum(1)
    return _draws(value, difference, resamples.resolved, lowest=-1.0)


def pixel_draws(
    bins: Sequence[PixelBins],
    group: ArrayLike | None = None,
    exact: Mapping[str, float] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Draws]:
    """Value and draws of the pixel metrics. bins: one per training seed, the same N images in the same order; group: (N,).

    exact: values from `pixel_metrics` (mean over seeds) to report instead of the binned ones.
    """
    first = bins[0]
    first.counts()  # refuses a set without defects
    if any(not np.array_equal(first.has_defect, other.has_defect) for other in bins):
        raise ValueError("all seeds must be binned over the same images and masks in the same order")
    rng = np.random.default_rng(seed)
    resamples = resample(first.has_defect, first.has_normal, group, n_resamples, rng)
    seeds = seed_shares(len(bins), n_resamples, rng)
    samples = [one.resampled(resamples.weight) for one in bins]
    binned = [one.metrics() for one in bins]
    values = exact or {name: float(np.mean([one[name] for one in binned])) for name in binned[0]}
    return {
        name: _draws(value, (np.stack([one[name] for one in samples], 1) * seeds).sum(1), resamples.resolved)
        for name, value in values.items()
    }


def pixel_intervals(
    bins: Sequence[PixelBins],
    group: ArrayLike | None = None,
    exact: Mapping[str, float] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of the pixel metrics; see `pixel_draws`."""
    return {name: draws.interval for name, draws in pixel_draws(bins, group, exact, n_resamples, seed).items()}


def mean_interval(draws: Sequence[Draws], seed: int = 0) -> Interval:
    """Unweighted mean over categories, whose images and models are independent of each other."""
    rng = np.random.default_rng(seed)
    # Categories of equal size may have been resampled with the same weights; shuffling their draws makes them independent again.
    samples = np.mean([rng.permutation(one.samples) for one in draws], axis=0)
    return Draws(float(np.mean([one.value for one in draws])), samples).interval


def resample(positive: Flags, negative: Flags, group: ArrayLike | None, n_resamples: int, rng: np.random.Generator) -> Resamples:
    """Draw groups within strata. positive, negative: (N,), whether an image counts for each class (an image with a defect may count for
    both).
    """
    names = np.arange(len(positive)) if group is None else np.asarray(group)
    if names.shape != positive.shape:
        raise ValueError(f"group must have shape {positive.shape} as the labels have, got {names.shape}")
    group_of_image = np.unique(names, return_inverse=True)[1]
    n_groups = group_of_image.max() + 1
    holds_positive, holds_negative = (np.bincount(group_of_image[flags], minlength=n_groups) > 0 for flags in (positive, negative))
    stratum = holds_positive + 2 * holds_negative
    weight = np.zeros((n_resamples, n_groups), dtype=np.int64)
    for members in (np.flatnonzero(stratum == one) for one in np.unique(stratum)):
        weight[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n_resamples)
    return Resamples(weight[:, group_of_image], bool(min(holds_positive.sum(), holds_negative.sum()) >= 2))


def _checked(score: ArrayLike, label: ArrayLike) -> tuple[Floats, Flags]:
    """(S, N) finite scores and (N,) labels with both classes."""
    rows = np.atleast_2d(np.asarray(score, dtype=np.float64))
    if rows.ndim != 2:
        raise ValueError(f"score must have shape (S, N), one row per seed, got {rows.shape}")
    check_finite(rows, "score")
    anomalous = checked_label(label, rows.shape[1])
    require_both_classes(anomalous)
    return rows, anomalous


def seed_shares(n_seeds: int, n_resamples: int, rng: np.random.Generator) -> Floats:
    """(R, S) shares of each seed in each draw; rows sum to 1."""
    return rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_resamples) / n_seeds


def _over_seeds(
    rows: Floats, anomalous: Flags, weight: NDArray[np.int64], metrics: Mapping[str, Metric]
) -> tuple[dict[str, float], dict[str, Floats]]:
    """Per metric: mean over seeds on the data, and (R, S) on the resamples."""
    values: dict[str, list[float]] = {name: [] for name in metrics}
    samples: dict[str, list[Floats]] = {name: [] for name in metrics}
    for score in rows:
        order, first = descending(score)
        exact, drawn = tallies(anomalous, order, first), _weighted_tallies(weight, anomalous, order, first)
        for name, metric in metrics.items():
            values[name].append(float(metric(*exact)))
            samples[name].append(metric(*drawn))
    return {name: float(np.mean(value)) for name, value in values.items()}, {name: np.stack(sample, 1) for name, sample in samples.items()}


def _weighted_tallies(
    weight: NDArray[np.int64], anomalous: Flags, order: NDArray[np.intp], first: NDArray[np.intp]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(R, K) anomalous and normal items per distinct score, each image counted as often as it was drawn."""
    ranked = weight[:, order]
    positive = np.add.reduceat(ranked * anomalous[order], first, axis=1)
    return positive, np.add.reduceat(ranked, first, axis=1) - positive


def _draws(value: float, samples: Floats, resolved: bool, lowest: float = 0.0) -> Draws:
    """Draws, or the whole range of the metric where too few groups leave its spread unknown."""
    return Draws(value, samples if resolved else np.resize([lowest, 1.0], len(samples)))
