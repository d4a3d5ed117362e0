"""How far the mean brightness of an image is from that of the training images. No paper; cannot localise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from stages.types import Batches, Detector, Features, Prediction

if TYPE_CHECKING:
    from stages.training import Run


class Brightness(Detector):
    """Scores are absolute differences of brightness in 0..1."""

    one_pass = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("brightness", torch.empty(0))  # (1,) in 0..1

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        total = torch.stack([brightness(batch.features["pixels"]).sum() for batch in train]).sum()
        self.brightness = (total / train.samples).float().reshape(1).to(run.device)
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.brightness)
        return Prediction((brightness(features["pixels"]).to(self.brightness) - self.brightness).abs(), None)


def brightness(pixels: Tensor) -> Tensor:
    """(B,) float64 mean over channels and pixels in 0..1; integer sums, so the batch cannot matter."""
    return pixels.sum(dim=(1, 2, 3), dtype=torch.int64).double() / (255 * pixels[0].numel())
