"""Windows of w consecutive steps, one at each step, as views: nothing is copied before a chunk of them is asked for.

What is said of windows comes back to steps as the mean over the windows that cover a step. A series shorter than one window is one window, its last
step repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from stages.timeseries.detector import Stretch
from stages.types import Refusal

CHUNK = 4096  # windows in memory at once: 10 MB at 20 steps of 8 variables in float64


def windows(values: Tensor, length: int) -> Tensor:
    """(T - length + 1, V, length), a view; (1, V, length) where T < length."""
    if len(values) < length:
        values = torch.cat([values, values[-1:].expand(length - len(values), -1)])
    return values.unfold(0, length, 1)


def long_enough(train: Sequence[Stretch], length: int) -> list[Tensor]:
    """The values of the stretches that hold at least one window. Raises Refusal where there is none."""
    found = [stretch.values for stretch in train if len(stretch.values) >= length]
    if not found:
        longest = max((len(stretch.values) for stretch in train), default=0)
        raise Refusal(f"no training segment is as long as one window of {length} steps; the longest has {longest}. Choose a shorter window")
    return found


def flat_windows(values: Tensor, length: int) -> Iterator[Tensor]:
    """Chunks of windows as rows, (n, V * length), each variable's steps side by side."""
    for chunk in windows(values, length).split(CHUNK):
        yield chunk.flatten(1)


def sampled_windows(series: Sequence[Tensor], length: int, most: int, generator: torch.Generator) -> Tensor:
    """(n, V * length): all windows of all series in order, or `most` of them drawn without replacement, in the same order."""
    counts = [len(values) - length + 1 for values in series]
    chosen = sample(sum(counts), most, generator)
    starts = torch.tensor([0, *counts]).cumsum(0)
    own = [chosen[(chosen >= start) & (chosen < stop)] - start for start, stop in itertools.pairwise(starts)]
    return torch.cat([windows(values, length)[rows].flatten(1) for values, rows in zip(series, own)])


def sample(rows: int, most: int, generator: torch.Generator) -> Tensor:
    """Row numbers in order: all, or `most` of them drawn without replacement."""
    return torch.randperm(rows, generator=generator)[:most].sort().values if rows > most else torch.arange(rows)


def score_steps(values: Tensor, length: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """(T,): the mean of what `score` says of the windows, (n, V * length) to (n,), that cover each step."""
    scored = torch.cat([score(chunk) for chunk in flat_windows(values, length)])
    return over_steps(scored, length)[: len(values)]


def over_steps(scored: Tensor, length: int) -> Tensor:
    """(N,) of windows to (N + length - 1,) of steps. Each step sums its own windows, so a far outlier leaves no rounding behind."""
    padded = torch.nn.functional.pad(torch.stack([scored, torch.ones_like(scored)]), (length - 1, length - 1))
    total, count = padded.unfold(1, length, 1).sum(dim=2)
    return total / count
