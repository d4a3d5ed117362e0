"""Threshold-free metrics, each defined once, on counts along the descending scores.

Sort the scores once and count how many anomalous (`positive`) and normal (`negative`) items share each distinct score: every metric here
is a cumulative sum over those K counts. The same formula therefore serves images and pixels, exact and binned scores, and bootstrap
resamples, whose weights only change the counts: leading axes are a batch, (K,) or (R, K), and the result is () or (R,).

Tied items stand in one column, so they cross any threshold together: ROC and PRO curves are straight between thresholds (trapezoid), the
precision-recall curve is a step, as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.integer] | NDArray[np.floating]  # (..., K), columns in descending order of score
Metric = Callable[[Counts, Counts], NDArray[np.float64]]  # positive, negative -> (...)


def auroc_of_counts(positive: Counts, negative: Counts) -> NDArray[np.float64]:
    """Probability that an anomalous item outscores a normal one, ties counting one half. Exact while all counts are below 2**53."""
    normals = negative.sum(-1)
    normals_below = normals[..., None] - np.cumsum(negative, axis=-1)
    won = (positive * (normals_below + negative / 2)).sum(-1)
    return won / (positive.sum(-1, dtype=np.float64) * normals)


def average_precision_of_counts(positive: Counts, negative: Counts) -> NDArray[np.float64]:
    """Precision at each anomalous item, averaged: the area under the precision-recall steps."""
    return (positive * _precision(positive, negative)).sum(-1) / positive.sum(-1)


def f1_of_counts(positive: Counts, negative: Counts) -> NDArray[np.float64]:
    """(..., K) F1 when all columns up to and including each one are called anomalous."""
    true, false = np.cumsum(positive, axis=-1), np.cumsum(negative, axis=-1)
    return 2 * true / (true + false + true[..., -1:])


def f1_max_of_counts(positive: Counts, negative: Counts) -> NDArray[np.float64]:
    """Highest F1 over all thresholds."""
    return f1_of_counts(positive, negative).max(-1)


def aupro_of_counts(region: Counts, negative: Counts, fpr_limit: float) -> NDArray[np.float64]:
    """Area under the per-region-overlap curve up to `fpr_limit`, divided by `fpr_limit`; 0..1.

    region: (..., K), each defect pixel counted as 1 / (area of its region), so that all regions weigh the same. Bergmann et al., "The
    MVTec Anomaly Detection Dataset", IJCV 2021, section 4.3, in closed form: a column lifts the curve by its share of the regions along a
    straight line from the false positive rate before it to the one after it, so each column adds its share times the area left of the
    limit. Interpolates linearly at the limit.
    """
    if not 0 < fpr_limit <= 1:
        raise ValueError(f"fpr_limit must be in (0, 1], got {fpr_limit}")
    reached = np.cumsum(negative, axis=-1)
    normals = reached[..., -1:]
    start, end = (reached - negative) / normals, reached / normals
    width = np.where(end > start, end - start, 1.0)
    cut = np.clip(fpr_limit - start, 0, None) ** 2 / (2 * width)
    covered = np.where(end <= fpr_limit, fpr_limit - (start + end) / 2, cut)
    # Shares of regions are not whole numbers, so a perfect map may exceed 1 by a rounding.
    return np.minimum((region * covered).sum(-1) / (fpr_limit * region.sum(-1)), 1.0)


def _precision(positive: Counts, negative: Counts) -> NDArray[np.float64]:
    true, false = np.cumsum(positive, axis=-1), np.cumsum(negative, axis=-1)
    # A resample may hold nothing yet at the highest scores; such a column has no positive, so its precision is never used.
    return true / np.maximum(true + false, 1)
