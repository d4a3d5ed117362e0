"""FastFlow: a two-dimensional flow over each feature map; where its output is far from a standard normal, the image is.

Each layer's map is normalised and goes through `depth` coupling layers whose networks are two convolutions, 3x3 and 1x1 in turn, so the
flow keeps positions and sees their surroundings. Training lowers -log p of whole maps; the score of a position is minus the (unnormalised)
likelihood that the flow gives it. Yu et al., "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows",
arXiv:2111.07677, equations 4-6.

Defaults are for convolutional networks (K = 8, hidden ratio 1). A transformer has one layer: depth=20, hidden_ratio=0.16, layer_norm=False,
where the encoder applies the network's own final norm. The paper's flow for ResNet-18 has 3x3 kernels only: only_3x3=True.

Deviations from the paper:
- Each layer of a CNN passes a trainable LayerNorm over channels, rows and columns together, which the paper does not name and without which
  its results are not reached. It ties a fitted model to one image size.
- The paper's 500 epochs are an upper bound: with held-out normal images the kept state is the one with the lowest loss on them (`val_loss`,
  once an epoch), and training stops after `patience` epochs without a better one. `steps` caps the training below `epochs`.
- The paper does not give the clamp of the coupling (2), nor how maps come to the size of the image (bilinear).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from stages.detectors.flow.maths.coupling import AllInOne, Flow, convolutions, seeded
from stages.detectors.maps import to_pixels
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run


class FastFlow(Detector):
    """depth: coupling layers of each flow (K). hidden_ratio: width of their networks (r). steps: at most so many; None runs all epochs."""

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer1", "layer2", "layer3"),
        depth: int = 8,
        hidden_ratio: float = 1.0,
        only_3x3: bool = False,
        layer_norm: bool = True,
        clamp: float = 2.0,
        epochs: int = 500,
        steps: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-5,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1 coupling layer, got {depth}")
        self.needs = Need(layers=tuple(layers))
        self.depth, self.hidden_ratio, self.only_3x3, self.layer_norm, self.clamp = depth, hidden_ratio, only_3x3, layer_norm, clamp
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.register_buffer("shapes", torch.empty(0, 3, dtype=torch.int64))  # (layers, 3): C, h, w that the flows were built for
        self.flows = nn.ModuleList()
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        first = train.take([0]).features
        self._build(torch.tensor([first[layer].shape[1:] for layer in self.needs.layers]), derive(run.seed, "flows"))
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate, weight_decay=self.weight_decay),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._val_loss(held_out)}) if held_out else None
        run.train(self.flows, train, self._loss, plan, measure, name="flows")
        self.shapes = self.shapes.to(run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.shapes)
        size = tuple(features["pixels"].shape[2:])
        likelihoods = [torch.exp(-0.5 * z.square().mean(dim=1)) for z, _ in self._latents(features)]
        anomaly_map = torch.stack([to_pixels(-likelihood, size) for likelihood in likelihoods]).mean(dim=0)  # in -1..0
        return Prediction(anomaly_map.flatten(1).amax(dim=1), anomaly_map)

    def _build(self, shapes: Tensor, seed: int) -> None:
        """New norms and flows for feature maps of these shapes (layers, 3)."""
        kernels = [1 if step % 2 and not self.only_3x3 else 3 for step in range(self.depth)]
        self.shapes = shapes.clone()
        with seeded(seed):
            self.flows = nn.ModuleList()
            for channels, *grid in shapes.tolist():
                steps = [AllInOne(channels, convolutions(kernel, self.hidden_ratio), clamp=self.clamp) for kernel in kernels]
                norm = nn.LayerNorm([channels, *grid]) if self.layer_norm else nn.Identity()
                self.flows.append(nn.ModuleDict({"norm": norm, "flow": Flow(*steps)}))

    def _latents(self, features: Features) -> list[tuple[Tensor, Tensor]]:
        """(z, log|det|) of each layer: (B, C, h, w) and (B,)."""
        latents = []
        for layer, shape, part in zip(self.needs.layers, self.shapes.tolist(), self.flows, strict=True):
            values = features[layer].to(next(part.parameters()).device).float()
            if list(values.shape[1:]) != shape:
                raise ValueError(
                    f"{layer} was {shape} in training and is {list(values.shape[1:])}: give the model images of the size it learnt"
                )
            latents.append(part["flow"](part["norm"](values)))
        return latents

    def _negative_log_likelihood(self, features: Features) -> Tensor:
        """(B,): of the maps of all layers together, without the constant of the Gaussian."""
        return torch.stack([0.5 * z.square().sum(dim=(1, 2, 3)) - log_det for z, log_det in self._latents(features)]).sum(dim=0)

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._negative_log_likelihood(batch.features).mean()

    def _val_loss(self, batches: Batches) -> float:
        return sum(self._negative_log_likelihood(batch.features).double().sum().item() for batch in batches) / batches.samples

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """The stored shapes say which flows the stored weights belong to."""
        shapes = state_dict.get(f"{prefix}shapes")
        if shapes is not None and shapes.numel():
            device = self.shapes.device
            self._build(shapes.cpu(), seed=0)
            self.to(device)
        super()._load_from_state_dict(state_dict, prefix, *args)
