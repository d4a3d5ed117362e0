"""How far an image is from the mean of the training images, pixel by pixel. No paper; the strongest of the trivial rows on aligned
parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch

from stages.types import Batches, Detector, Features, Prediction

if TYPE_CHECKING:
    from stages.training import Run


class MeanImage(Detector):
    """Scores are mean absolute differences of pixels in 0..1."""

    one_pass = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_image", torch.empty(0, 0, 0))  # (3, H, W) in 0..1

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        total = sum(batch.features["pixels"].sum(dim=0, dtype=torch.int64) for batch in train)
        self.mean_image = (total / (255 * train.samples)).float().to(run.device)
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.mean_image)
        difference = (features["pixels"].to(self.mean_image.device) / 255 - self.mean_image).abs().mean(dim=1)
        return Prediction(torch.stack([image.mean() for image in difference]), difference)
