"""EfficientAD: a small student learns, on normal images, to give the features of a frozen teacher that sees patches of 33 pixels; a second
half of it learns what an autoencoder makes of them.

The autoencoder sees the whole image through a narrow bottleneck, so it gets normal arrangements right and blurs; the student mimics that
blur, and where the two differ, the arrangement is not normal. Only the hardest thousandth of the student's errors is descended, and on
images of other things the student is pushed to zero, so that it does not learn to imitate its teacher there too. Batzner, Heckler and
Koenig, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", WACV 2024, arXiv:2303.14535.

Deviations from the paper:
- The teacher is what `teacher_weights` names (see stages/encoders/pdn.py). Its published weights fit; "random" is an untrained one.
- `batch_size` may be more than the paper's 1: the hard features are chosen in each image by itself, so the loss of a batch is the mean of
  the losses of its images.
- Images of other sizes than 256: the decoder's sizes scale as they do in re-implementations, the last convolution of the encoder shrinks
  with what it is given, and images are extended to a multiple of 32 pixels for the autoencoder. `padding` (zeros around every layer of
  teacher and student, off as in the paper) makes images below 33 pixels possible.
- Quantiles are exact, over all values of the maps on their own grid: the margin of zeros around a map, which is no measurement, has no
  part in them. Without held-out images they come from the training images.
- With `patience`, training stops when `val_loss` (hard features and both other losses on held-out images) has not improved for so many
  epochs, and the best state is kept. By default, as in the paper, all steps are run.
- `width` scales the channels of all three networks, for schedules on a CPU.
- The penalty images come at the size of the data, and are enlarged to twice that and cut, as the paper does with ImageNet's.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.distillation.maths.autoencoder import Autoencoder
from stages.detectors.maps import to_pixels
from stages.encoders.pdn import PDN, scaled
from stages.encoders.weights import load_or_refuse
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run

CHANNELS = 384  # of the teacher, at width 1
MARGIN = 4  # cells of zeros around a map whose networks are not padded: 56 + 8 = 256 / 4
HARD = 0.999
QUANTILES = (0.9, 0.995)
GREY = (0.2989, 0.587, 0.114)


class EfficientAD(Detector):
    """size: "small" is EfficientAD-S, "medium" -M. teacher_weights: of the lock of weights, or "random". steps: that many optimiser steps,
    of whatever number of epochs; `epochs` caps them where it is smaller."""

    def __init__(
        self,
        *,
        size: Literal["small", "medium"] = "small",
        teacher_weights: str = "pdn-small",
        width: float = 1.0,
        padding: bool = False,
        epochs: int = 70_000,
        steps: int | None = 70_000,
        batch_size: int = 1,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-5,
        patience: int | None = None,
    ) -> None:
        super().__init__()
        self.needs = Need(aux=("penalty",))
        self.size, self.teacher_weights, self.width, self.padding = size, teacher_weights, width, padding
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.outputs = scaled(CHANNELS, width)
        self.register_buffer("mean", torch.empty(0))  # (C,) of the teacher's channels over the training images
        self.register_buffer("std", torch.empty(0))
        self.register_buffer("quantiles", torch.empty(0, 0))  # (2, 2): of the student's and of the autoencoder's map, at 0.9 and 0.995
        self.register_buffer("steps_trained", torch.empty(0, dtype=torch.int64))  # (1,) after which the kept state was reached
        self.teacher = self._new_pdn(self.outputs, seed=0).requires_grad_(False)
        self._new_learners(seed=0, bottleneck=(8, 8))
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        if "penalty" not in run.aux or not run.aux["penalty"].samples:
            raise Refusal("EfficientAD needs images of other things to learn what not to imitate: run.aux has no images under 'penalty'")
        self.teacher = self._new_pdn(self.outputs, seed=0).requires_grad_(False).eval()
        run.history.append({"teacher": load_or_refuse(self.teacher, self.teacher_weights, run.backbones)})
        self.teacher.to(run.device)
        self._new_learners(run.seed, Autoencoder.bottleneck(train.take([0]).features["pixels"]))
        self.mean, self.std = self._channel_statistics(train, run)
        held_out = val if val is not None and val.samples else None
        watched = held_out is not None and self.patience is not None
        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate, weight_decay=self.weight_decay),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            schedule=lambda step, total: 1.0 if step < int(0.95 * total) else 0.1,
            watch="val_loss" if watched else None,
            patience=self.patience if watched else None,
        )
        learners = nn.ModuleDict({"student": self.student, "autoencoder": self.autoencoder})
        measure = (lambda: {"val_loss": self._val_loss(held_out)}) if watched else None
        reached = run.train(learners, train, partial(self._loss, run.aux["penalty"]), plan, measure, name="student")
        self.quantiles = self._quantiles(held_out or train)
        self.steps_trained = torch.tensor([reached], device=run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One image at a time: a score cannot depend on its company, and this network wants no more at once."""
        self.require_fitted(self.steps_trained)
        maps = []
        for image in features["pixels"].split(1):
            both = [to_pixels(self._with_margin(one), tuple(image.shape[2:])) for one in self.maps(image.to(self.mean.device))]
            low, high = self.quantiles.unbind(dim=1)
            normalised = [0.1 * (one - a) / (b - a) for one, a, b in zip(both, low, high, strict=True)]
            maps.append(0.5 * normalised[0] + 0.5 * normalised[1])
        anomaly_map = torch.cat(maps)
        return Prediction(anomaly_map.flatten(1).amax(dim=1), anomaly_map)

    def maps(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w) of student against teacher, and of autoencoder against the student's other half; as they are, on their own grid."""
        target, (first, second) = self._target(levels), self._student(levels)
        rebuilt = self.autoencoder(levels, tuple(target.shape[2:]))
        return (target - first).square().mean(dim=1), (rebuilt - second).square().mean(dim=1)

    def losses(self, levels: Tensor, jittered: Tensor, penalty: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of student to teacher (hard features, and the penalty where there is one), autoencoder to teacher, student to autoencoder."""
        hard = hard_feature_loss((self._target(levels) - self._student(levels)[0]).square())
        if penalty is not None:
            hard = hard + self._student(penalty)[0].square().mean()
        target, second = self._target(jittered), self._student(jittered)[1]
        rebuilt = self.autoencoder(jittered, tuple(target.shape[2:]))
        return hard, (target - rebuilt).square().mean(), (rebuilt - second).square().mean()

    def _loss(self, penalty: Batches, batch: Batch, generator: torch.Generator) -> Tensor:
        pixels = batch.features["pixels"].float()
        chosen = torch.randint(penalty.samples, (len(pixels),), generator=generator).tolist()
        others = penalty_view(penalty.take(chosen).features["pixels"].to(pixels.device), tuple(pixels.shape[2:]), generator)
        return torch.stack(self.losses(pixels, colour_jitter(pixels, generator), others)).sum()

    def _val_loss(self, batches: Batches) -> float:
        total = 0.0
        for batch in batches:
            levels = batch.features["pixels"].to(self.mean.device)
            total += len(levels) * torch.stack(self.losses(levels, levels)).sum().item()
        return total / batches.samples

    @torch.no_grad()
    def _target(self, levels: Tensor) -> Tensor:
        return (self.teacher(levels) - self.mean[:, None, None]) / self.std[:, None, None]

    def _student(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The half that imitates the teacher, and the half that imitates the autoencoder."""
        return self.student(levels).chunk(2, dim=1)

    def _with_margin(self, maps: Tensor) -> Tensor:
        return maps if self.padding else F.pad(maps, (MARGIN,) * 4)

    @torch.no_grad()
    def _channel_statistics(self, batches: Batches, run: Run) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each of the teacher's channels, over all positions of all images, summed in float64."""
        count, total, squares = 0, 0.0, 0.0
        with run.progress("teacher's channels", batches.samples) as advance:
            for batch in batches:
                for image in batch.features["pixels"].split(1):
                    values = self.teacher(image.to(run.device)).double().transpose(0, 1).flatten(1)  # (C, B*h*w)
                    count, total, squares = count + values.shape[1], total + values.sum(dim=1), squares + values.square().sum(dim=1)
                advance(len(batch.sample_id))
        mean = total / count
        return mean.float(), (squares / count - mean.square()).clamp_min(1e-12).sqrt().float()

    @torch.no_grad()
    def _quantiles(self, batches: Batches) -> Tensor:
        pairs = [self.maps(image.to(self.mean.device)) for batch in batches for image in batch.features["pixels"].split(1)]
        sides = [torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1)]
        return torch.stack([torch.stack([quantile(values, q) for q in QUANTILES]) for values in sides])

    def _new_pdn(self, outputs: int, seed: int) -> PDN:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return PDN(size=self.size, outputs=outputs, width=self.width, padding=self.padding)

    def _new_learners(self, seed: int, bottleneck: tuple[int, int]) -> None:
        self.student = self._new_pdn(2 * self.outputs, derive(seed, "student")).to(self.mean.device).train(self.training)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "autoencoder"))
            self.autoencoder = Autoencoder(self.outputs, self.width, bottleneck).to(self.mean.device).train(self.training)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """The kernel at the bottleneck has the size of what it was trained on."""
        stored = state_dict.get(f"{prefix}autoencoder.encoder.5.weight")
        if stored is not None:
            self._new_learners(0, tuple(stored.shape[2:]))
        super()._load_from_state_dict(state_dict, prefix, *args)


def hard_feature_loss(squared: Tensor) -> Tensor:
    """The mean of those elements of (B, C, h, w) that reach their image's 0.999 quantile; then the mean over images."""
    losses = []
    for values in squared.flatten(1):
        kept = len(values) - math.ceil(HARD * (len(values) - 1))
        threshold = values.topk(kept).values[-1]  # no element lies between it and the interpolated quantile
        losses.append(values[values >= threshold].mean())
    return torch.stack(losses).mean()


def quantile(values: Tensor, q: float) -> Tensor:
    """As torch.quantile, linear between ranks, of any number of values (its limit is 2**24)."""
    place = q * (len(values) - 1)
    low, high = (values.kthvalue(rank + 1).values for rank in (math.floor(place), math.ceil(place)))
    return torch.lerp(low, high, place - math.floor(place))


def colour_jitter(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with its brightness, contrast or saturation (one of them) times a factor from U[0.8, 1.2]; levels 0..255 stay there."""
    changed = []
    for image in levels:
        which = int(torch.randint(3, (1,), generator=generator))
        factor = 0.8 + 0.4 * torch.rand(1, generator=generator).item()
        grey = _grey(image)
        towards = (torch.zeros_like(grey), grey.mean().expand_as(grey), grey)[which]
        changed.append((factor * image + (1 - factor) * towards).clamp(0, 255))
    return torch.stack(changed)


def penalty_view(pixels: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, 3, H, W) uint8 to (B, 3, *size) levels: enlarged to twice `size`, grey with probability 0.3, its middle cut out."""
    height, width = size
    large = F.interpolate(pixels.float(), (2 * height, 2 * width), mode="bilinear", antialias=True)
    middle = large[:, :, height // 2 : height // 2 + height, width // 2 : width // 2 + width]
    colourless = torch.rand(len(pixels), generator=generator).to(pixels.device) < 0.3
    return torch.where(colourless[:, None, None, None], torch.stack([_grey(image).expand_as(image) for image in middle]), middle)


def _grey(image: Tensor) -> Tensor:
    """(3, H, W) -> (1, H, W)."""
    return (image * image.new_tensor(GREY)[:, None, None]).sum(dim=0, keepdim=True)
