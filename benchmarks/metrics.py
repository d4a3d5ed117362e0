"""Exact and binned pixel metrics beside scikit-learn and the usual loop over 200 thresholds, in one run: read the ratios.

python -m benchmarks.metrics                            20 maps of 256 x 256
python -m benchmarks.metrics --maps 100 --side 1024     105 million pixels; add --skip-slow to leave the slow ones out
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stages.metrics.bins import PixelBins
from stages.metrics.bootstrap import image_intervals, pixel_intervals
from stages.metrics.pixels import pixel_metrics
from stages.metrics.regions import region_shares

FPR_LIMIT = 0.3


def scene(n_maps: int, side: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Smooth noise with one to three lifted squares on every other map: about 1 % defect pixels."""
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((n_maps, side, side), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    for mask in masks[::2]:
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(0, side - side // 8, size=2)
            mask[y : y + side // 12, x : x + side // 10] = True
    maps[masks] += 1.5
    return maps, masks


def threshold_loop_aupro(maps: NDArray, masks: NDArray, n_thresholds: int = 200) -> float:
    """What most code does: flag everything at each threshold, average the overlap of all regions, integrate."""
    shares = [region_shares(mask) for mask in masks]
    weight = np.concatenate([one.share for one in shares]) / sum(one.count for one in shares)
    normal, defect = maps[~masks], maps[masks]
    points = [(0.0, 0.0)]
    for threshold in np.linspace(maps.max(), maps.min(), n_thresholds):
        points.append(((normal >= threshold).mean(), weight[defect >= threshold].sum()))
    fpr, overlap = np.array(points).T
    within = np.r_[fpr[fpr < FPR_LIMIT], FPR_LIMIT]
    return float(np.trapezoid(np.interp(within, fpr, overlap), within) / FPR_LIMIT)


def timed(name: str, work: Callable[[], object], reference_s: float | None = None) -> tuple[object, float]:
    """CPU seconds of this process, and how many times those of the exact metrics."""
    start = time.process_time()
    result = work()
    cpu_s = time.process_time() - start
    print(f"{name:<58}{cpu_s:9.3f} s" + (f"{cpu_s / reference_s:9.2f} x" if reference_s else ""), flush=True)
    return result, cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=20)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--skip-slow", action="store_true", help="leave scikit-learn and the threshold loop out")
    arguments = parser.parse_args()
    maps, masks = scene(arguments.maps, arguments.side)
    timed("(warm-up: imports)", lambda: pixel_metrics(maps[:1, :16, :16], np.eye(16, dtype=bool)[None]))
    print(f"{maps.size / 1e6:.1f} million pixels, {100 * masks.mean():.2f} % of them defects")

    exact, exact_s = timed("exact: AUROC + AP + F1max + AUPRO at 0.3 and 0.05", lambda: pixel_metrics(maps, masks))
    bins, _ = timed("the same from 4,096 bins per image", lambda: PixelBins.from_maps(maps, masks), exact_s)
    timed("1,000 bootstrap resamples of all five, from the bins", lambda: pixel_intervals([bins], exact=exact), exact_s)
    print("binned minus exact:", {name: f"{value - exact[name]:+.1e}" for name, value in bins.metrics().items()})
    print("its stated bound:  ", {name: f"{value:.1e}" for name, value in bins.error().items()})
    if not arguments.skip_slow:
        from sklearn.metrics import average_precision_score, roc_auc_score

        auroc, _ = timed("scikit-learn: roc_auc_score alone", lambda: roc_auc_score(masks.ravel(), maps.ravel()), exact_s)
        ap, _ = timed("scikit-learn: average_precision_score alone", lambda: average_precision_score(masks.ravel(), maps.ravel()), exact_s)
        aupro, _ = timed("AUPRO alone, loop over 200 thresholds", lambda: threshold_loop_aupro(maps, masks), exact_s)
        print(
            f"off by: AUROC {exact['pixel_auroc'] - auroc:+.1e}, AP {exact['pixel_ap'] - ap:+.1e}, loop AUPRO {aupro - exact['aupro']:+.1e}"
        )

    rng = np.random.default_rng(1)
    label = rng.random(600) < 0.3
    score = rng.standard_normal((3, 600)) + label
    timed("1,000 bootstrap resamples, 600 images x 3 seeds, 3 metrics", lambda: image_intervals(score, label))


if __name__ == "__main__":
    main()
