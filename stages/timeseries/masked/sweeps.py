"""Which windows are scored with which hidden patches, and what is collected from them.

Every scheme hides each step of a series at least once and averages over the windows that did. Series shorter than a window are lengthened in front.

T steps of the series, L steps of a window, N patches, V variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stages.timeseries.masked import masks
from stages.timeseries.masked.network import Network
from stages.timeseries.masked.scoring import Errors
from stages.timeseries.windows import WINDOWS_AT_ONCE, lengthened


class Sweep(NamedTuple):
    """One mask, and the windows that it is laid over."""

    starts: Tensor  # (W,) first steps of the windows
    mask: Tensor  # (N,) bool


def all_patches(steps: int, network: Network, stride: int, passes: int) -> list[Sweep]:
    """Every patch of every window, `passes` times a part of them."""
    starts = starts_of(steps, network.shape.steps, stride)
    return [Sweep(starts, mask) for mask in masks.interleaved(network.shape.patches, passes)]


def centred(steps: int, network: Network, stride: int, count: int) -> list[Sweep]:
    """The middle `count` patches of every window, hidden together; of the first and the last window also those beside them."""
    starts, patches = starts_of(steps, network.shape.steps, stride), network.shape.patches
    first, place = (patches - count) // 2, torch.arange(patches)
    before = [(place >= at) & (place < min(at + count, first)) for at in range(0, first, count)]
    after = [(place >= at) & (place < at + count) for at in range(first + count, patches, count)]
    ends = [*((starts[:1], mask) for mask in before), *((starts[-1:], mask) for mask in after)]
    return [Sweep(starts, masks.middle(patches, count)), *(Sweep(*end) for end in ends)]


@torch.no_grad()
def errors(network: Network, values: Tensor, sweeps: list[Sweep], suspicious: Tensor | None = None) -> Errors:
    """Means over all windows that hid a step. values: (T, V), T at least a window.

    suspicious: (T,) bool, steps that no other step may be redrawn from: their patches are hidden too.
    """
    signed, squared, discrepancy = (torch.zeros_like(values) for _ in range(3))
    count = values.new_zeros(len(values), 1)
    for starts, asked, mask in _batches(network, sweeps, suspicious):
        place = starts[:, None] + torch.arange(network.shape.steps)
        window = values[place.to(values.device)]
        output = network(window, mask.to(values.device))
        hidden = asked.repeat_interleave(network.patch_size)
        at = place[:, hidden].flatten().to(values.device)
        error = (window - output.teacher)[:, hidden].flatten(0, 1)
        signed.index_add_(0, at, error)
        squared.index_add_(0, at, error.square())
        discrepancy.index_add_(0, at, (output.teacher - output.student)[:, hidden].square().flatten(0, 1))
        count.index_add_(0, at, count.new_ones(len(at), 1))
    return Errors(signed / count, squared / count, discrepancy / count, values)


@torch.no_grad()
def last_errors(network: Network, values: Tensor, stride: int, count: int) -> Errors:
    """Each step from the window that ends there (with a stride: at the next end), the mean over its last `count` patches: what a stream knows at once.

    The first windows are filled up in front with the first step.
    """
    length, steps = network.shape.steps, len(values)
    series = lengthened(values, steps + length - 1)
    ends = torch.arange(0, steps, stride)
    if ends[-1] != steps - 1:
        ends = torch.cat([ends, torch.tensor([steps - 1])])
    mask, parts = masks.last(network.shape.patches, count)[0].to(values.device), []
    for starts in ends.split(WINDOWS_AT_ONCE):
        window = series[(starts[:, None] + torch.arange(length)).to(values.device)]
        output = network(window, mask.expand(len(window), -1))
        hidden = -count * network.patch_size
        error, apart = (window - output.teacher)[:, hidden:], (output.teacher - output.student)[:, hidden:]
        parts.append((error.mean(1), error.square().mean(1), apart.square().mean(1), window[:, -1]))
    window_of = torch.searchsorted(ends, torch.arange(steps)).to(values.device)
    return Errors(*(torch.cat(column)[window_of] for column in zip(*parts, strict=True)))


def starts_of(steps: int, length: int, stride: int) -> Tensor:
    starts = torch.arange(0, steps - length + 1, stride)
    return starts if starts[-1] == steps - length else torch.cat([starts, torch.tensor([steps - length])])


def _batches(network: Network, sweeps: list[Sweep], suspicious: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Window starts, the patches asked for (N,), and the mask of each window (B, N), as many hidden patches in each."""
    for starts, asked in sweeps:
        mask = asked.expand(len(starts), -1)
        if suspicious is not None:
            mask = mask | _suspected(network, starts, asked, suspicious)
        for count in mask.sum(1).unique().tolist():
            chosen = (mask.sum(1) == count).nonzero()[:, 0]
            for part in chosen.split(WINDOWS_AT_ONCE):
                yield starts[part], asked, mask[part]


def _suspected(network: Network, starts: Tensor, asked: Tensor, suspicious: Tensor) -> Tensor:
    """(W, N) patches with a suspicious step; a window keeps at least a quarter of its patches in sight."""
    patches = network.shape.patches
    seen = suspicious.cpu()[starts[:, None] + torch.arange(network.shape.steps)]
    share = seen.unflatten(1, (patches, network.patch_size)).float().mean(2)
    room = max(patches - int(asked.sum()) - max(patches // 4, 1), 0)
    order = torch.where(asked, -1.0, share).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(patches).expand_as(order))
    return (share > 0) & ~asked & (rank < room)
