"""A threshold without anomalous images: how many false alarms would pure noise give, were regions as strange as this one taken for anomalies?

A flow maps normal images to z ~ N(0, 1), independent in all places. Under that hypothesis the probability of what a region shows can be
computed or bounded; times the number of regions that are looked at it is the expected number of false alarms (NFA) of as strange regions.
Where log10 NFA < 0, fewer than one is expected in the whole image, and the region is an anomaly. Tailanian et al., "U-Flow: A U-shaped
Normalizing Flow for Anomaly Detection with Unsupervised Threshold", arXiv:2211.12353 (from the formulas alone), in two versions: square
windows with a binomial law, and the regions of a max-tree with Chernoff's bound on a chi-square law.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

POLYOMINOES = (0.316915, 4.062570)  # about a b^r / r polyominoes have r cells (Jensen and Guttmann 2000)


def block_log_nfa(latents: list[Tensor], size: tuple[int, int], probability: float = 0.9, window: int = 5) -> Tensor:
    """(B, H, W) log10 NFA from z of each scale (B, C, h, w), with a square window of `window` cells a side around each position.

    A value is high where z^2 is above the quantile `probability` of chi-square with one degree of freedom. k, the high values in a window
    averaged over channels, follows a binomial law of n cells (fewer at the border). The logarithms of P[Bin(n, 1 - probability) >= k] of
    all scales are added, for scales are independent under the hypothesis; there are as many tests as positions of all scales.
    """
    if window % 2 == 0:
        raise ValueError(f"the window needs a middle: give an odd number of cells, got {window}")
    edge = torch.special.ndtri(torch.tensor((1 + probability) / 2, dtype=torch.float64)).item()
    tails = _log10_binomial_tails(window**2, 1 - probability)
    total = torch.zeros(len(latents[0]), *size, dtype=torch.float64)
    for z in latents:
        high = (z.abs() >= edge).sum(dim=1).double()  # (B, h, w)
        counted, cells = _window_sums(high, window), _window_sums(torch.ones_like(high), window)
        k = (counted / z.shape[1]).sub(1e-9).ceil().long().clamp(min=0)  # P[Bin >= k] is that of the next whole number
        log_p = tails.to(z.device)[cells.long(), k]
        total = total.to(z.device) + F.interpolate(log_p[:, None], size, mode="bicubic", align_corners=False)[:, 0]
    return (total + math.log10(sum(z[0, 0].numel() for z in latents))).float()


def tree_log_nfa(latents: list[Tensor], size: tuple[int, int]) -> Tensor:
    """(B, H, W) log10 NFA from z of each scale (B, C, h, w): the least of the scales, over the regions of the max-tree of sum_c z^2.

    A pixel outside all regions that were kept has P = 1. There are as many tests as polyominoes that fit the grids by their number of cells.
    """
    tests, maps = log10_polyominoes([z[0, 0].numel() for z in latents]), []
    for z in latents:
        energies = z.double().square().sum(dim=1).cpu()
        found = torch.stack([significant_regions(energy, z.shape[1]) for energy in energies])
        maps.append(F.interpolate(found[:, None], size, mode="nearest")[:, 0])
    return (torch.stack(maps).amin(dim=0) + tests).float().to(latents[0].device)


def significant_regions(energy: Tensor, channels: int) -> Tensor:
    """(h, w) log10 P of the region that each cell was put into, 0 where it is in none; energy (h, w) is sum_c z^2.

    Regions are the connected parts (by edges) of the cells above a level, which form a tree. From the leaves up, a region takes the place
    of all that was kept inside it when it is more significant than each of those.
    """
    height, width = energy.shape
    values, order = energy.flatten().tolist(), energy.flatten().argsort(descending=True, stable=True).tolist()
    leader, cells = list(range(height * width)), [0] * (height * width)  # union-find: leader[i] == i is the lowest cell of a region
    parent: dict[int, int] = {}
    own, kept, best = [0.0] * len(values), [False] * len(values), [0.0] * len(values)

    def lead(cell: int) -> int:
        while leader[cell] != cell:
            leader[cell] = cell = leader[leader[cell]]
        return cell

    for cell in order:
        row, column = divmod(cell, width)
        beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        places = [r * width + c for r, c in beside if 0 <= r < height and 0 <= c < width]
        inside = {lead(place) for place in places if cells[place]}
        cells[cell] = 1 + sum(cells[child] for child in inside)
        for child in inside:
            leader[child] = parent[child] = cell
        own[cell] = cells[cell] * log10_chernoff(values[cell], channels)
        strongest = min((best[child] for child in inside), default=0.0)
        kept[cell] = own[cell] < 0 and own[cell] <= strongest
        best[cell] = min(own[cell], strongest)
    found = [0.0] * len(values)
    for cell in reversed(order):  # from the whole image inwards: a region that lies in a kept one belongs to it
        above = found[parent[cell]] if cell in parent else 0.0
        found[cell] = above if above < 0 else own[cell] if kept[cell] else 0.0
    return torch.tensor(found, dtype=torch.float64).view(height, width)


def log10_chernoff(energy: float, channels: int) -> float:
    """Chernoff's bound of log10 P[chi-square of `channels` degrees >= energy], for one cell; 0 below the mean, where it bounds nothing."""
    ratio = energy / channels
    return -channels / 2 * (ratio - 1 - math.log(ratio)) / math.log(10) if ratio > 1 else 0.0


def log10_polyominoes(grids: list[int]) -> float:
    """log10 of the number of connected regions in grids of so many cells: each of up to all cells, at each position."""
    a, b = POLYOMINOES
    terms = []
    for cells in grids:
        sizes = torch.arange(1, cells + 1, dtype=torch.float64)
        terms.append(math.log(cells) + math.log(a) + sizes * math.log(b) - sizes.log())
    return torch.cat(terms).logsumexp(dim=0).item() / math.log(10)


def _log10_binomial_tails(most: int, probability: float) -> Tensor:
    """(most + 1, most + 2): at n, k the log10 of P[Bin(n, probability) >= k]; -inf where k > n."""
    n, j = torch.meshgrid(*[torch.arange(most + 1, dtype=torch.float64)] * 2, indexing="ij")
    chances = (n + 1).lgamma() - (j + 1).lgamma() - (n - j + 1).clamp(min=1).lgamma()
    chances = chances + j * math.log(probability) + (n - j) * math.log1p(-probability)
    chances = chances.where(j <= n, -math.inf)
    tails = chances.flip(1).logcumsumexp(dim=1).flip(1) / math.log(10)
    return torch.cat([tails, torch.full((most + 1, 1), -math.inf, dtype=torch.float64)], dim=1).clamp(max=0)


def _window_sums(values: Tensor, window: int) -> Tensor:
    """(B, h, w): the sum over the window around each cell; outside the map is nothing."""
    return F.avg_pool2d(values[:, None], window, stride=1, padding=window // 2, divisor_override=1)[:, 0]
