"""Greedy k-centre: the few rows that leave no other row far from its nearest chosen one.

The plain algorithm looks at all N rows for each pick. But a row's distance to its nearest chosen row only ever shrinks. So the rows that
are now farthest form an active block, small enough to stay in cache, and the distance of the last of them is the floor: as long as the
farthest row of the block lies above the floor, it is the farthest of all, and only the block needs to know of a pick. When the block falls
to its floor, all pending picks are brought to all rows in one matrix product and a new block is chosen. The picks are those of the plain
algorithm, but for the order among rows whose distances are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 1024  # rows in the active block: 0.5 MB at 128 dimensions
PRODUCT = 2**22  # entries of the distance matrix held at once, 16 MB


def greedy_coreset(bank: Tensor, size: int, start: int = 0, advance: Callable[[int], None] = lambda count: None) -> Tensor:
    """Indices of `size` rows that greedily minimise the covering radius (k-centre).

    bank: (M, D) float, read in place and never copied. Returns (size,) int64 in the order chosen, `start` first, no row twice, so a smaller
    coreset is always a prefix of a larger one. `advance(n)` is called as picks are made. PatchCore, arXiv:2106.08265, Algorithm 1, without
    the random projection (`random_projection` below).
    """
    if not 1 <= size <= len(bank):
        raise ValueError(f"coreset size must be in 1..{len(bank)} (memory bank rows), got {size}")
    norms = bank.square().sum(dim=1)
    nearest = torch.full_like(norms, torch.inf)  # squared distance of each row to the coreset; -1 once it is in it
    chosen = [start]
    _bring_up_to_date(nearest, bank, norms, chosen)
    advance(1)
    while len(chosen) < size:
        picks = _picks_of_a_block(nearest, bank, norms, size - len(chosen))
        _bring_up_to_date(nearest, bank, norms, picks)
        chosen += picks
        advance(len(picks))
    return torch.tensor(chosen)


def _picks_of_a_block(nearest: Tensor, bank: Tensor, norms: Tensor, most: int) -> list[int]:
    """The next picks, at least one and at most `most`, that can be told from the farthest rows alone."""
    values, rows = nearest.topk(min(BLOCK, len(nearest)))
    floor = values[-1] if len(rows) < len(nearest) else -torch.inf
    block, block_norms, block_nearest = bank[rows], norms[rows], nearest[rows]
    picks: list[int] = []
    while len(picks) < most:
        farthest, place = block_nearest.max(dim=0)
        if picks and farthest <= floor:
            break
        picks.append(int(rows[place]))
        distances = (block_norms - 2 * (block @ block[place])).add_(block_norms[place]).clamp_(min=0)
        torch.minimum(block_nearest, distances, out=block_nearest)
        block_nearest[place] = -1
    return picks


def _bring_up_to_date(nearest: Tensor, bank: Tensor, norms: Tensor, picks: list[int]) -> None:
    """Lower `nearest`, in place, to the squared distances |x|^2 + |c|^2 - 2xc to the new picks."""
    centres, centre_norms = bank[picks], norms[picks]
    step = max(1, PRODUCT // len(picks))
    for first in range(0, len(bank), step):
        rows = slice(first, first + step)
        distances = torch.addmm(centre_norms, bank[rows], centres.T, alpha=-2).amin(dim=1).add_(norms[rows]).clamp_(min=0)
        torch.minimum(nearest[rows], distances, out=nearest[rows])
    nearest[picks] = -1


def random_projection(width: int, target: int, generator: torch.Generator) -> Tensor:
    """(width, target) Gaussian matrix that keeps distances in expectation (Johnson and Lindenstrauss)."""
    return torch.randn(width, target, generator=generator) / target**0.5
