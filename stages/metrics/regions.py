"""Defect regions of a mask: connected components with 8-connectivity (pixels that touch at a corner belong together), as in MVTec AD's
evaluation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.inputs import Flags, Floats


class Regions(NamedTuple):
    """`share`: for each defect pixel of the mask in row-major order, 1 / (area of its region); sums to `count`."""

    share: Floats
    count: int


def region_shares(mask: Flags) -> Regions:
    """mask: (H, W) bool."""
    from scipy.ndimage import label

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Regions(np.zeros(0), 0)
    # Labelling costs as much as the rest of AUPRO; defects are small, so label their bounding box only.
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    region, count = label(box, structure=np.ones((3, 3), dtype=bool))
    inside = region[box]
    return Regions(1.0 / np.bincount(inside, minlength=count + 1)[inside], int(count))


def checked_mask(anomaly_map: NDArray, mask: NDArray, index: int) -> Flags:
    """The (H, W) mask of map number `index`, known to be boolean and to fit its map."""
    mask = np.asarray(mask)
    if anomaly_map.ndim != 2 or anomaly_map.shape != mask.shape:
        raise ValueError(f"map and mask {index} must share one shape (H, W), got {anomaly_map.shape} and {mask.shape}")
    if mask.dtype != np.bool_:
        raise ValueError(f"mask {index} must be boolean, got {mask.dtype}; pass `mask > 0`")
    return mask
