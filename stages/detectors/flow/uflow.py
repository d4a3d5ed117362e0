"""U-Flow: a U-shaped flow over several layers, from coarse to fine, whose output is white noise for normal images and gives its own threshold.

The coarsest layer goes through a stage of four coupling layers; half of its output is finished (z of this scale), the other half is brought
to twice the grid without changing volume, a channel for each of the four cells, and joins the next finer layer, and so on. The score of a
position is 1 minus its mean likelihood over scales. Tailanian et al., "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with
Unsupervised Threshold", arXiv:2211.12353 (written from the paper's formulas alone). `log_nfa` is the paper's threshold: anomalous where it is
below 0.

`layers` run from fine to coarse: three of a CNN, each with a LayerNorm of its own, or the two of MS-CaiT with layer_norm=False, where the
encoder applies the networks' final norms.

Deviations from the paper:
- Where a grid is not exactly twice the next coarser one (odd sizes), the map is first resized (bilinear) so that it is.
- Half of the channels that pass on means the multiple of 4 at or below half, at least 4.
- One learning rate for all classes (the paper's: 3e-5 to 6e-3, chosen for each).
- The kept state is the one with the lowest loss on held-out normal images (`val_loss`, once an epoch), and training stops after `patience`
  epochs without a better one. `steps` caps the training below `epochs`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.flow.maths.a_contrario import block_log_nfa, tree_log_nfa
from stages.detectors.flow.maths.coupling import AllInOne, Flow, convolutions, seeded
from stages.detectors.maps import to_pixels
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run

KERNELS = (3, 1, 3, 1)  # of the coupling layers of a stage


class UFlow(Detector):
    """hidden_ratio: width of the couplings' networks. steps: at most so many; None runs all epochs."""

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer1", "layer2", "layer3"),
        hidden_ratio: float = 1.0,
        layer_norm: bool = True,
        clamp: float = 2.0,
        epochs: int = 200,
        steps: int | None = None,
        batch_size: int = 8,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-5,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        self.needs = Need(layers=tuple(layers))
        self.hidden_ratio, self.layer_norm, self.clamp = hidden_ratio, layer_norm, clamp
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.register_buffer("shapes", torch.empty(0, 3, dtype=torch.int64))  # (layers, 3): C, h, w that the flow was built for
        self.parts = nn.ModuleDict()  # "norms" and "flow"
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        first = train.take([0]).features
        self._build(torch.tensor([first[layer].shape[1:] for layer in self.needs.layers]), derive(run.seed, "flow"))
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate, weight_decay=self.weight_decay),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            schedule=lambda step, total: 1 - 0.6 * step / total,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._val_loss(held_out)}) if held_out else None
        run.train(self.parts, train, self._loss, plan, measure, name="flow")
        self.shapes = self.shapes.to(run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.shapes)
        size = tuple(features["pixels"].shape[2:])
        likelihoods = [to_pixels(torch.exp(-0.5 * z.square().mean(dim=1)), size) for z in self._latents(features)[0]]
        anomaly_map = 1 - torch.stack(likelihoods).mean(dim=0)
        return Prediction(anomaly_map.flatten(1).amax(dim=1), anomaly_map)

    @torch.no_grad()
    def log_nfa(self, features: Features, version: Literal["tree", "block"] = "tree") -> Tensor:
        """(B, H, W) log10 of the number of false alarms; a pixel is anomalous where it is below 0, whatever other images show."""
        self.require_fitted(self.shapes)
        threshold = {"tree": tree_log_nfa, "block": block_log_nfa}[version]
        return threshold(self._latents(features)[0], tuple(features["pixels"].shape[2:]))

    def _build(self, shapes: Tensor, seed: int) -> None:
        self.shapes = shapes.clone()
        channels, grids = [width for width, _, _ in shapes.tolist()], doubled_grids(shapes.tolist())
        with seeded(seed):
            norms = [
                nn.LayerNorm([width, *grid]) if self.layer_norm else nn.Identity() for width, grid in zip(channels, grids, strict=True)
            ]
            flow = UShaped(channels, self.hidden_ratio, self.clamp)
        self.parts = nn.ModuleDict({"norms": nn.ModuleList(norms), "flow": flow})

    def _latents(self, features: Features) -> tuple[list[Tensor], Tensor]:
        """z of each scale from fine to coarse, and log|det| of the image (B,)."""
        maps, shapes = [], self.shapes.tolist()
        device = next(self.parts.parameters()).device
        for layer, shape, grid, norm in zip(self.needs.layers, shapes, doubled_grids(shapes), self.parts["norms"], strict=True):
            values = features[layer].to(device).float()
            if list(values.shape[1:]) != shape:
                raise ValueError(
                    f"{layer} was {shape} in training and is {list(values.shape[1:])}: give the model images of the size it learnt"
                )
            if shape[1:] != grid:
                values = F.interpolate(values, grid, mode="bilinear", align_corners=False)
            maps.append(norm(values))
        return self.parts["flow"](maps)

    def _negative_log_likelihood(self, features: Features) -> Tensor:
        """(B,): of all scales together, without the constant of the Gaussian."""
        latents, log_det = self._latents(features)
        return torch.stack([0.5 * z.square().sum(dim=(1, 2, 3)) for z in latents]).sum(dim=0) - log_det

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._negative_log_likelihood(batch.features).mean()

    def _val_loss(self, batches: Batches) -> float:
        return sum(self._negative_log_likelihood(batch.features).double().sum().item() for batch in batches) / batches.samples

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """The stored shapes say which flow the stored weights belong to."""
        shapes = state_dict.get(f"{prefix}shapes")
        if shapes is not None and shapes.numel():
            device = self.shapes.device
            self._build(shapes.cpu(), seed=0)
            self.to(device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class UShaped(nn.Module):
    """Stages from the coarsest map to the finest. channels: of the maps that come in, fine to coarse, as are maps and latents."""

    def __init__(self, channels: list[int], hidden_ratio: float, clamp: float) -> None:
        super().__init__()
        self.passing: list[int] = []  # channels that leave each stage for the next finer one, coarse to fine; the finest keeps all
        stages, arriving = [], 0
        for own in reversed(channels):
            width = own + arriving
            stages.append(Flow(*[AllInOne(width, convolutions(kernel, hidden_ratio), clamp=clamp) for kernel in KERNELS]))
            if len(stages) < len(channels):
                if width < 5:
                    raise ValueError(f"a stage of U-Flow passes 4 channels on and keeps some, so it needs at least 5; got {width}")
                self.passing.append(4 * max(1, width // 8))
                arriving = self.passing[-1] // 4
        self.stages = nn.ModuleList(stages)

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        latents, total, arriving = [], maps[0].new_zeros(len(maps[0])), []
        for stage, values, passing in zip(self.stages, reversed(maps), [*self.passing, 0], strict=True):
            z, log_det = stage(torch.cat([values, *arriving], dim=1))
            total = total + log_det
            latents.append(z[:, passing:])
            arriving = [F.pixel_shuffle(z[:, :passing], 2)] if passing else []
        return latents[::-1], total

    def inverse(self, latents: list[Tensor]) -> list[Tensor]:
        maps, passed = [], []
        for stage, z, arriving in zip(reversed(self.stages), latents, [*reversed(self.passing), 0], strict=True):
            values, _ = stage.inverse(torch.cat([*passed, z], dim=1))
            own = values.shape[1] - arriving // 4
            maps.append(values[:, :own])
            passed = [F.pixel_unshuffle(values[:, own:], 2)] if arriving else []
        return maps


def doubled_grids(shapes: list[list[int]]) -> list[list[int]]:
    """[h, w] of each layer, fine to coarse, such that each is twice the next; the coarsest is as it came. shapes: [C, h, w]."""
    coarsest = shapes[-1][1:]
    return [[2**finer * cells for cells in coarsest] for finer in reversed(range(len(shapes)))]
