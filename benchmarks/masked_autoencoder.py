"""What scoring and training the masked autoencoder cost, against the straightforward way of doing it.

Straightforward scoring: one window at a time, each patch hidden alone, one forward pass each. A straightforward training step: the same layers from
torch.nn, all tokens through the encoder, a Python loop that draws the masks. Random weights and data: what is measured is time, and how far the scores of
five passes are from those of one patch at a time.

    python -m benchmarks.masked_autoencoder --steps 3000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from stages.timeseries.masked import sweeps
from stages.timeseries.masked.network import Network, Shape, sinusoids

SHAPE = Shape()
STRIDE = 25


class Plain(nn.Module):
    """The network of SHAPE from torch.nn alone, mask tokens before the encoder."""

    def __init__(self) -> None:
        super().__init__()
        patch, width = SHAPE.steps // SHAPE.patches * SHAPE.variables, SHAPE.width
        self.embed, self.token = nn.Linear(patch, width), nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", sinusoids(SHAPE.patches, width))
        counts = (SHAPE.encoder_layers, SHAPE.teacher_layers, SHAPE.student_layers)
        self.encoder, self.teacher, self.student = (
            nn.TransformerEncoder(self._layer(), count, enable_nested_tensor=False) for count in counts
        )
        self.heads = nn.ModuleList(nn.Linear(width, patch) for _ in range(2))

    def forward(self, window: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.embed(window.reshape(len(window), SHAPE.patches, -1))
        latent = self.encoder(torch.where(mask[..., None], self.token, tokens) + self.positions)
        drawn = zip(self.heads, (self.teacher, self.student), strict=True)
        return tuple(head(decoder(latent + self.positions)).reshape(window.shape) for head, decoder in drawn)

    def _layer(self) -> nn.Module:
        return nn.TransformerEncoderLayer(
            SHAPE.width, SHAPE.heads, SHAPE.feedforward, SHAPE.dropout, "gelu", batch_first=True, norm_first=True
        )


def plain_mask(batch: int) -> Tensor:
    mask = torch.zeros(batch, SHAPE.patches, dtype=torch.bool)
    for row in range(batch):
        mask[row, np.random.default_rng(row).choice(SHAPE.patches, 10, replace=False)] = True
    return mask


def plain_scores(network: Network, values: Tensor) -> Tensor:
    """(T,) mean squared errors, window by window and patch by patch."""
    size, total, count = network.patch_size, torch.zeros(len(values)), torch.zeros(len(values))
    for start in sweeps.starts_of(len(values), SHAPE.steps, STRIDE).tolist():
        window = values[None, start : start + SHAPE.steps]
        for patch in range(SHAPE.patches):
            mask = torch.zeros(1, SHAPE.patches, dtype=torch.bool)
            mask[0, patch] = True
            place = slice(start + patch * size, start + (patch + 1) * size)
            total[place] += (window - network(window, mask).teacher)[0, patch * size : (patch + 1) * size].square().mean(1)
            count[place] += 1
    return total / count


def step(network: nn.Module, window: Tensor, mask: Callable[[], Tensor]) -> None:
    drawn = network(window, mask())
    ((drawn[0] - window).square().mean() + (drawn[0].detach() - drawn[1]).square().mean()).backward()


def least_s(call: Callable[[], object], rounds: int = 3) -> float:
    """The least of a few rounds, in CPU seconds."""
    laps = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        laps.append(time.process_time() - start)
    return min(laps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="of the series that is scored")
    parser.add_argument("--batch", type=int, default=32, help="windows of a training step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, plain = Network(SHAPE), Plain()
    values, window = torch.randn(arguments.steps, SHAPE.variables), torch.randn(arguments.batch, SHAPE.steps, SHAPE.variables)
    trained = {
        "straightforward": least_s(lambda: step(plain, window, lambda: plain_mask(len(window)))),
        "here": least_s(lambda: step(network, window, lambda: network.drawn_mask(len(window), 0.4))),
    }
    network.eval()
    with torch.no_grad():
        scored = {"straightforward, 25 passes": least_s(lambda: plain_scores(network, values), 1)}
        for passes in (25, 5):
            plan = sweeps.all_patches(len(values), network, STRIDE, passes)
            scored[f"here, {passes} passes"] = least_s(lambda plan=plan: sweeps.errors(network, values, plan))
    for what, times in (("a training step", trained), (f"{arguments.steps} steps scored", scored)):
        slowest = max(times.values())
        for name, seconds in times.items():
            print(f"{what:24} {name:28} {1000 * seconds:9.1f} ms  {slowest / seconds:6.1f}x")


if __name__ == "__main__":
    main()
