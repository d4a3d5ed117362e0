"""Autoencoder: a network squeezes an image through a narrow grid and draws it again; trained on normal images, it draws defects badly.

The encoder halves the grid `levels` times, its last convolution leaves `latent_channels`; the decoder is its mirror and ends in a sigmoid.
The map is the error of each pixel: squared, or one minus the structural similarity. A baseline, not a method of one paper; the similarity
is that of Bergmann et al., "Improving Unsupervised Defect Segmentation by Applying Structural Similarity to Autoencoders",
arXiv:1807.02011. Pixels are in 0..1, without another normalisation.

Deviations from that paper:
- Whole images of any size instead of patches of 128 pixels, so the latent is a grid of `latent_channels` instead of one vector; the
  default of 128 (the paper: 100) and the schedule are those that are in common use for whole images.
- Batch normalisation, ReLU after it on both sides, but neither at the latent nor before the sigmoid; the paper has leaky ReLU and none.
- The image score, of which the paper has none, is the maximum of the map, or the mean of its highest `top_share`.
- The kept state is the one with the lowest loss on held-out normal images (`val_loss`, once an epoch), and training stops after `patience`
  epochs without a better one. Without held-out images all epochs are run and the last state is kept. `steps` caps the training.
- An image whose sides are no multiples of 2 to the power of `levels` is padded by repeating its border, and the map is cropped again.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn

from stages.detectors.maps import gaussian_blur
from stages.detectors.reconstruction.maths.padding import cropped, next_multiple, padded
from stages.detectors.reconstruction.maths.similarity import structural_similarity
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Prediction

if TYPE_CHECKING:
    from stages.training import Run


class Autoencoder(Detector):
    """width: channels after the first convolution; each of the `levels` doubles them, up to 8 times the width.

    error: what is trained and shown: "mse" (mean squared error), "ssim" (one minus the similarity) or "mse+ssim", their sum.
    blur_sigma: in pixels of the map, 0 for none. top_share: of the map's pixels, whose mean is the image score; 0 takes the maximum.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        levels: int = 5,
        latent_channels: int = 128,
        error: Literal["mse", "ssim", "mse+ssim"] = "mse",
        blur_sigma: float = 0.0,
        top_share: float = 0.0,
        epochs: int = 200,
        steps: int | None = None,
        batch_size: int = 16,
        learning_rate: float = 2e-4,
        weight_decay: float = 1e-5,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("levels", levels), ("latent_channels", latent_channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 <= top_share <= 1:
            raise ValueError(f"top_share must be in 0..1 (share of the map's pixels; 0 takes the maximum), got {top_share}")
        self.width, self.levels, self.latent_channels = width, levels, latent_channels
        self.parts, self.blur_sigma, self.top_share = error.split("+"), blur_sigma, top_share
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.network = self._new_network(seed=0)
        self.register_buffer("steps_trained", torch.empty(0, dtype=torch.int64))  # (1,) after which the kept state was reached
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        self.network = self._new_network(derive(run.seed, "network"))
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate, weight_decay=self.weight_decay),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._mean_error(held_out)}) if held_out else None
        reached = run.train(self.network, train, self._loss, plan, measure, name="network")
        self.steps_trained = torch.tensor([reached], device=run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.steps_trained)
        anomaly_map = gaussian_blur(self._errors(features), self.blur_sigma)
        flat = anomaly_map.flatten(1)
        highest = max(1, math.ceil(self.top_share * flat.shape[1]))
        return Prediction(flat.topk(highest, dim=1).values.mean(dim=1), anomaly_map)

    def _new_network(self, seed: int) -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(*_encoder(self._channels()), *_decoder(self._channels()[::-1]))

    def _channels(self) -> list[int]:
        """Of the image, of each level, of the latent."""
        return [3, *(self.width * min(2**level, 8) for level in range(self.levels - 1)), self.latent_channels]

    def _errors(self, features: Features) -> Tensor:
        """(B, H, W): the error of each pixel, a mean over its colours."""
        images = features["pixels"].to(next(self.network.parameters()).device) / 255
        size = (images.shape[2], images.shape[3])
        drawn = cropped(self.network(padded(images, next_multiple(size, 2**self.levels))), size)
        measures = {"mse": lambda: (drawn - images).square(), "ssim": lambda: 1 - structural_similarity(drawn, images)}
        return torch.stack([measures[part]().mean(dim=1) for part in self.parts]).sum(dim=0)

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._errors(batch.features).mean()

    def _mean_error(self, batches: Batches) -> float:
        total = sum(self._errors(batch.features).mean(dim=(1, 2)).double().sum().item() for batch in batches)
        return total / batches.samples


def _encoder(channels: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return layers[:-2]  # the latent is what the last convolution gives


def _decoder(channels: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(channels):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return [*layers[:-2], nn.Sigmoid()]
