"""CFA: a linear layer learns to bring normal patches onto spheres around memorised centres; a patch is as anomalous as it stays outside.

Three layers of a frozen network, each averaged over 3x3 neighbourhoods, are joined on the finest grid; a 1x1 convolution that also sees
where it is (CoordConv) describes each patch. The bank holds, for each position, the mean of all training images as the untrained
convolution describes them, and stays as it is; training pulls each patch to its three nearest centres and keeps it from the three next. Lee
et al., "CFA: Coupled-hypersphere-based Feature Adaptation for Target-Oriented Anomaly Localization", arXiv:2206.04325 (written without
looking at any code).

Deviations from the paper:
- The radius is learnt beside the convolution. It starts at 1e-5, and only once its square exceeds the margin can the repulsion be felt.
- Features of EfficientNets are not divided by their number of channels, as the authors' code is said to do.
- Distances are sums of squared differences, so none is negative; which centres are nearest is found by a matrix product.
- The state of the lowest loss on held-out normal images (`val_loss`, once an epoch) is kept, and training stops after `patience` epochs
  without a better one; the authors' code is said to choose the epoch on test images. Without held-out images the last state is kept.
- `steps` caps the training below `epochs`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.maps import gaussian_blur, to_pixels
from stages.detectors.memory_bank.maths.neighbours import build_index, nearest
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run

START_RADIUS = 1e-5
LLOYD_STEPS = 50


class CFA(Detector):
    """width_ratio, centre_ratio: the paper's gamma_d and gamma_c, by which the descriptor's width and the number of centres are divided.

    attracted, repelled: the paper's K and J. margin, softness: its alpha and nu. blur_sigma: in pixels of the map.
    """

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer1", "layer2", "layer3"),
        width_ratio: int = 1,
        centre_ratio: int = 1,
        attracted: int = 3,
        repelled: int = 3,
        margin: float = 0.1,
        softness: float = 1e-3,
        epochs: int = 30,
        steps: int | None = None,
        batch_size: int = 4,
        learning_rate: float = 1e-3,
        weight_decay: float = 5e-4,
        patience: int | None = None,
        blur_sigma: float = 4.0,
    ) -> None:
        super().__init__()
        counts = {"width_ratio": width_ratio, "centre_ratio": centre_ratio, "attracted": attracted, "repelled": repelled}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.needs = Need(layers=tuple(layers))
        self.width_ratio, self.centre_ratio, self.attracted, self.repelled = width_ratio, centre_ratio, attracted, repelled
        self.margin, self.softness, self.blur_sigma = margin, softness, blur_sigma
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.descriptor: Descriptor | None = None
        self.register_buffer("memory_bank", torch.empty(0, 0))  # (M, D) centres
        self._index: Any = None

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        channels = self._join(train.take([0]).features).shape[1]
        self.descriptor = _new_descriptor(channels, max(1, channels // self.width_ratio), derive(run.seed, "descriptor")).to(run.device)
        self.memory_bank = self._centres(train, run)
        self._index = None
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.AdamW, lr=self.learning_rate, weight_decay=self.weight_decay, amsgrad=True),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._val_loss(held_out, run)}) if held_out else None
        reached = run.train(self.descriptor, train, self._loss, plan, measure, name="descriptor")
        run.history.append({"centres": len(self.memory_bank), "kept_step": reached, "radius": self.descriptor.radius.item()})
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One image at a time, so that a score cannot depend on the batch through the rounding of a product."""
        self.require_fitted(self.memory_bank)
        if self._index is None:
            self._index = build_index(self.memory_bank, "torch")
        joined = self._join(features).to(self.memory_bank.device)
        scores = torch.stack([self._patch_scores(image[None]) for image in joined])
        maps = to_pixels(scores.unflatten(1, joined.shape[2:]), tuple(features["pixels"].shape[2:]))
        anomaly_map = gaussian_blur(maps, self.blur_sigma)
        return Prediction(anomaly_map.flatten(1).amax(dim=1), anomaly_map)

    def _join(self, features: Features) -> Tensor:
        """(B, C, h, w): every layer pooled, then brought to the finest grid."""
        pooled = [F.avg_pool2d(features[layer].float(), kernel_size=3, stride=1, padding=1) for layer in self.needs.layers]
        grid = max(tuple(layer.shape[2:]) for layer in pooled)
        return torch.cat([F.interpolate(layer, grid, mode="bilinear", align_corners=False) for layer in pooled], dim=1)

    @torch.no_grad()
    def _centres(self, train: Batches, run: Run) -> Tensor:
        """(M, D): what the untrained descriptor makes of the training images, averaged at each position, and clustered if asked for."""
        total = 0.0
        with run.progress("centres", train.samples) as advance:
            for batch in train:
                described = self.descriptor(self._join(batch.features).to(run.device))
                if not described.isfinite().all():
                    raise ValueError(f"features of {', '.join(batch.sample_id)} hold NaN or infinity; extract them again")
                total = total + described.double().sum(dim=0)  # (h*w, D)
                advance(len(described))
        centres = total / train.samples
        if self.centre_ratio > 1:
            centres = k_means(centres, max(1, len(centres) // self.centre_ratio), run.generator("clusters"))
        return centres.float()

    def _squared_distances(self, patches: Tensor, count: int, index: Any) -> Tensor:
        """(N, count) to the nearest centres, nearest first, for (N, D) patches; their gradient goes to the patches."""
        rows = nearest(index, patches.detach(), min(count, len(self.memory_bank)))
        squared = (patches[:, None] - self.memory_bank[rows]).square().sum(dim=2)
        return squared.sort(dim=1).values

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The attraction into spheres around the nearest centres, and the repulsion from those around the next ones."""
        patches = self.descriptor(self._join(batch.features)).flatten(0, 1)
        squared = self._squared_distances(patches, self.attracted + self.repelled, build_index(self.memory_bank, "torch"))
        return self._hinges(squared)

    def _hinges(self, squared: Tensor) -> Tensor:
        """From (N, K + J) squared distances. Where the bank has no more than K centres nothing repels."""
        near, far, reach = squared[:, : self.attracted], squared[:, self.attracted :], self.descriptor.radius.square()
        attraction = F.relu(near - reach).mean()
        repulsion = F.relu(reach - far - self.margin).mean() if far.shape[1] else 0.0
        return (attraction + repulsion) / self.softness

    def _patch_scores(self, image: Tensor) -> Tensor:
        """(h*w,): the distance to the nearest centre, times how much nearer it is than the next ones."""
        distances = self._squared_distances(self.descriptor(image)[0], self.attracted, self._index).sqrt()
        return (-distances).softmax(dim=1)[:, 0] * distances[:, 0]

    def _val_loss(self, held_out: Batches, run: Run) -> float:
        total = 0.0
        for batch in held_out:
            features = {name: values.to(run.device) for name, values in batch.features.items()}
            total += self._loss(batch._replace(features=features), torch.Generator()).item() * len(batch.label)
        return total / held_out.samples

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        self._index = None
        stored = state_dict.get(f"{prefix}descriptor.convolution.weight")
        if stored is not None:
            self.descriptor = _new_descriptor(stored.shape[1] - 2, len(stored), seed=0).to(self.memory_bank.device).eval()
        super()._load_from_state_dict(state_dict, prefix, *args)


class Descriptor(nn.Module):
    """CoordConv: a 1x1 convolution over the features and two channels that hold row and column, -1..1; and the radius of the spheres."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels + 2, width, 1)
        self.radius = nn.Parameter(torch.tensor(START_RADIUS))

    def forward(self, joined: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, h*w, D)."""
        count, _, height, width = joined.shape
        rows = torch.linspace(-1, 1, height, device=joined.device).view(1, 1, height, 1).expand(count, 1, height, width)
        columns = torch.linspace(-1, 1, width, device=joined.device).expand(count, 1, height, width)
        return self.convolution(torch.cat([joined, rows, columns], dim=1)).flatten(2).transpose(1, 2)


def _new_descriptor(channels: int, width: int, seed: int) -> Descriptor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Descriptor(channels, width)


def k_means(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, D) centres of (M, D) points by Lloyd's steps from points drawn without repetition; a centre that loses all points stays."""
    centres = points[torch.randperm(len(points), generator=generator)[:count].to(points.device)]
    for _ in range(LLOYD_STEPS):
        owner = torch.cdist(points, centres).argmin(dim=1)
        sizes = torch.bincount(owner, minlength=count)
        moved = torch.zeros_like(centres).index_add_(0, owner, points) / sizes.clamp(min=1)[:, None]
        moved = torch.where(sizes[:, None] > 0, moved, centres)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres
