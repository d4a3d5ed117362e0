"""DFKDE: one vector an image, and a kernel density of those of normal images; an image is as anomalous as its vector is unlikely.

Each layer of a frozen network is averaged over its whole grid, and the layers are concatenated. PCA keeps 16 numbers; a Gaussian kernel
sits on each training vector, with the covariance of all of them times the square of Scott's factor N^(-1/(k+4)) as its shape. There is no
map. No paper: the method is that of the library anomalib.

Deviations from the reference implementation:
- The image score is -log p, by log-sum-exp; there log(p + 1e-300) goes through a sigmoid with hand-set constants (0.05, 12). The order is
  the same, but p underflows to 0 in float32 and the sigmoid ends at 1, so that all far images tie.
- Several layers are concatenated along the features, not along the batch.
- PCA in float64; distances from a triangular solve with the Cholesky factor, not from an inverse.
- Fewer training images than axes: as many axes are kept as the images span; the reference makes no model.
- `scaling: norm` measures from the origin the training vectors as it does the others; the reference centres the training vectors alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor

from stages.detectors.density.maths.pca import principal_axes
from stages.types import Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run


class DFKDE(Detector):
    """components: axes kept of the PCA. scaling: of the projected vectors, by the largest norm of a training vector (scale), or each to unit
    length (norm). max_points: kernels at most; of more training images so many are drawn.
    """

    one_pass = True

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer4",),
        components: int = 16,
        scaling: Literal["scale", "norm"] = "scale",
        max_points: int = 40_000,
    ) -> None:
        super().__init__()
        if components < 1 or max_points < 2:
            raise ValueError(f"components must be at least 1 and max_points at least 2, got {components} and {max_points}")
        if scaling not in ("scale", "norm"):
            raise ValueError(f"scaling must be scale or norm, got {scaling!r}")
        self.needs = Need(layers=tuple(layers))
        self.components, self.scaling, self.max_points = components, scaling, max_points
        self.register_buffer("mean", torch.empty(0))  # (D,)
        self.register_buffer("axes", torch.empty(0, 0))  # (D, k) orthonormal
        self.register_buffer("length", torch.empty(0))  # (1,) the largest norm of a projected training vector
        self.register_buffer("factor", torch.empty(0, 0))  # (k, k) lower Cholesky factor of the kernels' covariance
        self.register_buffer("points", torch.empty(0, 0))  # (N, k) the training vectors, whitened by it

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        vectors = self._training_vectors(train, run).double()
        if len(vectors) > self.max_points:
            drawn = torch.randperm(len(vectors), generator=run.generator("points"))[: self.max_points].sort().values
            vectors = vectors[drawn.to(vectors.device)]
        mean, axes, deviation = principal_axes(vectors)
        spanned = int((deviation > 1e-7 * mean.norm().clamp(min=deviation[0].item())).sum())
        kept = min(self.components, spanned)
        if kept == 0:
            raise Refusal(f"a density needs at least 2 normal training images that differ, got {train.samples} with the same features")
        projected = (vectors - mean) @ axes[:, :kept]
        length = projected.norm(dim=1).max()
        scaled = self._scaled(projected, length)
        factor = torch.linalg.cholesky(len(scaled) ** (-2 / (kept + 4)) * scaled.T.cov().view(kept, kept))
        points = torch.linalg.solve_triangular(factor, scaled.T, upper=False).T
        self.mean, self.axes, self.length = mean.float(), axes[:, :kept].float().contiguous(), length[None].float()
        self.factor, self.points = factor.float(), points.float().contiguous()
        run.history.append({"points": len(points), "width": len(mean), "axes": kept})
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One image at a time, so that a score cannot depend on the batch through rounding."""
        self.require_fitted(self.points)
        vectors = self._pool(features).to(self.mean.device)
        if vectors.shape[1] != len(self.mean):
            raise ValueError(
                f"DFKDE knows {len(self.mean)} channels, these features have {vectors.shape[1]}; give it the encoder it learnt"
            )
        return Prediction(torch.stack([-self._log_density(vector) for vector in vectors]), None)

    def _pool(self, features: Features) -> Tensor:
        """(B, D): the mean of each channel of each layer."""
        return torch.cat([features[layer].float().mean(dim=(2, 3)) for layer in self.needs.layers], dim=1)

    def _training_vectors(self, train: Batches, run: Run) -> Tensor:
        """(N, D), in the order of the images."""
        found = []
        with run.progress("vectors", train.samples) as advance:
            for batch in train:
                vectors = self._pool(batch.features).to(run.device)
                if not vectors.isfinite().all():
                    raise ValueError(f"features of {', '.join(batch.sample_id)} hold NaN or infinity; extract them again")
                found.append(vectors)
                advance(len(vectors))
        return torch.cat(found)

    def _scaled(self, projected: Tensor, length: Tensor) -> Tensor:
        """Of (..., k). A vector of length 0 stays where it is."""
        if self.scaling == "scale":
            return projected / length
        return projected / projected.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(projected.dtype).tiny)

    def _log_density(self, vector: Tensor) -> Tensor:
        """log mean_n N(z; z_n, factor factor') of a (D,) vector, never through p itself."""
        scaled = self._scaled((vector - self.mean) @ self.axes, self.length)
        whitened = torch.linalg.solve_triangular(self.factor, scaled[:, None], upper=False)[:, 0]
        exponents = -0.5 * (self.points - whitened).square().sum(dim=1)
        normaliser = self.factor.diagonal().log().sum() + 0.5 * len(whitened) * math.log(2 * math.pi)
        return exponents.logsumexp(dim=0) - math.log(len(self.points)) - normaliser
