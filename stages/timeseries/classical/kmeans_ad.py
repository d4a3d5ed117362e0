"""KMeansAD: windows cluster around a few shapes of normal operation, and an anomaly is far from all of them.

Yairi et al., 2001, as TSB-AD (Liu and Paparrizos, 2024) defines its row: k-means on all windows of w steps, each variable's steps side by side; a
window scores its Euclidean distance to the nearest centre, a step the mean over the windows that cover it. Deviations: values are standardised by the
training data (TSB-AD clusters what it is given); centres are learnt from at most `sample` windows drawn by seed, from one start of k-means++; windows
start at every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.seed import derive
from stages.timeseries.classical.windows import long_enough, sampled_windows, score_steps
from stages.timeseries.detector import SeriesDetector, Stretch
from stages.training import Run


class KMeansAD(SeriesDetector):
    """Distance of windows to the nearest of `clusters` centres."""

    def __init__(self, *, window: int = 20, clusters: int = 50, sample: int = 20_000) -> None:
        if min(window, clusters, sample) < 1:
            raise ValueError(f"window, clusters and sample must be at least 1, got {window}, {clusters} and {sample}")
        super().__init__()
        self.window, self.clusters, self.sample = window, clusters, sample
        self.past = self.future = window - 1
        self.register_buffer("centres", torch.empty(0))

    def learn(self, train: Sequence[Stretch], val: Sequence[Stretch], run: Run) -> None:
        from sklearn.cluster import KMeans

        series = long_enough(train, self.window)
        rows = sampled_windows(series, self.window, self.sample, run.generator("windows"))
        clusters = min(self.clusters, len(rows.unique(dim=0)))  # scikit-learn warns of centres without windows
        means = KMeans(clusters, n_init=1, random_state=derive(run.seed, "k-means") % 2**32).fit(rows.numpy())
        self.centres = torch.from_numpy(means.cluster_centers_)

    def rate(self, values: Tensor) -> Tensor:
        return score_steps(values, self.window, self._distance)

    def _distance(self, rows: Tensor) -> Tensor:
        return torch.cdist(rows, self.centres, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
