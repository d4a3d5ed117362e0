"""Nearest rows of a memory bank and PatchCore's re-weighting: what runs against the plain way, in one run on one machine. Read the ratios.

python benchmarks/neighbours.py --rows 10000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from stages.detectors.memory_bank.maths.neighbours import build_index, distances, nearest, own_neighbours

HOOD = 9  # b of the re-weighting


def features(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """(rows, width) float32 of low rank with ReLU: closer to real features than isotropic noise, on which approximate search does badly."""
    basis = torch.randn(24, width, generator=torch.Generator().manual_seed(0))
    return (torch.randn(rows, 24, generator=generator) @ basis).relu_()


def milliseconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Of CPU time, the best of `repeats`: other work on the machine can only add to it."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return 1000 * min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--patches", type=int, default=784)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    bank, queries = features(given.rows, given.width, generator), features(given.patches, given.width, generator)
    flat, product = build_index(bank), build_index(bank, "torch")
    truth = nearest(flat, queries)
    exact = distances(queries, bank[truth[:, 0]])
    ours = milliseconds(lambda: nearest(flat, queries))
    print(f"{given.patches} patches in a bank of {given.rows} x {given.width}, CPU ms on one thread")
    print(f"{'faiss flat (ours)':24} {ours:9.1f}")
    for name, call in {
        "torch product (ours)": lambda: nearest(product, queries),
        "torch.cdist and min": lambda: torch.cdist(queries, bank).min(dim=1),
        "the product alone": lambda: queries @ bank.T,
    }.items():
        taken = milliseconds(call)
        print(f"{name:24} {taken:9.1f}   {taken / ours:6.2f} x flat")
    for search in ("hnsw", "ivf"):
        index = build_index(bank, search)
        found, taken = nearest(index, queries), milliseconds(lambda index=index: nearest(index, queries))
        got = distances(queries, bank[found[:, 0]])
        recall, error = (found == truth).float().mean().item(), (got.max() / exact.max() - 1).item()
        print(f"{search:24} {taken:9.1f}   {taken / ours:6.2f} x flat   recall {recall:.3f}, image score off by {error:.2%}")
    hoods, row, patch = own_neighbours(bank[:2000], HOOD), int(truth[0, 0]), queries[0]
    looked_up = milliseconds(lambda: distances(patch, bank[hoods[row % 2000]]), repeats=50)
    searched = milliseconds(lambda: distances(patch, bank[nearest(flat, bank[row : row + 1], HOOD)[0]]), repeats=50)
    print(f"re-weighting, looked up  {looked_up:9.3f}\nre-weighting, searched   {searched:9.3f}   {searched / looked_up:6.1f} x looked up")


if __name__ == "__main__":
    main()
