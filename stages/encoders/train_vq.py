"""Train the vector-quantised autoencoder of DSR (`vq`) on images of any kind: the mean squared error of what it draws, and the commitment of
both encoders to their codes, while the codebooks follow by exponential means.

Zavrtanik et al., "DSR", ECCV 2022, section 3.1; Razavi et al., arXiv:1906.00446. Deviations: the images are those that are here (there:
ImageNet), and so is their number; the error is divided by the variance of the training images, so that the commitment weighs the same
whatever their contrast; the state with the lowest error on held-out images is kept. What `vq` says of its codebooks is one too.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.encoders import pretraining, vq
from stages.encoders.pretraining import Outcome, Pictures
from stages.params import ParamsError, nearest
from stages.training import Plan, Run
from stages.types import Batch

STARTING_IMAGES = 64  # whose embeddings the codebooks start as


def make(
    name: str,
    images: list[Path],
    folder: Path,
    *,
    image_size: int = 256,
    steps: int = 100_000,
    batch_size: int = 16,
    learning_rate: float = 2e-4,
    seed: int = 0,
    device: str = "auto",
) -> Outcome:
    """Train the network that the lock calls `name` on these image files and put its weights into `folder`.

    Raises ParamsError for an unknown name or size, UserError where it draws held-out images no better than the mean colour would.
    """
    if name not in vq.KNOWN:
        raise ParamsError(f"no vector-quantised network {name!r}{nearest(name, vq.KNOWN)}")
    if image_size % vq.STRIDE_LOW:
        raise ParamsError(f"image_size must be a multiple of {vq.STRIDE_LOW}, got {image_size}")
    about: dict[str, Any] = {"network": name, "pictures": pretraining.list_hash(images)}
    about |= {"image_size": image_size, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    run = pretraining.run_of(name, {**about, "steps": steps}, seed, device)
    train, held_out = pretraining.divided(images, image_size, batch_size, seed)
    network = pretraining.seeded(lambda: vq.VQ(**vq.KNOWN[name]), seed).to(run.device)
    first = torch.randperm(train.samples, generator=run.generator("start"))[:STARTING_IMAGES]
    network.start(levels(train.take(first.tolist()), run) / 255, run.generator("codes"))
    adam = partial(torch.optim.Adam, lr=learning_rate)
    plan = Plan(
        optimiser=adam, epochs=steps, steps=steps, batch_size=batch_size, watch="held_out_loss", every=max(1, min(1000, steps // 10))
    )
    variance = constant(train, train)
    kept = run.train(
        network, train, partial(loss, network, variance), plan, lambda: {"held_out_loss": measure(network, held_out, run)}, name="codes"
    )
    outcome: dict[str, Any] = {"images": train.samples, "held_out": held_out.samples, "steps": kept}
    outcome |= {"loss": measure(network, held_out, run), "constant": constant(train, held_out)}
    return pretraining.store(name, network, about, outcome, folder, run)


def loss(network: vq.VQ, variance: float, batch: Batch, generator: torch.Generator) -> Tensor:
    return vq.loss(network, batch.features["pixels"].float() / 255, variance, generator)


@torch.no_grad()
def measure(network: vq.VQ, batches: Pictures, run: Run) -> float:
    """Mean squared error of what is drawn, levels in 0..1."""
    total = 0.0
    for batch in batches:
        images = levels(batch, run) / 255
        total += len(images) * F.mse_loss(network(images)[0], images).item()
    return total / batches.samples


def constant(train: Pictures, held_out: Pictures) -> float:
    """The same error of the training images' mean colour, painted everywhere."""
    colour = sum(batch.features["pixels"].double().mean(dim=(2, 3)).sum(dim=0) for batch in train) / train.samples / 255
    errors = [
        (batch.features["pixels"].double() / 255 - colour[:, None, None]).square().mean(dim=(1, 2, 3)).sum().item() for batch in held_out
    ]
    return sum(errors) / held_out.samples


def levels(batch: Batch, run: Run) -> Tensor:
    return batch.features["pixels"].to(run.device).float()
