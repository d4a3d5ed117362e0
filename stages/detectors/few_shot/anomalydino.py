"""AnomalyDINO: a patch is as anomalous as the cosine distance to its nearest patch of a few normal images; nothing is trained.

The patch tokens of one layer of a frozen transformer (DINOv2's last block behind its final norm: layer `block11` of a ViT-S, `norm: true`)
are set to length 1 and kept, all of them. The image score is the mean of the highest 1 % of its patches' distances, which single outliers move
less than the maximum. Damm et al., "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2", WACV 2025, arXiv:2405.14529.

With `head: subspace` the distance is that to a linear subspace instead: principal axes of all patches of the normal images that hold 99 % of
their variance, and the squared length of what lies outside (SubspaceAD, 2026). Several layers are averaged, as it pools several blocks.

Deviations from the papers:
- Any frozen encoder; where it is not DINOv2 the row says so. Layers of different size are resized to the finest before they are averaged, and must be
  equally wide.
- Reference images are not rotated: a detector sees stored features, and a turned image has others. The paper's "agnostic" setting turns them by
  eighths; on parts that always lie alike this is the setting without.
- No foreground mask: the threshold on the first principal component, 10, is one of DINOv2's tokens.
- The subspace is that of the tokens as they are, not set to length 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.detectors.maps import gaussian_blur, to_pixels
from stages.types import Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run


class AnomalyDINO(Detector):
    """head: distance to the nearest patch, or to a subspace. top: share of an image's patches whose mean is its score. variance: share that the axes of the
    subspace hold. blur_sigma: in pixels of the map."""

    one_pass = True

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("block11",),
        head: Literal["nearest", "subspace"] = "nearest",
        top: float = 0.01,
        variance: float = 0.99,
        blur_sigma: float = 4.0,
    ) -> None:
        super().__init__()
        if not 0 < top <= 1 or not 0 < variance <= 1:
            raise ValueError(f"top and variance must be above 0 and at most 1, got {top} and {variance}")
        self.needs = Need(layers=tuple(layers))
        self.head, self.top, self.variance, self.blur_sigma = head, top, variance, blur_sigma
        self.register_buffer("references", torch.empty(0, 0))  # (M, C): patches of length 1, or the mean of all and then the axes

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        if not train.samples:
            raise Refusal("AnomalyDINO needs at least 1 normal image, got none")
        tokens = torch.cat([self._tokens(batch.features).flatten(0, 1).to(run.device) for batch in train])
        if not tokens.isfinite().all():
            raise ValueError("features of the training images hold NaN or infinity; extract them again")
        self.references = F.normalize(tokens, dim=1) if self.head == "nearest" else _mean_and_axes(tokens, self.variance)
        run.history.append({"images": train.samples, "patches": len(tokens), "rows": len(self.references)})
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One image at a time, so that a score cannot depend on its company through rounding."""
        self.require_fitted(self.references)
        tokens = self._tokens(features).to(self.references.device)
        if tokens.shape[2] != self.references.shape[1]:
            raise ValueError(
                f"AnomalyDINO knows patches of width {self.references.shape[1]}, these have {tokens.shape[2]}; give it its own encoder"
            )
        distance = self._to_nearest if self.head == "nearest" else self._to_subspace
        distances = torch.stack([distance(image) for image in tokens])
        highest = distances.topk(math.ceil(self.top * distances.shape[1]), dim=1).values.mean(dim=1)
        maps = to_pixels(distances.unflatten(1, self._grid(features)), tuple(features["pixels"].shape[2:]))
        return Prediction(highest, gaussian_blur(maps, self.blur_sigma))

    def _grid(self, features: Features) -> tuple[int, int]:
        """Rows and columns of the finest layer."""
        return max(tuple(features[layer].shape[2:]) for layer in self.needs.layers)

    def _tokens(self, features: Features) -> Tensor:
        """(B, h*w, C), the mean of the layers."""
        grid = self._grid(features)
        layers = [F.interpolate(features[layer].float(), grid, mode="bilinear", align_corners=False) for layer in self.needs.layers]
        widths = {layer.shape[1] for layer in layers}
        if len(widths) > 1:
            raise Refusal(
                f"layers of {', '.join(map(str, sorted(widths)))} channels cannot be averaged: name layers of one width, or a single one"
            )
        return torch.stack(layers).mean(dim=0).flatten(2).transpose(1, 2)

    def _to_nearest(self, patches: Tensor) -> Tensor:
        """(N,) 1 - the highest cosine with any reference, for (N, C)."""
        return 1 - (F.normalize(patches, dim=1) @ self.references.T).amax(dim=1)

    def _to_subspace(self, patches: Tensor) -> Tensor:
        """(N,) squared length of what the subspace cannot reconstruct, for (N, C)."""
        centred, axes = patches - self.references[0], self.references[1:]
        return (centred - centred @ axes.T @ axes).square().sum(dim=1)


def _mean_and_axes(tokens: Tensor, share: float) -> Tensor:
    """(1 + r, C): the mean of (M, C) tokens and the r axes that hold at least `share` of their variance, by the C x C covariance in float64."""
    rows = tokens.double()
    mean = rows.mean(dim=0)
    values, axes = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    held = values.flip(0).clamp(min=0).cumsum(dim=0)
    kept = int((held < share * held[-1]).sum()) + 1 if held[-1] > 0 else 0
    return torch.cat([mean[None], axes.flip(1)[:, :kept].T]).float()
