"""Dinomaly: a transformer decoder learns to rebuild the middle features of a frozen DINOv2 from a noisy bottleneck; where it cannot, the
image is not normal.

What keeps it from rebuilding defects too is that everything in it is loose: dropout in the bottleneck, attention that cannot focus, groups
of four layers rebuilt as one mean, a global cosine, and a tenth of the gradient at positions that are rebuilt well already. Guo et al.,
"Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection", CVPR 2025, arXiv:2405.14325.

Needs an encoder entry of the kind `vit` with the means of two groups of four blocks as layers `group1`, `group2` and the class and register
tokens as `group1_extra`, `group2_extra`; ViT-S and -B: blocks 2-5 and 6-9, ViT-L: 4, 6, 8, 10 and 12, 14, 16, 18. The mean of all eight, which
enters the bottleneck, is the mean of the two. Width and grid come from the features; heads are 64 wide. Without DINOv2's weights, layers of
another network will do that have one width and one grid, or a single one (`layers: [layer3]`, `extra: []`): no longer the paper's model.

Multi-class: the paper trains one model over all categories. `multi_class: true` says so (`scope` of the object becomes "dataset"); the
paper's schedule is then `steps: 10000` (50000 for Real-IAD, with `dropout: 0.4`) and `epsilon: 1e-10`. Of itself a model is of one category.

Deviations from the paper:
- Whole images at the size of the entry, not the centre 392 of 448 px. Where the entry crops, give `seen` (392 / 448 = 0.875): the map is 0
  outside of what was seen.
- Where there are held-out normal images, the kept state is the one with the lowest loss on them (`val_loss`, once an epoch, no dropout);
  `patience` may stop early, by default it does not. Without them the last state is kept, as in the paper.
- The image is scored on the paper's map of 256 px (an image that is not square: its longer side); the map handed out is that one at the size
  of the image. Borders are reflected by the blur.
- 1 - cos is computed as half the squared distance of unit vectors in the map: the same number, without cancellation near 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.distillation.maths.linear_attention import Reconstruction
from stages.detectors.distillation.maths.stable_adamw import StableAdamW
from stages.detectors.maps import to_pixels
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run


class Loose(NamedTuple):
    """How gradients are thinned out: at the share of positions that are rebuilt best, which grows linearly with the steps."""

    share: float = 0.9
    steps: int = 1000
    factor: float = 0.1

    def share_at(self, step: int) -> float:
        return min(self.share, self.share * step / self.steps)


class Dinomaly(Detector):
    """layers: of each group of blocks the mean, from shallow to deep; extra: the tokens of no patch, beside them or (). depth: decoder blocks.

    steps: at most so many optimiser steps; epochs alone would not bind them. top_share: of the map's pixels, whose mean is the image's score.
    """

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("group1", "group2"),
        extra: tuple[str, ...] = ("group1_extra", "group2_extra"),
        depth: int = 8,
        head_width: int = 64,
        dropout: float = 0.2,
        epochs: int = 10_000,
        steps: int | None = 5000,
        batch_size: int = 16,
        learning_rate: float = 2e-3,
        final_learning_rate: float = 2e-4,
        warmup: int = 100,
        weight_decay: float = 1e-4,
        epsilon: float = 1e-8,
        clip_norm: float = 0.1,
        easy_share: float = 0.9,
        easy_steps: int = 1000,
        easy_gradient: float = 0.1,
        patience: int | None = None,
        map_size: int = 256,
        top_share: float = 0.01,
        seen: float = 1.0,
        multi_class: bool = False,
    ) -> None:
        super().__init__()
        if len(extra) not in (0, len(layers)) or depth % len(layers):
            raise ValueError(f"{len(layers)} layers need as many extra ones, or none, and a depth that they divide; got {extra}, {depth}")
        if not 0 < seen <= 1:
            raise ValueError(f"seen must be in 0..1, the share of the image's side that the encoder looks at, got {seen}")
        self.needs = Need(layers=(*layers, *extra))
        self.scope = "dataset" if multi_class else "category"
        self.layers, self.extra, self.depth, self.head_width, self.dropout = tuple(layers), tuple(extra), depth, head_width, dropout
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.final_learning_rate, self.warmup = learning_rate, final_learning_rate, warmup
        self.weight_decay, self.epsilon, self.clip_norm = weight_decay, epsilon, clip_norm
        self.loose = Loose(easy_share, easy_steps, easy_gradient)
        self.map_size, self.top_share, self.seen = map_size, top_share, seen
        self.network = nn.Module()  # a Reconstruction, once the width is known
        self.register_buffer("steps_trained", torch.empty(0, dtype=torch.int64))  # (1,) after which the kept state was reached

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        self.network = self._new_network(self._tokens(train.take([0]).features)[0].shape[2], derive(run.seed, "decoder"))
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=self._optimiser,
            schedule=self._rate,
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._mean_loss(held_out, run)}) if held_out else None
        reached = run.train(self.network, train, self._loss, plan, measure, name="decoder")
        self.steps_trained = torch.tensor([reached], device=run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.steps_trained)
        height, width = features["pixels"].shape[2:]
        inside = (round(height * self.seen), round(width * self.seen))
        small = tuple(max(1, round(self.map_size * side / max(height, width))) for side in (height, width))
        targets, rebuilt = self._rebuild({layer: features[layer].to(self.steps_trained.device) for layer in self.needs.layers})
        maps = [_upsampled(_distance(target, ours), inside) for target, ours in zip(targets, rebuilt, strict=True)]
        smooth = blur(to_pixels(torch.stack(maps).mean(dim=0), small))
        highest = smooth.flatten(1).topk(max(1, int(smooth[0].numel() * self.top_share)), dim=1).values
        top, left = (height - inside[0]) // 2, (width - inside[1]) // 2
        border = (left, width - inside[1] - left, top, height - inside[0] - top)
        return Prediction(highest.mean(dim=1), F.pad(to_pixels(smooth, inside), border))

    def _tokens(self, features: Features) -> list[Tensor]:
        """(B, P + h*w, D) of each group, the tokens of no patch first."""
        groups = [features[layer] for layer in self.layers]
        if len({group.shape for group in groups}) > 1:
            shapes = ", ".join(str(tuple(group.shape[1:])) for group in groups)
            raise ValueError(f"the groups must have one width and one grid, got {shapes}: take means of blocks of one transformer")
        extra = [features[layer].flatten(2) for layer in self.extra] or [groups[0].flatten(2)[:, :, :0]] * len(groups)
        return [torch.cat([other, group.flatten(2)], dim=2).transpose(1, 2) for other, group in zip(extra, groups, strict=True)]

    def _rebuild(self, features: Features) -> tuple[list[Tensor], list[Tensor]]:
        """What each group is, and what the decoder makes of it, as (B, D, h, w). The first decoder block answers to the deepest group."""
        tokens = self._tokens(features)
        outputs = self.network(torch.stack(tokens).mean(dim=0))[::-1]
        each, grid = self.depth // len(tokens), features[self.layers[0]].shape[2:]
        means = [torch.stack(outputs[first : first + each]).mean(dim=0) for first in range(0, self.depth, each)]
        patches = [mean[:, -grid.numel() :].transpose(1, 2).unflatten(2, tuple(grid)) for mean in means]
        return [features[layer] for layer in self.layers], patches

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        targets, rebuilt = self._rebuild(batch.features)
        share = self.loose.share_at(int(self.network.steps))
        self.network.steps += 1
        for target, ours in zip(targets, rebuilt, strict=True):
            thin_out(target, ours, share, self.loose.factor)
        return global_cosine(targets, rebuilt).mean()

    def _mean_loss(self, batches: Batches, run: Run) -> float:
        """Over images; the network is in evaluation mode."""
        moved = ({layer: batch.features[layer].to(run.device) for layer in self.needs.layers} for batch in batches)
        return sum(global_cosine(*self._rebuild(features)).double().sum().item() for features in moved) / batches.samples

    def _optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """StableAdamW; before each step the gradient of all tensors together is shortened to `clip_norm`."""
        optimiser = StableAdamW(parameters, lr=self.learning_rate, eps=self.epsilon, weight_decay=self.weight_decay)

        def shorten(*_: Any) -> None:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)

        optimiser.register_step_pre_hook(shorten)
        return optimiser

    def _rate(self, step: int, total: int) -> float:
        """Factor on the learning rate: up from 0 over `warmup` steps, then down half a cosine to `final_learning_rate`."""
        warmup = min(self.warmup, total)
        if step < warmup:
            return step / max(1, warmup - 1)
        final = self.final_learning_rate / self.learning_rate
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    def _new_network(self, width: int, seed: int) -> nn.Module:
        if width % self.head_width:
            raise ValueError(f"features are {width} wide, which heads of {self.head_width} do not divide; set head_width")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Reconstruction(width, self.depth, width // self.head_width, self.dropout)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}network.blocks.0.project.weight")
        if stored is not None:
            self.network = self._new_network(len(stored), seed=0).to(self.steps_trained.device).eval()
        super()._load_from_state_dict(state_dict, prefix, *args)


def global_cosine(targets: list[Tensor], rebuilt: list[Tensor]) -> Tensor:
    """(B,) 1 - cosine of the whole flattened maps (D h w numbers each), the mean over groups."""
    pairs = zip(targets, rebuilt, strict=True)
    return torch.stack([1 - F.cosine_similarity(target.detach().flatten(1), ours.flatten(1)) for target, ours in pairs]).mean(dim=0)


def thin_out(target: Tensor, rebuilt: Tensor, share: float, factor: float) -> None:
    """Hook on `rebuilt` (B, D, h, w): its gradient is multiplied by `factor` at the `share` of positions, over the whole batch, that are
    rebuilt best."""
    if not rebuilt.requires_grad:
        return
    distance = 1 - F.cosine_similarity(target, rebuilt.detach(), dim=1)
    hardest = max(1, int(distance.numel() * (1 - share)))
    easy = distance < distance.flatten().topk(hardest).values[-1]
    rebuilt.register_hook(lambda slope: torch.where(easy[:, None], factor * slope, slope))


def blur(maps: Tensor, sigma: float = 4.0, taps: int = 5) -> Tensor:
    """(B, H, W) blurred by a Gaussian cut to so few taps, the image reflected at its border."""
    offsets = torch.arange(taps) - taps // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).tolist()
    height, width = maps.shape[1:]
    padded = F.pad(maps[:, None], [taps // 2] * 4, mode="reflect")[:, 0]
    rows = sum(weight * padded[:, tap : tap + height] for tap, weight in enumerate(weights))
    return sum(weight * rows[:, :, tap : tap + width] for tap, weight in enumerate(weights))


def _distance(target: Tensor, rebuilt: Tensor) -> Tensor:
    """(B, h, w) 1 - cosine along the channels."""
    return 0.5 * (F.normalize(target.float(), dim=1) - F.normalize(rebuilt, dim=1)).square().sum(dim=1)


def _upsampled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) -> (B, H, W) with the corner cells at the corners of the image."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=True)[:, 0]
