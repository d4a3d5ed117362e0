"""Greedy k-centre: the block algorithm against the plain ones, all in one run on one machine. Read the ratios, not the seconds.

    python benchmarks/coreset.py --rows 10000 --ratio 0.1

The plain algorithms are stopped after `--plain-picks` picks and their time is scaled up: each of their picks costs the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from stages.detectors.memory_bank.maths.coreset import greedy_coreset, random_projection


def patches(rows: int, width: int, images: int) -> Tensor:
    """(rows, width) float32 that look like features: correlated channels, positions that repeat from image to image, ReLU."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randn(max(1, rows // images), 24, generator=generator)
    values = positions.repeat(images + 1, 1)[:rows] + 0.5 * torch.randn(rows, 24, generator=generator)
    return (values @ torch.randn(24, width, generator=generator)).relu_()


def norm_per_pick(bank: Tensor, size: int) -> list[int]:
    """A fresh (N, D) difference for each pick, as the paper's algorithm reads."""
    chosen, nearest = [0], (bank - bank[0]).norm(dim=1)
    while len(chosen) < size:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (bank - bank[chosen[-1]]).norm(dim=1))
    return chosen


def product_per_pick(bank: Tensor, size: int) -> list[int]:
    """One matrix-vector product over all rows for each pick."""
    norms = bank.square().sum(dim=1)
    chosen, nearest = [0], norms + norms[0] - 2 * (bank @ bank[0])
    while len(chosen) < size:
        chosen.append(int(nearest.argmax()))
        row = bank[chosen[-1]]
        torch.minimum(nearest, norms + norms[chosen[-1]] - 2 * (bank @ row), out=nearest)
    return chosen


def seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--plain-picks", type=int, default=50)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bank, size = patches(given.rows, given.width, images=50), int(given.rows * given.ratio)
    plain = min(given.plain_picks, size)
    projected = bank @ random_projection(given.width, 128, torch.Generator().manual_seed(0))
    ours = seconds(lambda: greedy_coreset(projected, size))
    rows = {
        f"norm per pick, {given.width}-d": seconds(lambda: norm_per_pick(bank, plain)) * size / plain,
        "norm per pick, 128-d": seconds(lambda: norm_per_pick(projected, plain)) * size / plain,
        "product per pick, 128-d": seconds(lambda: product_per_pick(projected, plain)) * size / plain,
        "ours, 128-d": ours,
    }
    print(f"{given.rows} rows, {size} picks, CPU seconds on one thread")
    for name, value in rows.items():
        print(f"{name:28} {value:9.2f} s   {value / ours:7.1f} x ours")
    compared = min(size, 400)
    same = product_per_pick(projected.double(), compared) == greedy_coreset(projected.double(), compared).tolist()
    print(f"first {compared} picks equal those of the plain algorithm in float64: {same}")


if __name__ == "__main__":
    main()
