"""CFLOW-AD: a flow over single embeddings that is told where in the image each one lies; an embedding unlikely there is an anomaly.

Each layer has its own flow of `depth` coupling layers over vectors (fibres) of C channels, conditioned on a two-dimensional sine and cosine
encoding of the position. Fibres of all positions of all images are shuffled together, and each batch of them is one step of the optimiser;
the loss is -log sigmoid(log p(fibre | position) / C). The likelihoods of the layers, each relative to the greatest one of training, are
added at the size of the image. Gudovskiy et al., "CFLOW-AD: Real-Time Unsupervised Anomaly Detection with Localization via Conditional
Normalizing Flows", arXiv:2107.12571, equations 5-8.

Deviations from the paper:
- The two maxima that turn likelihoods into scores (of each layer, and of their sum) are taken over the training images and stored; the
  paper takes them over the test set, so its scores depend on the images beside. A pixel likelier than all of training scores below 0.
- The layers are trained one after another: their flows share nothing, so this changes no gradient. `steps` is of each layer.
- The paper reads 32 images, shuffles their fibres and drops or widens the last batch. Here the fibres of all images are shuffled, every one
  counts once an epoch, and the last batch is what is left. The training maps of one layer are held in memory for it.
- The learning rate follows the paper's warm-up (the first 2 of 25 meta-epochs) and cosine, by step instead of by meta-epoch.
- The kept state is the one with the lowest loss on held-out normal fibres (`val_loss`, once an epoch) and training stops after `patience`
  epochs without a better one; the reference reports the best epoch on the test set.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.flow.maths.coupling import AllInOne, Flow, Permutation, seeded
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run

FIBRES_AT_ONCE = 4096  # when they are measured, not trained on


class CFlow(Detector):
    """depth: coupling layers of each flow. condition: channels of the encoded position, a multiple of 4. permutation: "soft" as in the
    paper; "hard" is faster and keeps no C x C matrix for each coupling layer. fibre_batch_size: fibres, not images, of one step.
    """

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer2", "layer3", "layer4"),
        depth: int = 8,
        condition: int = 128,
        clamp: float = 1.9,
        permutation: Permutation = "soft",
        epochs: int = 200,
        steps: int | None = None,
        fibre_batch_size: int = 256,
        learning_rate: float = 2e-4,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        if condition < 4 or condition % 4:
            raise ValueError(f"condition must be a multiple of 4 (sine and cosine of two axes), got {condition}")
        self.needs = Need(layers=tuple(layers))
        self.depth, self.condition, self.clamp, self.permutation = depth, condition, clamp, permutation
        self.epochs, self.steps, self.fibre_batch_size, self.patience = epochs, steps, fibre_batch_size, patience
        self.learning_rate = learning_rate
        self.register_buffer("channels", torch.empty(0, dtype=torch.int64))  # (layers,) that the flows were built for
        self.register_buffer("layer_max", torch.empty(0))  # (layers,) greatest log p / C of a training fibre
        self.register_buffer("sum_max", torch.empty(0))  # (1,) greatest sum of relative likelihoods at a pixel of a training image
        self.flows = nn.ModuleList()
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        first = train.take([0]).features
        self._build(torch.tensor([first[layer].shape[1] for layer in self.needs.layers]), derive(run.seed, "flows"))
        self.to(run.device)
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.fibre_batch_size,
            schedule=warm_up_then_cosine,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        for layer, flow in zip(self.needs.layers, self.flows, strict=True):
            seen = Fibres(held_out, layer, self.condition) if held_out else None
            measure = partial(_val_loss, flow, seen, run.device) if seen else None
            run.train(flow, Fibres(train, layer, self.condition), partial(_loss, flow), plan, measure, name=f"flow-{layer}")
        self._remember_maxima(train)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.sum_max)
        anomaly_map = self.sum_max - self._likelihood(self._log_likelihoods(features), tuple(features["pixels"].shape[2:]))
        return Prediction(anomaly_map.flatten(1).amax(dim=1), anomaly_map)

    def _build(self, channels: Tensor, seed: int) -> None:
        options = {"clamp": self.clamp, "condition": self.condition, "permutation": self.permutation}
        self.channels = channels.clone()
        with seeded(seed):
            flows = [Flow(*[AllInOne(width, _linears, **options) for _ in range(self.depth)]) for width in channels.tolist()]
        self.flows = nn.ModuleList(flows)

    def _log_likelihoods(self, features: Features) -> list[Tensor]:
        """(B, h, w) of each layer: log p / C of its fibres. One image at a time, so that its company cannot matter."""
        maps = []
        for layer, flow, width in zip(self.needs.layers, self.flows, self.channels.tolist(), strict=True):
            values = features[layer].to(self.layer_max.device).float()
            if values.shape[1] != width:
                raise ValueError(f"{layer} had {width} channels in training and has {values.shape[1]}: use the encoder it was trained on")
            position = encode_positions(self.condition, *values.shape[2:]).to(values.device)
            images = [log_likelihood(flow, image.flatten(1).T, position) / width for image in values]
            maps.append(torch.stack(images).unflatten(1, values.shape[2:]))
        return maps

    def _likelihood(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """(B, H, W): sum over layers of the likelihoods relative to each layer's greatest one in training."""
        relative = [(values - greatest).exp() for values, greatest in zip(maps, self.layer_max, strict=True)]
        upsampled = [F.interpolate(values[:, None], size, mode="bilinear", align_corners=True)[:, 0] for values in relative]
        return torch.stack(upsampled).sum(dim=0)

    @torch.no_grad()
    def _remember_maxima(self, train: Batches) -> None:
        images = [(self._log_likelihoods(batch.features), tuple(batch.features["pixels"].shape[2:])) for batch in train]
        self.layer_max = torch.stack([torch.stack([layer.amax() for layer in layers]) for layers, _ in images]).amax(dim=0)
        self.sum_max = torch.stack([self._likelihood(layers, size).amax() for layers, size in images]).amax(dim=0, keepdim=True)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """The stored widths say which flows the stored weights belong to."""
        channels = state_dict.get(f"{prefix}channels")
        if channels is not None and channels.numel():
            device = self.channels.device
            self._build(channels.cpu(), seed=0)
            self.to(device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Fibres:
    """Implements stages.types.Batches over the positions of one layer's maps: a sample is one fibre and where it lies."""

    def __init__(self, batches: Batches, layer: str, condition: int) -> None:
        maps = torch.cat([batch.features[layer].float() for batch in batches])  # (images, C, h, w)
        self.position = encode_positions(condition, *maps.shape[2:])
        self.values = maps.permute(0, 2, 3, 1).flatten(0, 2)  # (images*h*w, C)
        self.samples = len(self.values)

    def __iter__(self):
        yield from (self.take(list(part)) for part in torch.arange(self.samples).split(FIBRES_AT_ONCE))

    def take(self, positions: list[int]) -> Batch:
        index = torch.as_tensor(positions)
        features = {"fibre": self.values[index], "position": self.position[index % len(self.position)]}
        return Batch(features, torch.zeros(len(index), dtype=torch.int64), None, [], [])


def encode_positions(channels: int, height: int, width: int) -> Tensor:
    """(h*w, channels) row by row. The first half encodes the column, the second the row: sin and cos, in turn, of the place times
    10000^(-2k / (channels/2)), k = 0 .. channels/4 - 1.
    """
    half = channels // 2
    frequencies = 10000.0 ** (-2 * torch.arange(channels // 4, dtype=torch.float64) / half)
    angles = [torch.arange(size, dtype=torch.float64)[:, None] * frequencies for size in (height, width)]
    rows, columns = (torch.stack([axis.sin(), axis.cos()], dim=2).flatten(1).float() for axis in angles)  # (h, half), (w, half)
    return torch.cat([columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=2).flatten(0, 1)


def log_likelihood(flow: Flow, fibres: Tensor, position: Tensor) -> Tensor:
    """(N,) log p(fibre | position) from (N, C) and (N, condition)."""
    z, log_det = flow(fibres, position)
    return -0.5 * z.shape[1] * math.log(2 * math.pi) - 0.5 * z.square().sum(dim=1) + log_det


def warm_up_then_cosine(step: int, total: int) -> float:
    """From a tenth up to the cosine in the first 2/25 of the steps, then along the cosine down to a thousandth."""

    def cosine(part: float) -> float:
        return 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * part)) / 2

    done, warm = step / total, 2 / 25
    return cosine(done) if done >= warm else 0.1 + (cosine(warm) - 0.1) * done / warm


def _linears(channels: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, outputs))


def _loss(flow: Flow, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
    fibres = batch.features["fibre"]
    return -F.logsigmoid(log_likelihood(flow, fibres, batch.features["position"]) / fibres.shape[1]).mean()


def _val_loss(flow: Flow, held_out: Fibres, device: torch.device) -> dict[str, float]:
    total = 0.0
    for batch in held_out:
        here = batch._replace(features={name: values.to(device) for name, values in batch.features.items()})
        total += _loss(flow, here).item() * len(batch.label)
    return {"val_loss": total / held_out.samples}
