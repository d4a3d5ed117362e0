"""WinCLIP: a window is as anomalous as its CLIP embedding is like "a damaged object" and unlike "a flawless object"; nothing is trained.

Two directions stand for all sentences about good and bad objects. The image, and every window of 2 x 2 and 3 x 3 patches, is embedded alone and scored by
a softmax over the two; a patch has the harmonic mean of the windows that cover it, and the harmonic mean over scales is the map. With k normal images
(WinCLIP+) the cosine distance to their nearest patch or window is added. Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification
and Segmentation", CVPR 2023, arXiv:2303.14814. Its encoder is of kind `clip` with the layers that `needs` names, at 240 px for ViT-B-16-plus-240.

Deviations and readings of the paper:
- The patch tokens of the few-shot branch are those of the last block behind the final norm, not projected (the paper: "penultimate feature map").
- Temperature 0.07, not the checkpoint's logit scale of 100 (the public re-runs do the same).
- The object is called as the category is, underscores as spaces; `objects` gives other words. Figures on VisA depend on them.
- The map is M0 + M_few; the paper's figures are of 240 px, other sizes are for trying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.detectors.maps import to_pixels
from stages.detectors.zero_shot.maths.prompts import ensemble, object_name
from stages.types import Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run

LEAST = 1e-6  # of a score that is divided by


class WinCLIP(Detector):
    """scales: sides of the windows, in patches. temperature: of the softmax over both directions. objects: {category: what sentences call it}."""

    zero_shot = True

    def __init__(self, *, scales: tuple[int, ...] = (2, 3), temperature: float = 0.07, objects: dict[str, str] | None = None) -> None:
        super().__init__()
        if not scales or min(scales) < 1 or temperature <= 0:
            raise ValueError(f"scales must be one or more positive sides and temperature positive, got {scales} and {temperature}")
        self.windows = {f"window{side}": side for side in scales}
        self.needs = Need(layers=("image", "patches", *self.windows))
        self.temperature, self.objects = temperature, objects or {}
        self.register_buffer("text", torch.empty(0, 0))  # (2, D): good, bad
        for layer in ("patches", *self.windows):
            self.register_buffer(f"references_{layer}", torch.empty(0, 0))  # (M, C) of length 1; none when k is 0

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        if run.text is None:
            raise Refusal("WinCLIP compares images with sentences, and its encoder reads none: pair it with an encoder of kind clip")
        self.text = ensemble(run.text, self.objects.get(run.category, object_name(run.category))).to(run.device)
        seen = [batch.features for batch in train]
        for layer in ("patches", *self.windows) if seen else ():
            rows = torch.cat([features[layer].flatten(2).transpose(1, 2).flatten(0, 1) for features in seen])
            setattr(self, f"references_{layer}", F.normalize(rows.to(run.device), dim=1))
        run.history.append({"images": train.samples, "patches": len(self.references_patches)})
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One image at a time, so that a score cannot depend on its company through rounding."""
        self.require_fitted(self.text)
        layers = {layer: features[layer].to(self.text.device) for layer in self.needs.layers}
        images = [self._score({layer: value[place] for layer, value in layers.items()}) for place in range(len(layers["image"]))]
        maps = to_pixels(torch.stack([one for _, one in images]), tuple(features["pixels"].shape[2:]))
        return Prediction(torch.stack([score for score, _ in images]), maps)

    def _score(self, image: Features) -> tuple[Tensor, Tensor]:
        """The score and the (h, w) map of one image, whose layers are (C, h, w)."""
        grid = tuple(image["patches"].shape[1:])
        whole = self._anomalous(image["image"])  # (1, 1)
        scales = [whole.expand(grid), *(spread(self._anomalous(image[layer]), side) for layer, side in self.windows.items())]
        zero_shot = harmonic_mean(torch.stack(scales))
        if not len(self.references_patches):
            return whole[0, 0], zero_shot
        distances = [
            self._distance(image, "patches"),
            *(spread(self._distance(image, layer), side) for layer, side in self.windows.items()),
        ]
        few_shot = torch.stack(distances).mean(dim=0)
        return (whole[0, 0] + few_shot.max()) / 2, zero_shot + few_shot

    def _anomalous(self, embedded: Tensor) -> Tensor:
        """(h, w) in 0..1: the share of "bad" in the softmax over both directions, for (D, h, w)."""
        cosines = torch.einsum("td,dhw->thw", self.text, F.normalize(embedded, dim=0))
        return (cosines / self.temperature).softmax(dim=0)[1]

    def _distance(self, image: Features, layer: str) -> Tensor:
        """(h, w) in 0..1: half the cosine distance to the nearest reference."""
        rows = F.normalize(image[layer].flatten(1).T, dim=1)
        nearest = (rows @ getattr(self, f"references_{layer}").T).amax(dim=1)
        return ((1 - nearest) / 2).clamp(min=0).unflatten(0, image[layer].shape[1:])


def spread(scores: Tensor, side: int) -> Tensor:
    """(h, w) of patches from (h - side + 1, w - side + 1) of windows: each patch has the harmonic mean of the windows that cover it."""
    ones = torch.ones(1, 1, side, side, dtype=scores.dtype, device=scores.device)
    inverse = F.conv_transpose2d(1 / scores.clamp(min=LEAST)[None, None], ones)
    return (F.conv_transpose2d(torch.ones_like(scores)[None, None], ones) / inverse)[0, 0]


def harmonic_mean(scores: Tensor) -> Tensor:
    """Over the first axis."""
    return len(scores) / (1 / scores.clamp(min=LEAST)).sum(dim=0)
