"""DFM: the features of normal images lie near a linear subspace; an image is as anomalous as what that subspace cannot reconstruct.

One layer of a frozen network is average-pooled to a coarse grid and read as one long vector an image. PCA keeps the axes that hold 97 % of
the variance. Two scores: the feature reconstruction error (FRE), the squared length of what lies outside the subspace, whose share at each
cell is the anomaly map; or the negative log-likelihood (NLL) of a Gaussian inside it, which gives no map. Ahuja et al., "Probabilistic
Modeling of Deep Features for Out-of-Distribution and Adversarial Detection", arXiv:1909.11786; FRE: Ndiour et al., arXiv:2203.10422.

Deviations from the paper:
- The paper fits one density per class of a classifier, for out-of-distribution inputs; here there is one class, the normal images.
- Pooling is by cells that cover the whole grid (14 cells give 4, the windows overlapping); a plain stride of 4 would drop the last rows and
  columns. Where the kernel divides the grid both are the same.
- NLL leaves out the constant r log(2 pi) and the factor 1/2, as its reference implementations do; the order of images is the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.detectors.density.maths.pca import axes_for, principal_axes
from stages.detectors.maps import to_pixels
from stages.types import Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run


class DFM(Detector):
    """pooling: cells of the layer's grid that are averaged along each side. variance: share that the kept axes hold.

    score_type: fre, the error outside the subspace, with a map; or nll, the negative log-likelihood inside it, without one.
    """

    one_pass = True

    def __init__(
        self, *, layer: str = "layer3", pooling: int = 4, variance: float = 0.97, score_type: Literal["fre", "nll"] = "fre"
    ) -> None:
        super().__init__()
        if pooling < 1:
            raise ValueError(f"pooling must be at least 1 (no pooling), got {pooling}")
        if not 0 < variance <= 1:
            raise ValueError(f"variance must be above 0 and at most 1, got {variance}")
        if score_type not in ("fre", "nll"):
            raise ValueError(f"score_type must be fre or nll, got {score_type!r}")
        self.needs = Need(layers=(layer,))
        self.pooling, self.variance, self.score_type = pooling, variance, score_type
        self.register_buffer("mean", torch.empty(0))  # (D,)
        self.register_buffer("axes", torch.empty(0, 0))  # (D, r) orthonormal
        self.register_buffer("deviation", torch.empty(0))  # (r,) standard deviation along each axis

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        if train.samples < 2:
            raise Refusal(f"DFM needs at least 2 normal training images for a variance, got {train.samples}")
        vectors = self._training_vectors(train, run)
        mean, axes, deviation = principal_axes(vectors)
        kept = axes_for(deviation, self.variance)
        if kept == 0 and self.score_type == "nll":
            raise Refusal("all training images have the same features, so there is no density: use score_type fre, or other images")
        self.mean, self.axes, self.deviation = mean.float(), axes[:, :kept].float().contiguous(), deviation[:kept].float()
        run.history.append({"images": len(vectors), "width": len(mean), "axes": kept})
        run.say(f"subspace: {kept} axes of {len(mean):,} dimensions hold {self.variance:.0%} of the variance of {len(vectors)} images")
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One product per image, so that a score cannot depend on the batch through rounding."""
        self.require_fitted(self.mean)
        pooled = self._pool(features)
        if pooled[0].numel() != len(self.mean):
            came = f"DFM knows {len(self.mean)} dimensions, but these features have {tuple(pooled.shape[1:])}"
            raise ValueError(f"{came}; give it the encoder and the image size it learnt")
        centred = pooled.flatten(1).to(self.mean.device) - self.mean
        if self.score_type == "nll":
            return Prediction(torch.stack([self._likelihood(image) for image in centred]), None)
        errors = torch.stack([self._outside(image).square() for image in centred]).view(pooled.shape)
        anomaly_map = to_pixels(errors.sum(dim=1), tuple(features["pixels"].shape[2:]))
        return Prediction(errors.flatten(1).sum(dim=1), anomaly_map)

    def _pool(self, features: Features) -> Tensor:
        """(B, C, h', w')."""
        values = features[self.needs.layers[0]].float()
        cells = [math.ceil(side / self.pooling) for side in values.shape[2:]]
        return F.adaptive_avg_pool2d(values, cells)

    def _training_vectors(self, train: Batches, run: Run) -> Tensor:
        """(N, D), in the order of the images."""
        found = []
        with run.progress("vectors", train.samples) as advance:
            for batch in train:
                vectors = self._pool(batch.features).flatten(1).to(run.device)
                if not vectors.isfinite().all():
                    raise ValueError(f"features of {', '.join(batch.sample_id)} hold NaN or infinity; extract them again")
                found.append(vectors)
                advance(len(vectors))
        return torch.cat(found)

    def _outside(self, centred: Tensor) -> Tensor:
        """(D,) what the subspace cannot reconstruct of a (D,) vector: v - U U' v."""
        return centred - self.axes @ (self.axes.T @ centred)

    def _likelihood(self, centred: Tensor) -> Tensor:
        """-2 log p, less r log(2 pi): the squared Mahalanobis distance within the subspace and the logarithm of the determinant."""
        return (self.axes.T @ centred / self.deviation).square().sum() + 2 * self.deviation.log().sum()
