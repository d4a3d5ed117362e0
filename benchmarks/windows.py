"""What WinCLIP's windows cost: all of a scale in one batch of their own tokens, against one pass for each window, and against masked attention.

Random weights of the real network; the three ways agree where they compute the same thing.

    python -m benchmarks.windows --backbone ViT-B-16-plus-240 --images 1
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stages.encoders.clip import Vision, architecture, whole_network

SIDES = (2, 3)


def one_by_one(vision: Vision, tokens: Tensor, side: int) -> Tensor:
    """The naive way: a forward pass a window."""
    count = vision.grid - side + 1
    rows = []
    for row in range(count):
        for column in range(count):
            inside = [1 + (row + down) * vision.grid + column + right for down in range(side) for right in range(side)]
            seen = vision._blocks(tokens[:, [0, *inside]])
            rows.append(vision.project(seen[:, 0]))
    return torch.stack(rows, dim=2).unflatten(2, (count, count))


def masked(vision: Vision, tokens: Tensor, side: int, row: int, column: int) -> Tensor:
    """One window as attention masks do it: every token goes through every block, and those outside are set to zero before. Another result."""
    inside = torch.zeros(vision.grid, vision.grid, dtype=torch.bool)
    inside[row : row + side, column : column + side] = True
    zeroed = tokens * torch.cat([torch.ones(1, dtype=torch.bool), inside.flatten()])[:, None]
    return vision.project(vision._blocks(zeroed)[:, 0])


def least_s(call: Callable[[], object], rounds: int = 3) -> float:
    """The least of a few rounds, in CPU seconds."""
    laps = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        laps.append(time.process_time() - start)
    return min(laps)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="ViT-B-16-plus-240")
    parser.add_argument("--images", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network, _ = whole_network(arguments.backbone, "random", 0, Path())
    size = architecture(arguments.backbone)["vision_cfg"]["image_size"]
    vision = Vision(network, ["image"], size)
    images = torch.randn(arguments.images, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = vision.embed(images)
    whole = least_s(lambda: vision._blocks(tokens))
    print(f"{arguments.backbone} at {size} px, {arguments.images} image(s), 1 thread, torch {torch.__version__}; whole image {whole:.2f} CPU s")
    for side in SIDES:
        together, single = vision.windows(tokens, side), one_by_one(vision, tokens, side)
        fast, slow = least_s(lambda side=side: vision.windows(tokens, side)), least_s(lambda side=side: one_by_one(vision, tokens, side), 1)
        other = masked(vision, tokens, side, 0, 0)
        unlike = float((other - single[:, :, 0, 0]).norm() / single[:, :, 0, 0].norm())
        print(
            f"windows of {side} x {side}: {single[0, 0].numel()} of them, one batch {fast:.2f} CPU s, one by one {slow:.2f} CPU s, ratio {slow / fast:.1f}; "
            f"largest difference {float((together - single).abs().max()):.1e}; zeroed, not dropped: {whole / fast * single[0, 0].numel():.0f} times "
            f"the work, and another embedding (relative difference {unlike:.2f})"
        )


if __name__ == "__main__":
    main()
