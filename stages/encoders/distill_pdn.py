"""Teach a patch description network (`pdn`) what a deep frozen network says about each patch: the teacher of EfficientAD, made here.

The deep network sees an image at twice the size, its layers 2 and 3 become one embedding a patch as in PatchCore (means over 3 x 3
neighbours and over neighbouring channels), and the small network regresses it. Every channel of the embedding is brought to mean 0 and
deviation 1 over the training images first, so that the best constant has the loss 1 and what is below has been learnt. Batzner et al.,
arXiv:2303.14535, section 3.1 and algorithm 3.

Deviations from the paper: the deep network is any that is here (there: a WideResNet-101), and so are the images (there: ImageNet); the
small network is given the image that the deep one sees, halved by means over 2 x 2 pixels; the state with the lowest loss on held-out
images is kept, not the last.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.encoders import pdn, pretraining, weights
from stages.encoders.pretraining import Outcome, Pictures
from stages.params import ParamsError, nearest
from stages.training import Plan, Run
from stages.types import Batch, Features

LAYERS = ("layer2", "layer3")
POOLED = 1024  # channels of one layer's patches before the layers are joined
STATISTICS = 10_000  # images that the channels' mean and deviation are of
GREY_PROBABILITY = 0.1


def make(
    name: str,
    images: list[Path],
    folder: Path,
    *,
    encoder: str = "efficientnet-lite0",
    image_size: int = 256,
    steps: int = 60_000,
    batch_size: int = 16,
    learning_rate: float = 1e-4,
    weight_decay: float = 1e-5,
    seed: int = 0,
    device: str = "auto",
) -> Outcome:
    """Train the network that the lock calls `name` on these image files and put its weights into `folder`.

    encoder: weights of the deep network, by their name in the lock. image_size: of the small network's input.
    Raises ParamsError for an unknown name, WeightsMissing for an encoder that is not here, UserError where nothing was learnt.
    """
    from stages.encoders.cnn import CNN

    if name not in pdn.TEACHERS:
        raise ParamsError(f"no patch description network {name!r}{nearest(name, pdn.TEACHERS)}")
    row = weights.row_of(encoder)
    if row.timm is None:
        raise ParamsError(f"{encoder} are weights of no timm network: distil from an encoder, for instance efficientnet-lite0")
    deep = CNN(backbone=row.timm, layers=LAYERS, weights=encoder, backbones=folder)
    about: dict[str, Any] = {"network": name, "encoder": deep.weights_identity, "pictures": pretraining.list_hash(images)}
    about |= {
        "image_size": image_size,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "seed": seed,
    }
    run = pretraining.run_of(name, {**about, "steps": steps}, seed, device)
    train, held_out = pretraining.divided(images, 2 * image_size, batch_size, seed)
    network = pretraining.seeded(lambda: pdn.PDN(**pdn.TEACHERS[name], padding=True), seed)
    adam = partial(torch.optim.Adam, lr=learning_rate, weight_decay=weight_decay)
    plan = Plan(
        optimiser=adam, epochs=steps, steps=steps, batch_size=batch_size, watch="held_out_loss", every=max(1, min(1000, steps // 10))
    )
    distillation = Distillation(network, deep.to(run.device), train, run)
    kept = run.train(
        network, train, distillation.loss, plan, lambda: {"held_out_loss": distillation.measure(held_out)[0]}, name="distillation"
    )
    loss, constant = distillation.measure(held_out)
    outcome = {"images": train.samples, "held_out": held_out.samples, "steps": kept, "loss": loss, "constant": constant}
    return pretraining.store(name, network, about, outcome, folder, run)


class Distillation:
    """What the small network is to say, and how far it is from it."""

    def __init__(self, network: pdn.PDN, deep: nn.Module, train: Pictures, run: Run) -> None:
        self.network, self.deep, self.device = network, deep, run.device
        self.mean, self.std = self._channel_statistics(train, run)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        levels = batch.features["pixels"].float()
        grey = torch.rand(len(levels), generator=generator).to(levels.device) < GREY_PROBABILITY
        levels = torch.where(grey[:, None, None, None], levels.mean(dim=1, keepdim=True), levels)
        return (self.network(F.avg_pool2d(levels, 2)) - self._target(levels)).square().mean()

    @torch.no_grad()
    def measure(self, batches: Pictures) -> tuple[float, float]:
        """Loss of the network and of the constant (the training images' mean, which is 0 in every channel)."""
        self.network.to(self.device).eval()
        found, constant = 0.0, 0.0
        for batch in batches:
            levels = batch.features["pixels"].to(self.device).float()
            target = self._target(levels)
            found += len(levels) * (self.network(F.avg_pool2d(levels, 2)) - target).square().mean().item()
            constant += len(levels) * target.square().mean().item()
        return found / batches.samples, constant / batches.samples

    @torch.no_grad()
    def _target(self, levels: Tensor) -> Tensor:
        return (self._embedding(levels) - self.mean) / self.std

    @torch.no_grad()
    def _embedding(self, levels: Tensor) -> Tensor:
        """On the grid of the small network, which is that of layer 2 wherever the side is a multiple of 4."""
        found = patch_embedding(self.deep(levels), self.network.outputs)
        grid = tuple(-(-side // 8) for side in levels.shape[2:])
        return found if tuple(found.shape[2:]) == grid else F.interpolate(found, grid, mode="bilinear")

    def _channel_statistics(self, train: Pictures, run: Run) -> tuple[Tensor, Tensor]:
        """(C, 1, 1) each, summed in float64."""
        count, total, squares, most = 0, 0.0, 0.0, min(train.samples, STATISTICS)
        chosen = torch.randperm(train.samples, generator=run.generator("statistics"))[:most].split(train.batch_size)
        with run.progress("channels of the deep network", most) as advance:
            for positions in chosen:
                pixels = train.take(positions.tolist()).features["pixels"].to(self.device)
                values = self._embedding(pixels).double().transpose(0, 1).flatten(1)
                count, total, squares = count + values.shape[1], total + values.sum(dim=1), squares + values.square().sum(dim=1)
                advance(len(positions))
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(1e-12).sqrt()
        return mean.float()[:, None, None], deviation.float()[:, None, None]


def patch_embedding(features: Features, outputs: int) -> Tensor:
    """(B, outputs, h, w) on the grid of the first layer.

    Each layer's 3 x 3 neighbourhoods, channel by channel, are pooled to 1024 numbers, those of deeper layers are brought to the finest
    grid, and all of them together are pooled to `outputs`; every pooling is a mean over neighbours in that order.
    """
    parts: list[Tensor] = []
    for value in features.values():
        height, width = value.shape[2:]
        patches = F.unfold(value, 3, padding=1).transpose(1, 2)  # (B, h*w, 9 C)
        pooled = F.adaptive_avg_pool1d(patches, POOLED).transpose(1, 2).unflatten(2, (height, width))
        parts.append(F.interpolate(pooled, tuple(parts[0].shape[2:]), mode="bilinear") if parts else pooled)
    joined = torch.cat(parts, dim=1).flatten(2).transpose(1, 2)  # (B, h*w, 1024 layers)
    return F.adaptive_avg_pool1d(joined, outputs).transpose(1, 2).unflatten(2, tuple(parts[0].shape[2:]))
