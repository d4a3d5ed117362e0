"""PaDiM: every position of the feature grid has its own Gaussian of normal embeddings; a patch is as anomalous as its Mahalanobis distance.

Three layers of a frozen network are brought to the grid of the finest and concatenated, a random subset of the channels is kept, and mean
and covariance over the training images are taken at each position. Because it ties statistics to positions, it wants images that are
aligned. Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization", arXiv:2011.08785.

Deviations from the paper:
- 100 channels whatever the backbone (the paper: 100 of ResNet-18's 448, 550 of WideResNet-50's 1792); where a network gives fewer, all are
  kept.
- Distances come from a triangular solve with the Cholesky factor, not from an inverse; factors are computed in float64 and kept in float32.
- The paper does not name the interpolation between layers; nearest is what reference implementations use. Scores are never rescaled over a
  test set.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.detectors.density.maths.gaussian import Moments, mahalanobis, pack_lower, unpack_lower
from stages.detectors.maps import gaussian_blur, to_pixels
from stages.types import Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run


class PaDiM(Detector):
    """channels: how many are kept of all layers together, at random; None, or more than there are, keeps all.

    epsilon: added to the diagonal of each covariance. blur_sigma: in pixels of the map. memory_gb: what the sums of one pass over the
    training images may take, in 10^9 bytes; where the grid needs more, its positions are worked off in several passes.
    """

    one_pass = True

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer1", "layer2", "layer3"),
        channels: int | None = 100,
        epsilon: float = 0.01,
        blur_sigma: float = 4.0,
        memory_gb: float = 2.0,
    ) -> None:
        super().__init__()
        if channels is not None and channels < 1:
            raise ValueError(f"channels must be at least 1, or null for all, got {channels}")
        if epsilon <= 0:
            raise ValueError(f"epsilon must be above 0, or covariances of few images are singular; got {epsilon}")
        self.needs = Need(layers=tuple(layers))
        self.channels, self.epsilon, self.blur_sigma, self.memory_gb = channels, epsilon, blur_sigma, memory_gb
        self.register_buffer("kept", torch.empty(0, dtype=torch.int64))  # (d,) channels of the concatenated layers, ascending
        self.register_buffer("mean", torch.empty(0, 0))  # (P, d)
        self.register_buffer("factor", torch.empty(0, 0))  # (P, d (d + 1) / 2), packed lower Cholesky factors of the covariances
        self._unpacked: Tensor | None = None

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        if train.samples < 2:
            raise Refusal(f"PaDiM needs at least 2 normal training images for a covariance, got {train.samples}")
        first = train.take([0]).features
        available = sum(first[layer].shape[1] for layer in self.needs.layers)
        kept = torch.randperm(available, generator=run.generator("channels"))[: self.channels or available].sort().values
        self.kept = kept.to(run.device)
        positions = math.prod(self._grid(first))
        passes = self._passes(positions, run)
        moments = [self._estimate(train, part, run) for part in torch.arange(positions).chunk(passes)]
        self.mean = torch.cat([mean for mean, _ in moments])
        self.factor = torch.cat([factor for _, factor in moments])
        self._unpacked = None
        run.history.append({"images": train.samples, "channels": len(self.kept), "positions": positions, "passes": passes})
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One triangular solve per image, so that a score cannot depend on the batch through rounding."""
        self.require_fitted(self.mean)
        if self._unpacked is None:
            self._unpacked = unpack_lower(self.factor)
        embeddings = self._embed(features)
        if embeddings.shape[1] != len(self.mean):
            came = f"PaDiM knows {len(self.mean)} positions, but these features have {embeddings.shape[1]}"
            raise ValueError(f"{came}; give it images of the size it learnt")
        scores = torch.stack([mahalanobis(image - self.mean, self._unpacked) for image in embeddings])
        maps = to_pixels(scores.unflatten(1, self._grid(features)), tuple(features["pixels"].shape[2:]))
        anomaly_map = gaussian_blur(maps, self.blur_sigma)
        return Prediction(anomaly_map.flatten(1).amax(dim=1), anomaly_map)

    def _grid(self, features: Features) -> tuple[int, int]:
        return max(tuple(features[layer].shape[2:]) for layer in self.needs.layers)

    def _embed(self, features: Features) -> Tensor:
        """(B, P, d): the kept channels of all layers on the finest grid, upsampled by nearest neighbour after the choice."""
        grid, first, parts = self._grid(features), 0, []
        for layer in self.needs.layers:
            values = features[layer].to(self.kept.device)
            own = self.kept[(self.kept >= first) & (self.kept < first + values.shape[1])] - first
            if len(own):  # a layer of which no channel was drawn has no part
                parts.append(F.interpolate(values[:, own].float(), grid, mode="nearest"))
            first += values.shape[1]
        return torch.cat(parts, dim=1).flatten(2).transpose(1, 2)

    def _passes(self, positions: int, run: Run) -> int:
        """How many passes over the training images keep the sums and one factorisation of them below `memory_gb`. Says what is to come."""
        width = len(self.kept)
        needed = positions * width**2 * 8 * 3  # products, an intermediate, factors
        passes = min(positions, math.ceil(needed / (self.memory_gb * 1e9)))
        kept = positions * width * (width + 1) / 2 * 4
        sizes = f"{needed * 1e-9:.2f} GB of sums, {kept * 1e-9:.2f} GB in the model, passes over the images: {passes}"
        run.say(f"Gaussians: {positions:,} positions x {width} channels, {sizes}")
        return passes

    def _estimate(self, train: Batches, positions: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """Mean and packed factor at these positions, in float32, from one pass over the training images."""
        moments = Moments(len(positions), len(self.kept), run.device)
        with run.progress("moments", train.samples) as advance:
            for batch in train:
                embeddings = self._embed(batch.features)[:, positions.to(run.device)]
                if not embeddings.isfinite().all():
                    raise ValueError(f"features of {', '.join(batch.sample_id)} hold NaN or infinity; extract them again")
                moments.add(embeddings)
                advance(len(embeddings))
        mean, factor = moments.gaussian(self.epsilon)
        return mean.float(), pack_lower(factor).float()

    def _load_from_state_dict(self, *args: Any) -> None:
        self._unpacked = None
        super()._load_from_state_dict(*args)
