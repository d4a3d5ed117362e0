"""STFPM: a student network learns, on normal images, to give the features of a frozen teacher; where it fails, the image is not normal.

Teacher and student have the same architecture. At each position of each layer both feature vectors are scaled to unit length, and half
their squared distance is what training lowers and what scoring shows; the maps of the layers are multiplied, so a position counts only
where all scales disagree. Wang et al., "Student-Teacher Feature Pyramid Matching for Anomaly Detection", arXiv:2103.04257, equations 1-4
(written from the paper alone).

Deviations from the paper:
- The teacher's features are those that the encoder has stored; only the student looks at pixels.
- The kept state is the one with the lowest mean anomaly map on held-out normal images (`val_map_mean`, once an epoch), and training stops
  after `patience` epochs without a better one. Without held-out images all epochs are run and the last state is kept.
- `steps` caps the training below `epochs`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.maps import to_pixels
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run

IMAGES_AT_ONCE = 4  # what the student is shown when it scores: activations of more leave the cache and take half as long again


class STFPM(Detector):
    """backbone: of teacher and student, as the encoder entry names it. steps: at most so many optimiser steps; None runs all epochs."""

    def __init__(
        self,
        *,
        backbone: str = "resnet18.tv_in1k",
        layers: tuple[str, ...] = ("layer1", "layer2", "layer3"),
        epochs: int = 100,
        steps: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 0.4,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        self.needs = Need(layers=tuple(layers), backbone=backbone)
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        self.student = self._new_student(seed=0)
        self.register_buffer("steps_trained", torch.empty(0, dtype=torch.int64))  # (1,) after which the kept state was reached
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        self.student = self._new_student(derive(run.seed, "student"))
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.SGD, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_map_mean" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_map_mean": self._map_mean(held_out)}) if held_out else None
        reached = run.train(self.student, train, self._loss, plan, measure, name="student")
        self.steps_trained = torch.tensor([reached], device=run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.steps_trained)
        anomaly_map = self._map(features)
        return Prediction(anomaly_map.flatten(1).amax(dim=1), anomaly_map)

    def _new_student(self, seed: int) -> nn.Module:
        """A student with random weights, which takes uint8 pixels as its teacher's encoder does."""
        from stages.encoders.cnn import CNN

        return CNN(backbone=self.needs.backbone, layers=self.needs.layers, weights="random", seed=seed, trainable=True)

    def _disagreement(self, features: Features) -> list[Tensor]:
        """(B, h, w) of each layer: half the squared distance of the unit vectors of teacher and student, in 0..2."""
        device = next(self.student.parameters()).device
        student = self.student(features["pixels"].to(device))
        return [half_squared_distance(features[layer].to(device), student[layer], layer) for layer in self.needs.layers]

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Sum over layers of the mean over positions and images: a sum over images instead would multiply the learning rate by the batch
        size."""
        return torch.stack([layer.mean() for layer in self._disagreement(batch.features)]).sum()

    def _map(self, features: Features) -> Tensor:
        size, parts = tuple(features["pixels"].shape[2:]), {name: value.split(IMAGES_AT_ONCE) for name, value in features.items()}
        disagreements = (self._disagreement(dict(zip(parts, part, strict=True))) for part in zip(*parts.values(), strict=True))
        return torch.cat([torch.stack([to_pixels(layer, size) for layer in layers]).prod(dim=0) for layers in disagreements])

    def _map_mean(self, batches: Batches) -> float:
        total = sum(self._map(batch.features).mean(dim=(1, 2)).double().sum().item() for batch in batches)
        return total / batches.samples


def half_squared_distance(teacher: Tensor, student: Tensor, layer: str) -> Tensor:
    """(B, h, w) from two (B, C, h, w), each scaled to unit length along C. Raises ValueError where the shapes differ."""
    if teacher.shape != student.shape:
        shapes = f"{tuple(teacher.shape[1:])} and {tuple(student.shape[1:])}"
        raise ValueError(f"{layer} of teacher and student are {shapes}: give encoder and model the same backbone, and one image size")
    return 0.5 * (F.normalize(teacher.float(), dim=1) - F.normalize(student, dim=1)).square().sum(dim=1)
