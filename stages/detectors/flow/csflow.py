"""CS-Flow: one flow over the feature maps of an image at three scales, whose couplings see all scales at once; unlikely images are anomalous.

The same layer of a frozen network is taken at full, half and quarter size of the image. Each of four blocks permutes the channels of every
scale, splits them in two, and lets each half scale and shift the other (as in GLOW) by networks with paths between neighbouring scales. The
loss is -log p for each dimension; the score of an image is its mean z^2 / 2 over all scales, channels and positions. Rudolph et al., "Fully
Convolutional Cross-Scale-Flows for Image-based Defect Detection", arXiv:2110.02855 (written from the paper's formulas alone).

`layers` are the scales from fine to coarse, under whatever names the encoder gives them; channels may differ, and a grid need not be exactly
twice the next: what crosses scales is resized (bilinear) to the grid where it goes.

Deviations from the paper:
- The paper's score has no map. The one here is the mean over scales of mean_c z^2 / 2, each brought to the size of the image.
- Permutations are drawn from the seed of the run; the paper fixes them by the numbers 0 to 3 for its four blocks.
- The kept state is the one with the lowest loss on held-out normal images (`val_loss`, once an epoch), and training stops after `patience`
  epochs without a better one. `steps` caps the training below `epochs`.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.flow.maths.coupling import seeded
from stages.detectors.maps import to_pixels
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run

Scales = list[Tensor]  # (B, C, h, w) of each scale, fine to coarse
BOUND = 1e6  # of what a block gives, so that a strange image cannot become infinite


class CSFlow(Detector):
    """kernels: of the networks of each block, one number a block. hidden: channels inside them. clamp: alpha of the soft clamp."""

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("fine", "middle", "coarse"),
        kernels: tuple[int, ...] = (3, 3, 3, 5),
        hidden: int = 1024,
        clamp: float = 3.0,
        epochs: int = 240,
        steps: int | None = None,
        batch_size: int = 16,
        learning_rate: float = 2e-4,
        weight_decay: float = 1e-5,
        clip_norm: float = 1.0,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        if not kernels or any(kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernels must be odd numbers, one for each block; got {list(kernels)}")
        self.needs = Need(layers=tuple(layers))
        self.kernels, self.hidden, self.clamp = tuple(kernels), hidden, clamp
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.weight_decay, self.clip_norm = learning_rate, weight_decay, clip_norm
        self.register_buffer("channels", torch.empty(0, dtype=torch.int64))  # (scales,) that the blocks were built for
        self.blocks = nn.ModuleList()
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        first = train.take([0]).features
        self._build(torch.tensor([first[layer].shape[1] for layer in self.needs.layers]), derive(run.seed, "blocks"))
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(clipped_adam, lr=self.learning_rate, weight_decay=self.weight_decay, clip_norm=self.clip_norm),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._val_loss(held_out)}) if held_out else None
        run.train(self.blocks, train, self._loss, plan, measure, name="blocks")
        self.channels = self.channels.to(run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.channels)
        latents, _ = self._latents(features)
        size = tuple(features["pixels"].shape[2:])
        anomaly_map = torch.stack([to_pixels(0.5 * z.square().mean(dim=1), size) for z in latents]).mean(dim=0)
        return Prediction(0.5 * torch.cat([z.flatten(1) for z in latents], dim=1).square().mean(dim=1), anomaly_map)

    def _build(self, channels: Tensor, seed: int) -> None:
        self.channels = channels.clone()
        with seeded(seed):
            self.blocks = nn.ModuleList([Block(channels.tolist(), self.hidden, kernel, self.clamp) for kernel in self.kernels])

    def _latents(self, features: Features) -> tuple[Scales, Tensor]:
        """z of each scale, and log|det| of the image (B,)."""
        device = next(self.blocks.parameters()).device
        scales = [features[layer].to(device).float() for layer in self.needs.layers]
        if [values.shape[1] for values in scales] != self.channels.tolist():
            came = f"channels were {self.channels.tolist()} in training and are {[values.shape[1] for values in scales]}"
            raise ValueError(f"{', '.join(self.needs.layers)}: {came}; use the encoder the model was trained on")
        total = torch.zeros(len(scales[0]), device=device)
        for block in self.blocks:
            scales, log_det = block(scales)
            total = total + log_det
        return scales, total

    def _negative_log_likelihood(self, features: Features) -> Tensor:
        """(B,): -log p for each dimension, without the constant of the Gaussian."""
        latents, log_det = self._latents(features)
        z = torch.cat([values.flatten(1) for values in latents], dim=1)
        return (0.5 * z.square().sum(dim=1) - log_det) / z.shape[1]

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._negative_log_likelihood(batch.features).mean()

    def _val_loss(self, batches: Batches) -> float:
        return sum(self._negative_log_likelihood(batch.features).double().sum().item() for batch in batches) / batches.samples

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """The stored channels say which blocks the stored weights belong to."""
        channels = state_dict.get(f"{prefix}channels")
        if channels is not None and channels.numel():
            device = self.channels.device
            self._build(channels.cpu(), seed=0)
            self.to(device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Block(nn.Module):
    """Permute the channels of each scale, then x1 -> y1 = x1 exp(s(x2)) + t(x2) and x2 -> x2 exp(s(y1)) + t(y1)."""

    def __init__(self, channels: list[int], hidden: int, kernel: int, clamp: float) -> None:
        super().__init__()
        second = [width // 2 for width in channels]
        self.first, self.clamp = [width - half for width, half in zip(channels, second, strict=True)], clamp
        self.by_second = CrossScale(second, [2 * width for width in self.first], hidden, kernel)
        self.by_first = CrossScale(self.first, [2 * width for width in second], hidden, kernel)
        for scale, width in enumerate(channels):
            self.register_buffer(f"order{scale}", torch.randperm(width))

    def forward(self, scales: Scales) -> tuple[Scales, Tensor]:
        first, second = self._halves([values.index_select(1, getattr(self, f"order{i}")) for i, values in enumerate(scales)])
        first, log_det = self._couple(first, self.by_second(second))
        second, log_det_of_second = self._couple(second, self.by_first(first))
        return [torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)], log_det + log_det_of_second

    def inverse(self, scales: Scales) -> Scales:
        first, second = self._halves(scales)
        second = self._uncouple(second, self.by_first(first))
        first = self._uncouple(first, self.by_second(second))
        joined = [torch.cat(pair, dim=1) for pair in zip(first, second, strict=True)]
        return [values.index_select(1, getattr(self, f"order{i}").argsort()) for i, values in enumerate(joined)]

    def _halves(self, scales: Scales) -> tuple[Scales, Scales]:
        return [values[:, :width] for values, width in zip(scales, self.first, strict=True)], [
            values[:, width:] for values, width in zip(scales, self.first, strict=True)
        ]

    def _couple(self, scales: Scales, coefficients: Scales) -> tuple[Scales, Tensor]:
        parts = [(values, *own.chunk(2, dim=1)) for values, own in zip(scales, coefficients, strict=True)]
        logs = [soft_clamp(s, self.clamp) for _, s, _ in parts]
        moved = [torch.addcmul(t, values, log.exp()).clamp(-BOUND, BOUND) for (values, _, t), log in zip(parts, logs, strict=True)]
        return moved, torch.stack([log.flatten(1).sum(dim=1) for log in logs]).sum(dim=0)

    def _uncouple(self, scales: Scales, coefficients: Scales) -> Scales:
        parts = [(values, *own.chunk(2, dim=1)) for values, own in zip(scales, coefficients, strict=True)]
        return [(values - t) * (-soft_clamp(s, self.clamp)).exp() for values, s, t in parts]


class CrossScale(nn.Module):
    """Convolution, leaky ReLU, convolution at each scale; the second one is also fed from the scales beside: upsampled, or with stride 2.

    The gain of each scale starts at 0, so a new block changes nothing but the order of channels.
    """

    def __init__(self, inputs: list[int], outputs: list[int], hidden: int, kernel: int) -> None:
        super().__init__()
        options = {"kernel_size": kernel, "padding": kernel // 2}
        self.inner = nn.ModuleList([nn.Conv2d(width, hidden, **options) for width in inputs])
        self.outer = nn.ModuleList([nn.Conv2d(hidden, width, **options) for width in outputs])
        self.up = nn.ModuleList([nn.Conv2d(hidden, finer, **options) for finer, _ in pairwise(outputs)])
        self.down = nn.ModuleList([nn.Conv2d(hidden, coarser, stride=2, **options) for _, coarser in pairwise(outputs)])
        self.gain = nn.Parameter(torch.zeros(len(inputs)))

    def forward(self, scales: Scales) -> Scales:
        seen = [F.leaky_relu(inner(values), 0.1) for inner, values in zip(self.inner, scales, strict=True)]
        given = [outer(values) for outer, values in zip(self.outer, seen, strict=True)]
        for fine, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            given[fine] = given[fine] + up(_resized(seen[fine + 1], seen[fine].shape[2:]))
            given[fine + 1] = given[fine + 1] + _resized(down(seen[fine]), seen[fine + 1].shape[2:])
        return [gain * values for gain, values in zip(self.gain, given, strict=True)]


def soft_clamp(values: Tensor, alpha: float) -> Tensor:
    """In (-alpha, alpha), with slope 2 / pi at 0."""
    return 2 / math.pi * alpha * torch.atan(values / alpha)


def clipped_adam(parameters: list[nn.Parameter], *, lr: float, weight_decay: float, clip_norm: float) -> torch.optim.Adam:
    """Adam with the paper's epsilon, whose gradients are scaled down to `clip_norm` before each step where they are longer."""
    adam = torch.optim.Adam(parameters, lr=lr, eps=1e-4, weight_decay=weight_decay)

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, clip_norm)

    adam.register_step_pre_hook(clip)
    return adam


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return values if values.shape[2:] == size else F.interpolate(values, size, mode="bilinear", align_corners=False)
