"""Reverse Distillation: a student gets the teacher's deep embedding, not the image, and must give back the teacher's features from it; what
is not normal does not pass the narrow embedding, so there teacher and student differ.

The features of three layers are fused and compressed (one-class bottleneck embedding), a decoder shaped like the teacher in a mirror
restores them from the coarsest layer to the finest, and 1 - cosine between the two is both what is trained and what is shown; the maps of
the layers are added. Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022, arXiv:2201.10703.

Deviations from the paper:
- The teacher never runs here: student and loss are fed with the features that the encoder has stored.
- The loss is that of the authors' code, one cosine per image and layer over the flattened features (the text: one per position).
- Embedding and decoder are built for whatever channels and strides the features have, from basic blocks where the first layer has fewer
  than 256 channels; `width` scales the inner channels. At 256/512/1024 channels the default is the paper's WideResNet-50-2; give width 1
  for ResNet-50.
- The kept state is the one with the lowest loss on held-out normal images (`val_loss`, once an epoch), and training stops after `patience`
  epochs without a better one. Without held-out images all epochs are run and the last state is kept. `steps` caps the training.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.distillation.maths.reverse import Pyramid, ReverseStudent, Style, summed_map, unit_distance
from stages.detectors.maps import gaussian_blur
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run

IMAGES_AT_ONCE = 4  # scored together: activations of more leave the cache


class ReverseDistillation(Detector):
    """layers: from fine to coarse. block: of embedding and decoder; auto takes what the teacher's channels suggest. width: of the blocks'
    inner channels, relative to a plain ResNet; None takes the paper's. blur_sigma: in pixels.
    """

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer1", "layer2", "layer3"),
        block: Literal["auto", "basic", "bottleneck"] = "auto",
        width: float | None = None,
        epochs: int = 200,
        steps: int | None = None,
        batch_size: int = 16,
        learning_rate: float = 0.005,
        patience: int | None = 20,
        blur_sigma: float = 4.0,
    ) -> None:
        super().__init__()
        if width is not None and width <= 0:
            raise ValueError(f"width must be above 0, or null for the paper's, got {width}")
        self.needs = Need(layers=tuple(layers))
        self.block, self.width, self.blur_sigma = block, width, blur_sigma
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.learning_rate, self.patience = learning_rate, patience
        self.register_buffer("pyramid", torch.empty(0, 0, dtype=torch.int64))  # (2, layers) channels and halvings: what the student fits
        self.student = nn.Module()
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        pyramid = Pyramid.of(train.take([0]).features, self.needs.layers)
        self.pyramid = pyramid.to_tensor().to(run.device)
        self.student = self._new_student(pyramid, derive(run.seed, "student"))
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate, betas=(0.5, 0.999)),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._mean_loss(held_out)}) if held_out else None
        run.train(self.student, train, self._loss, plan, measure, name="student")
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.pyramid)
        came = tuple(features[layer].shape[1] for layer in self.needs.layers)
        if came != (known := Pyramid.from_tensor(self.pyramid).channels):
            raise ValueError(f"the student knows layers of {known} channels, these have {came}; give it the encoder that it learnt from")
        parts = zip(*(features[layer].split(IMAGES_AT_ONCE) for layer in self.needs.layers), strict=True)
        size = tuple(features["pixels"].shape[2:])
        maps = torch.cat([self._map(list(part), size) for part in parts])
        anomaly_map = gaussian_blur(maps, self.blur_sigma)
        return Prediction(anomaly_map.flatten(1).amax(dim=1), anomaly_map)

    def _new_student(self, pyramid: Pyramid, seed: int) -> ReverseStudent:
        return ReverseStudent(pyramid, Style.of(pyramid, self.block, self.width), seed)

    def _map(self, teacher: list[Tensor], size: tuple[int, int]) -> Tensor:
        teacher = [layer.to(self.pyramid.device).float() for layer in teacher]
        return summed_map([unit_distance(*pair) for pair in zip(teacher, self.student(teacher), strict=True)], size)

    def _losses(self, features: Features) -> Tensor:
        """(B,): sum over layers of 1 - cosine, each layer of an image being one long vector."""
        teacher = [features[layer].to(self.pyramid.device).float() for layer in self.needs.layers]
        pairs = zip(teacher, self.student(teacher), strict=True)
        return sum(1 - F.cosine_similarity(one.flatten(1), other.flatten(1)) for one, other in pairs)

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._losses(batch.features).mean()

    def _mean_loss(self, batches: Batches) -> float:
        return sum(self._losses(batch.features).double().sum().item() for batch in batches) / batches.samples

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        stored = state_dict.get(f"{prefix}pyramid")
        if stored is not None and stored.numel():
            self.student = self._new_student(Pyramid.from_tensor(stored), seed=0).to(self.pyramid.device).eval()
        super()._load_from_state_dict(state_dict, prefix, *args)
