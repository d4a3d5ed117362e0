"""DRAEM: one network learns to wipe simulated defects off normal images, a second to mark where the first had to.

A defect is a blotch of a changed texture. The redrawing network, without skips, gives the normal image back; the marking network, with
skips, sees redrawing and image together and tells for each pixel whether it is normal. Zavrtanik et al., "DRAEM - A Discriminatively
Trained Reconstruction Embedding for Surface Anomaly Detection", arXiv:2108.07610; settings that the paper leaves open are those of the
authors' code. Pixels are in 0..1, without another normalisation; the map is not blurred.

Deviations from the paper:
- The simulated defects differ in what maths/smudges.py and stages/detectors/perlin.py say of themselves.
- Each image meets one texture each time it comes up, drawn at random from the run's auxiliary "textures" (the paper: DTD).
- The kept state is the one with the lowest loss on held-out normal images under simulated defects, the same ones each time (`val_loss`,
  once an epoch), and training stops after `patience` epochs without a better one; the paper keeps the last state of 700 epochs, as happens
  here without held-out images. `steps` caps the training.
- An image whose sides are no multiples of 2 to the power of `levels` is padded by repeating its border, up to twice that at least, so that
  batch normalisation has more than one value at the coarsest level; the map is cropped again.
- The similarity mirrors the border; the authors' code pads it with zeros.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.perlin import rotated
from stages.detectors.reconstruction.maths.padding import cropped, next_multiple, padded
from stages.detectors.reconstruction.maths.similarity import structural_similarity
from stages.detectors.reconstruction.maths.smudges import smudged
from stages.detectors.reconstruction.maths.unet import Marking, Redrawing, initialised
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run

IMAGES_AT_ONCE = 4  # what the networks are shown when they score: at full width, 256 pixels of one image take 34 MB a layer


class DRAEM(Detector):
    """width, marking_width: channels of the finest level of the redrawing and of the marking network.

    levels: how often the marking network halves the grid; the redrawing one does it once less. opacity: at most so much of the image shows
    through a simulated defect. clean: share of the images that stay without one. turned: share of the normal images that are turned by up to
    90 degrees first; 0 suits aligned parts. score_window: the image score is the maximum of the map after a mean filter of so many pixels.
    """

    def __init__(
        self,
        *,
        width: int = 128,
        marking_width: int = 64,
        levels: int = 5,
        opacity: float = 0.8,
        clean: float = 0.5,
        turned: float = 0.3,
        score_window: int = 21,
        epochs: int = 700,
        steps: int | None = None,
        batch_size: int = 8,
        learning_rate: float = 1e-4,
        patience: int | None = 50,
    ) -> None:
        super().__init__()
        if score_window < 1 or score_window % 2 == 0:
            raise ValueError(f"score_window must be odd, so that the mean filter has a middle, got {score_window}")
        for name, value in (("opacity", opacity), ("clean", clean), ("turned", turned)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in 0..1, got {value}")
        if levels < 2:
            raise ValueError(f"levels must be at least 2, for the redrawing network has one less, got {levels}")
        self.needs = Need(aux=("textures",))
        self.width, self.marking_width, self.levels, self.score_window = width, marking_width, levels, score_window
        self.opacity, self.clean, self.turned = opacity, clean, turned
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate = learning_rate
        self.networks = self._new_networks(seed=0)
        self.register_buffer("steps_trained", torch.empty(0, dtype=torch.int64))  # (1,) after which the kept state was reached
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        textures = run.aux.get("textures")
        if textures is None or textures.samples == 0:
            raise Refusal("DRAEM makes its simulated defects of textures, and this run has none: give it auxiliary images named 'textures'")
        self.networks = self._new_networks(derive(run.seed, "networks"))
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            schedule=fifth_at_the_end,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._held_out_loss(held_out, textures, run)}) if held_out else None
        reached = run.train(self.networks, train, partial(self._loss, textures=textures), plan, measure, name="networks")
        self.steps_trained = torch.tensor([reached], device=run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.steps_trained)
        device = next(self.networks.parameters()).device
        marked = [self._forward(part.to(device) / 255)[1] for part in features["pixels"].split(IMAGES_AT_ONCE)]
        anomaly_map = torch.cat(marked).softmax(dim=1)[:, 1]
        means = F.avg_pool2d(anomaly_map[:, None], self.score_window, stride=1, padding=self.score_window // 2)
        return Prediction(means.flatten(1).amax(dim=1), anomaly_map)

    def _new_networks(self, seed: int) -> nn.Module:
        def build() -> nn.Module:
            redrawing, marking = Redrawing(3, 3, self.width, self.levels - 1), Marking(6, 2, self.marking_width, self.levels)
            return nn.ModuleDict({"redrawing": redrawing, "marking": marking})

        return initialised(build, seed)

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The images without their defects (B, 3, H, W), and logits of normal and anomalous (B, 2, H, W); from values in 0..1."""
        size = (images.shape[2], images.shape[3])
        fitting = padded(images, next_multiple(size, 2**self.levels, least=2 ** (self.levels + 1)))
        redrawn = self.networks["redrawing"](fitting)
        marked = self.networks["marking"](torch.cat([redrawn, fitting], dim=1))
        return cropped(redrawn, size), cropped(marked, size)

    def _simulated(self, images: Tensor, textures: Batches, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Normal images, the same with simulated defects, and where those are; some of the normal ones are turned first."""
        count, size = len(images), (images.shape[2], images.shape[3])
        angles = torch.where(torch.rand(count, generator=generator) < self.turned, 180 * torch.rand(count, generator=generator) - 90, 0.0)
        normal = torch.where((angles != 0).to(images.device)[:, None, None, None], rotated(images, angles), images)
        drawn = textures.take(torch.randint(textures.samples, (count,), generator=generator).tolist()).features["pixels"].cpu() / 255
        if drawn.shape[2:] != images.shape[2:]:
            drawn = F.interpolate(drawn, size, mode="bilinear", antialias=True)
        defective, masks = smudged(normal, drawn, generator, opacity=self.opacity, clean=self.clean)
        return normal, defective, masks

    def _loss(self, batch: Batch, generator: torch.Generator, textures: Batches) -> Tensor:
        return self._loss_of(*self._simulated(batch.features["pixels"] / 255, textures, generator))

    def _loss_of(self, normal: Tensor, defective: Tensor, masks: Tensor) -> Tensor:
        """Squared error and dissimilarity of the redrawing, and the focal loss of the marking."""
        redrawn, marked = self._forward(defective)
        dissimilarity = 1 - structural_similarity(redrawn, normal).mean()
        return F.mse_loss(redrawn, normal) + dissimilarity + focal_loss(marked, masks)

    def _held_out_loss(self, batches: Batches, textures: Batches, run: Run) -> float:
        """Each image has its own defect, the same whenever it is measured and whatever its company."""
        total, seen = 0.0, 0
        for batch in batches:
            images = batch.features["pixels"].to(run.device) / 255
            generators = [run.generator("held-out defects", seen + place) for place in range(len(images))]
            each = [self._simulated(image[None], textures, generator) for image, generator in zip(images, generators, strict=True)]
            total += len(images) * self._loss_of(*(torch.cat(parts) for parts in zip(*each, strict=True))).item()
            seen += len(images)
        return total / seen


def focal_loss(logits: Tensor, masks: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over pixels of -(1 - p)^gamma log p, p the probability of the true class; no weights of the classes.

    logits: (B, 2, H, W). masks: (B, H, W) bool. Lin et al., "Focal Loss for Dense Object Detection", arXiv:1708.02002, equation 4.
    """
    log_probability = logits.log_softmax(dim=1).gather(1, masks[:, None].long())
    return -((1 - log_probability.exp()) ** gamma * log_probability).mean()


def fifth_at_the_end(step: int, total: int) -> float:
    """1, a fifth after 80 % of the steps, a fifth of that after 90 %."""
    return 0.2 ** ((step >= 0.8 * total) + (step >= 0.9 * total))
