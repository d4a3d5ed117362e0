"""Pixel AUROC, AP, F1max and AUPRO, exact over all pixels of a data set, from one sort.

Only the defect pixels decide where these metrics change, and they are few. So all pixels are sorted once, by value alone (the fastest
sort there is), every distinct defect score looks up its rank among the normal ones, and the counts between two defect scores collapse
into one column. The formulas of `counts` then run over a few columns per defect pixel instead of every pixel. AUPRO needs no threshold
loop: see `aupro_of_counts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.counts import Counts, aupro_of_counts, auroc_of_counts, average_precision_of_counts, f1_max_of_counts
from stages.metrics.inputs import Floats, Undefined, check_finite
from stages.metrics.regions import checked_mask, region_shares

Maps = Sequence[NDArray] | NDArray  # (N, H, W), or N arrays (H, W) of any sizes
FPR_LIMITS = (0.3, 0.05)


class PixelCounts(NamedTuple):
    """Columns in descending order of score: defect pixels, normal pixels, and defect pixels weighted by 1 / (area of their region)."""

    positive: Counts
    negative: Counts
    region: Counts


def pixel_metrics(maps: Maps, masks: Maps, fpr_limits: Sequence[float] = FPR_LIMITS) -> dict[str, float]:
    """`pixel_auroc`, `pixel_ap`, `pixel_f1_max`, and AUPRO at each limit: `aupro` at the first, `aupro_005` at another of 0.05; all 0..1.

    maps: (N, H, W) float or a list of (H, W), higher is more anomalous; float32 sorts fastest. masks: the same shapes, bool, all False for
    a good image. Leave out images whose mask is unknown. Regions are 8-connected; the false positive rate is taken over all normal
    pixels of all images. Needs about twice the memory of the maps. Raises Undefined where there is no defect or no normal pixel.
    """
    return metrics_of_counts(pixel_counts(maps, masks), fpr_limits)


def metrics_of_counts(counts: PixelCounts, fpr_limits: Sequence[float] = FPR_LIMITS) -> dict:
    """The metrics of `pixel_metrics` from (..., K) counts: floats for (K,), arrays for a batch of resamples."""
    positive, negative, region = counts
    values = {
        "pixel_auroc": auroc_of_counts(positive, negative),
        "pixel_ap": average_precision_of_counts(positive, negative),
        "pixel_f1_max": f1_max_of_counts(positive, negative),
    } | {aupro_name(limit, fpr_limits): aupro_of_counts(region, negative, limit) for limit in fpr_limits}
    return {name: float(value) if value.ndim == 0 else value for name, value in values.items()}


def aupro_name(limit: float, fpr_limits: Sequence[float]) -> str:
    return "aupro" if limit == fpr_limits[0] else f"aupro_{round(100 * limit):03d}"


def pixel_counts(maps: Maps, masks: Maps) -> PixelCounts:
    """Exact counts, two columns per distinct defect score and one for the normal pixels below them all."""
    pixels, defect, share = _gather(*checked_maps(maps, masks))
    pixels.sort()
    order = np.argsort(defect)
    defect, share = defect[order], share[order]
    first = np.flatnonzero(np.r_[True, defect[1:] != defect[:-1]])
    tied = np.diff(np.r_[first, len(defect)])
    # Ranks among the normal pixels, descending: above s1, tied with s1, between s1 and s2, tied with s2, ... A normal rank is a rank among
    # all pixels less one among the defects; taking the normal pixels out before the sort would cost as much as the sort.
    ranks = np.empty(2 * len(first) + 2, dtype=np.int64)
    ranks[0], ranks[-1] = len(pixels) - len(defect), 0
    ranks[1:-1:2] = (np.searchsorted(pixels, defect[first], side="right") - first - tied)[::-1]
    ranks[2:-1:2] = (np.searchsorted(pixels, defect[first], side="left") - first)[::-1]
    at_defects = slice(1, None, 2)
    positive, region = np.zeros(len(ranks) - 1, dtype=np.int64), np.zeros(len(ranks) - 1)
    positive[at_defects] = tied[::-1]
    region[at_defects] = np.add.reduceat(share, first)[::-1]
    return PixelCounts(positive, -np.diff(ranks), region)


def checked_maps(maps: Maps, masks: Maps) -> tuple[list[NDArray], list[NDArray]]:
    """Maps as floats of one type and boolean masks, one per map and of its shape, with a defect and a normal pixel somewhere."""
    if len(maps) != len(masks):
        raise ValueError(f"one mask per map is needed, got {len(maps)} maps and {len(masks)} masks")
    if not len(maps):
        raise Undefined("no image with a known mask: pixel metrics need maps and masks")
    maps = [as_map(one) for one in maps]
    masks = [checked_mask(one, mask, index) for index, (one, mask) in enumerate(zip(maps, masks, strict=True))]
    if not any(mask.any() for mask in masks):
        raise Undefined(f"no defect pixel in {len(masks)} masks: there is nothing to find")
    if all(mask.all() for mask in masks):
        raise Undefined(f"no normal pixel in {len(masks)} masks: false alarms cannot be counted")
    return maps, masks


def as_map(anomaly_map: ArrayLike) -> NDArray[np.floating]:
    """Float maps keep their precision, as rounding would make ties; half precision is widened because it sorts slowly."""
    values = np.asarray(anomaly_map)
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32 if values.dtype == np.float16 else np.float64)


def _gather(maps: list[NDArray], masks: list[NDArray]) -> tuple[NDArray, NDArray, Floats]:
    """Scores of all pixels in a fresh array, of the defect pixels, and the latter's region shares."""
    for index, one in enumerate(maps):
        check_finite(one, f"anomaly map {index}")
    pixels = np.concatenate([one.ravel() for one in maps])
    defect = np.concatenate([one[mask] for one, mask in zip(maps, masks, strict=True)])
    share = np.concatenate([region_shares(mask).share for mask in masks])
    return pixels, defect.astype(pixels.dtype, copy=False), share
