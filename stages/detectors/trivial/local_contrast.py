"""The strongest local contrast of an image: the largest standard deviation of grey within a 16x16 patch. No paper; learns nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F

from stages.types import Batches, Detector, Features, Prediction

if TYPE_CHECKING:
    from stages.training import Run

PATCH = 16  # pixels; patches at the right and lower border may be smaller


class LocalContrast(Detector):
    """Scores are standard deviations of grey in 0..1, grey being the mean of the channels."""

    one_pass = True

    def __init__(self) -> None:
        super().__init__()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        return self

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        pixels = features["pixels"]
        grey = pixels.double().mean(dim=1, keepdim=True) / 255
        mean, square = (F.avg_pool2d(values, PATCH, ceil_mode=True, count_include_pad=False) for values in (grey, grey.square()))
        contrast = (square - mean.square()).clamp(min=0).sqrt().float()[:, 0]  # (B, patches down, patches across)
        spread = contrast.repeat_interleave(PATCH, dim=1).repeat_interleave(PATCH, dim=2)
        return Prediction(contrast.flatten(1).amax(dim=1), spread[:, : pixels.shape[2], : pixels.shape[3]].contiguous())
