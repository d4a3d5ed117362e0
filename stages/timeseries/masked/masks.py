"""Which patches are hidden: drawn for training, laid out for scoring. True is masked.

B batch, N patches, V variables, K passes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hidden_count(patches: int, ratio: float) -> int:
    """round(ratio * patches), at least 1, and at least one patch stays visible."""
    return min(max(round(ratio * patches), 1), patches - 1)


def drawn(batch: int, patches: int, ratio: float, generator: torch.Generator | None = None, first: Tensor | None = None) -> Tensor:
    """(B, N) with exactly `hidden_count` patches in each row. first: (B, N) bool, patches that are taken before any other."""
    order = torch.rand(batch, patches, generator=generator)
    if first is not None:
        order = order - first.to(order)
    return _lowest(order, hidden_count(patches, ratio))


def drawn_spans(batch: int, patches: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """(B, N) like `drawn`, but the masked patches of a row are neighbours: an anomaly of their length would be hidden whole."""
    count = hidden_count(patches, ratio)
    start = torch.randint(patches - count + 1, (batch, 1), generator=generator)
    place = torch.arange(patches)
    return (place >= start) & (place < start + count)


def drawn_by_variable(
    batch: int, patches: int, variables: int, ratio: float, generator: torch.Generator | None = None, first: Tensor | None = None
) -> Tensor:
    """(B, N, V) with exactly `hidden_count` patches of each variable, drawn for each on its own. first: as for `drawn`, for every variable."""
    order = torch.rand(batch, patches, variables, generator=generator)
    if first is not None:
        order = order - first[..., None].to(order)
    return _lowest(order.transpose(1, 2), hidden_count(patches, ratio)).transpose(1, 2)


def last(patches: int, count: int) -> Tensor:
    """(1, N): the last `count` patches, which is what a stream can ask for."""
    return (torch.arange(patches) >= patches - count)[None]


def interleaved(patches: int, passes: int) -> Tensor:
    """(K, N): pass k hides every K-th patch from k on, so each patch is hidden once. As many passes as patches: one at a time."""
    return torch.arange(patches) % passes == torch.arange(passes)[:, None]


def middle(patches: int, count: int) -> Tensor:
    """(N,): the middle `count` patches."""
    first, place = (patches - count) // 2, torch.arange(patches)
    return (place >= first) & (place < first + count)


def _lowest(order: Tensor, count: int) -> Tensor:
    chosen = order.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, chosen, True)
