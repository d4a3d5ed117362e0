"""Pixel metrics of sets too large to sort, and the counts that their bootstrap resamples: one histogram per image.

Edges are quantiles of a sample of scores, half of them of normal and half of defect pixels, so that resolution is highest where the two
meet. Each image is sorted alone, which stays in cache, and gives three histograms: normal pixels, defect pixels, and defect pixels
weighted by 1 / (area of their region). Summed over images they give the metrics of `counts`; summed with resample weights they give a
bootstrap draw, so no pixel is ever sorted again. All scores of one bin are treated as tied, and `bounds` says how far that can be from
the exact value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from stages.metrics.counts import aupro_of_counts, auroc_of_counts, f1_max_of_counts
from stages.metrics.inputs import Flags, Floats, Undefined, check_finite
from stages.metrics.pixels import FPR_LIMITS, Maps, PixelCounts, as_map, aupro_name, checked_maps, metrics_of_counts
from stages.metrics.regions import checked_mask, region_shares

SAMPLE_SIZE = 1 << 20
DRAWS_AT_ONCE = 100


class PixelBins:
    """Histograms of the images added so far; 64 KB an image at the default 4,096 bins."""

    def __init__(self, edges: NDArray, fpr_limits: Sequence[float] = FPR_LIMITS):
        """edges: (K - 1,) ascending; bin k holds edges[k - 1] <= score < edges[k], the outer bins are open. See `quantile_edges`."""
        self.edges = np.asarray(edges)
        if self.edges.ndim != 1 or not (np.diff(self.edges) > 0).all():
            raise ValueError(f"edges must be one strictly ascending row, got shape {self.edges.shape}")
        self.fpr_limits = tuple(fpr_limits)
        # Per image, columns in descending order of score as `counts` wants them.
        self._normal: list[NDArray[np.int32]] = []
        self._defect: list[NDArray[np.int32]] = []
        self._region: list[Floats] = []

    @classmethod
    def from_maps(cls, maps: Maps, masks: Maps, n_bins: int = 4096, fpr_limits: Sequence[float] = FPR_LIMITS) -> PixelBins:
        """Bins of maps that are at hand, edges taken from an even sample of at most a million of their pixels. Shapes as in
        `pixel_metrics`.
        """
        maps, masks = checked_maps(maps, masks)
        bins = cls(quantile_edges(*_sample(maps, masks), n_bins), fpr_limits)
        for one, mask in zip(maps, masks, strict=True):
            bins.add(one, mask)
        return bins

    def __len__(self) -> int:
        return len(self._normal)

    def add(self, anomaly_map: NDArray, mask: Flags) -> None:
        """Count one image. anomaly_map: (H, W) float, finite; mask: (H, W) bool."""
        one = as_map(anomaly_map)
        mask = checked_mask(one, mask, len(self))
        check_finite(one, f"anomaly map {len(self)}")
        defect = one[mask]
        bin_of_defect = np.searchsorted(self.edges, defect, side="right")
        self._normal.append(self._histogram_of_sorted(np.sort(one[~mask])))
        self._defect.append(np.bincount(bin_of_defect, minlength=len(self.edges) + 1)[::-1].astype(np.int32))
        self._region.append(np.bincount(bin_of_defect, region_shares(mask).share, len(self.edges) + 1)[::-1])

    def _histogram_of_sorted(self, ascending: NDArray) -> NDArray[np.int32]:
        return -np.diff(np.r_[len(ascending), np.searchsorted(ascending, self.edges)[::-1], 0]).astype(np.int32)

    @property
    def has_defect(self) -> Flags:
        """(N,) whether each image has a defect pixel."""
        return np.array([counts.any() for counts in self._defect], dtype=bool)

    @property
    def has_normal(self) -> Flags:
        """(N,) whether each image has a normal pixel."""
        return np.array([counts.any() for counts in self._normal], dtype=bool)

    def counts(self) -> PixelCounts:
        """(K,) sums over all images."""
        if not self.has_defect.any() or not self.has_normal.any():
            raise Undefined(
                f"{len(self)} images without {'normal' if self.has_defect.any() else 'defect'} pixels: pixel metrics compare the two"
            )
        sums = (np.sum(per_image, axis=0, dtype=dtype) for per_image, dtype in self._columns())
        return PixelCounts(*sums)

    def _columns(self) -> Iterable[tuple[list[NDArray], type]]:
        return (self._defect, np.int64), (self._normal, np.int64), (self._region, np.float64)

    def metrics(self) -> dict[str, float]:
        """The metrics of `pixel_metrics`, with all scores of a bin taken as tied."""
        return metrics_of_counts(self.counts(), self.fpr_limits)

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest exact value that these counts allow: within each bin, all normal pixels first, or all defect pixels first."""
        counts = self.counts()
        worst, best = _spread(counts, normal_first=True), _spread(counts, normal_first=False)
        low = {
            "pixel_auroc": auroc_of_counts(worst.positive, worst.negative),
            "pixel_ap": _lowest_average_precision(counts),
            "pixel_f1_max": f1_max_of_counts(worst.positive, worst.negative),
        } | {aupro_name(limit, self.fpr_limits): aupro_of_counts(worst.region, worst.negative, limit) for limit in self.fpr_limits}
        high = metrics_of_counts(best, self.fpr_limits)
        return {name: (float(low[name]), high[name]) for name in high}

    def error(self) -> dict[str, float]:
        """Largest possible distance of each of `metrics` from its exact value."""
        values = self.metrics()
        return {name: max(values[name] - low, high - values[name]) for name, (low, high) in self.bounds().items()}

    def resampled(self, weight: NDArray[np.integer]) -> dict[str, Floats]:
        """Metrics of R resamples. weight: (R, N), how often each image was drawn. Returns (R,) per metric."""
        # float32 holds the counts of one image exactly and rounds sums by 1e-7, far below the width of any interval.
        columns = [np.stack(per_image).astype(np.float32) for per_image, _ in self._columns()]
        rows = np.array_split(weight.astype(np.float32), -(-len(weight) // DRAWS_AT_ONCE))
        draws = [
            metrics_of_counts(PixelCounts(*((row @ column).astype(np.float64) for column in columns)), self.fpr_limits) for row in rows
        ]
        return {name: np.concatenate([draw[name] for draw in draws]) for name in draws[0]}


def quantile_edges(normal: NDArray, defect: NDArray, n_bins: int = 4096) -> NDArray:
    """At most n_bins - 1 distinct edges from samples of normal and of defect pixel scores, either of which may be empty."""
    if n_bins < 4:
        raise ValueError(f"n_bins must be at least 4, got {n_bins}")
    samples = [np.sort(sample) for sample in (normal, defect) if len(sample)]
    if not samples:
        raise Undefined("no sample of scores to take bin edges from")
    each = (n_bins - 1) // len(samples)
    # Members of the sample, not interpolated values: scores that repeat often get a bin of their own.
    return np.unique(np.concatenate([sample[np.linspace(0, len(sample) - 1, each).astype(np.intp)] for sample in samples]))


def _sample(maps: list[NDArray], masks: list[Flags]) -> tuple[NDArray, NDArray]:
    """About SAMPLE_SIZE normal and as many defect pixels, evenly over all maps."""
    # An odd step walks over all columns of a map whose width is even, where an even one might stay in a few.
    step = sum(one.size for one in maps) // SAMPLE_SIZE | 1
    normal = [one.ravel()[::step][~mask.ravel()[::step]] for one, mask in zip(maps, masks, strict=True)]
    every = sum(int(mask.sum()) for mask in masks) // SAMPLE_SIZE + 1
    defect = [one[mask][::every] for one, mask in zip(maps, masks, strict=True)]
    return np.concatenate(normal), np.concatenate(defect)


def _spread(counts: PixelCounts, normal_first: bool) -> PixelCounts:
    """(2K,) columns in which no defect pixel is tied with a normal one."""
    early, late = np.zeros((2, 2 * len(counts.negative)))
    early[0::2], late[1::2] = 1, 1
    defects, normals = (late, early) if normal_first else (early, late)
    return PixelCounts(
        np.repeat(counts.positive, 2) * defects, np.repeat(counts.negative, 2) * normals, np.repeat(counts.region, 2) * defects
    )


def _lowest_average_precision(counts: PixelCounts) -> float:
    """AP when each bin's normal pixels come first and its defect pixels then one by one.

    Precision tp / (tp + fp) is concave in tp, so the mean over a run of defect pixels is at least the mean of its two ends.
    """
    positive, false = counts.positive, np.cumsum(counts.negative)
    true = np.cumsum(positive)
    at_last = true / np.maximum(true + false, 1)
    at_first = (true - positive + 1) / (true - positive + 1 + false)
    return float((positive * (at_first + at_last) / 2).sum() / true[-1])
