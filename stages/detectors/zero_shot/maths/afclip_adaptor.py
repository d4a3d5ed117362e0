"""AF-CLIP's way from a CLIP's tokens to the space of its sentences: neighbourhoods of patches, one adaptor for all of them, and CLIP's own last
norm and projection.

Fang et al., "AF-CLIP", ACM MM 2025, arXiv:2507.19949. Written from the formulas; what is ours is said at `neighbourhoods` and `heads_for`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.types import Features

SENTENCES = ("without defect.", "with defect.")  # about a good and a bad image, whatever they show
HEAD_WIDTH = 64
WIDEST = 2 / 3  # of the grid that a neighbourhood may take: 5 of 7 patches is no neighbourhood any more


class Adaptor(nn.Module):
    """LayerNorm, self-attention over all tokens of an image, a linear layer: (B, T, C) to the same. No residual and no MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = heads_for(width)
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * self.heads * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(self.heads * HEAD_WIDTH, width)

    def forward(self, tokens: Tensor) -> Tensor:
        split = self.query_key_value(self.norm(tokens)).unflatten(2, (3, self.heads, HEAD_WIDTH))  # (B, T, 3, heads, 64)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Alignment(nn.Module):
    """From tokens (B, T, C) to vectors of length 1 (B, T, D) where CLIP's sentences lie. Only the adaptor is there to be trained."""

    def __init__(self, width: int, embedding: int, seed: int = 0) -> None:
        """seed: of the adaptor's values; the caller's random state is left as it was."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.adaptor = Adaptor(width)
        self.ln_post = nn.LayerNorm(width).requires_grad_(False)
        self.projection = nn.Parameter(torch.eye(width, embedding), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.ln_post(self.adaptor(tokens)) @ self.projection, dim=2)


def heads_for(width: int) -> int:
    """8 as in the paper; 4 for the narrow towers of TinyCLIP-8M and below."""
    return 4 if width <= 256 else 8


def quarters(blocks: int) -> tuple[str, ...]:
    """Layers after a quarter, a half, three quarters and all of a tower's blocks: block5, block11, block17 and block23 of 24; fewer of a short one."""
    return tuple(dict.fromkeys(f"block{max(1, round(blocks * quarter / 4)) - 1}" for quarter in range(1, 5)))


def with_class_tokens(layers: Sequence[str]) -> tuple[str, ...]:
    """What an encoder must give for these layers: their patches and their class tokens."""
    return tuple(name for layer in layers for name in (layer, f"{layer}_extra"))


def neighbourhoods(features: Features, layers: Sequence[str], radii: Sequence[int], sigma: float) -> Iterator[tuple[str, int, Tensor]]:
    """(layer, r, (B, C, h, w)): every patch of every layer as the mean of the r x r around it.

    An r above two thirds of the grid's shorter side is left out, but never r = 1 (the paper's grid is 37 x 37; r = 5 on 7 x 7 says nothing of a place).
    """
    for layer in layers:
        maps = features[layer].float()
        for radius in radii:
            if radius == 1 or radius <= WIDEST * min(maps.shape[2:]):
                yield layer, radius, averaged(maps, radius, sigma)


def averaged(maps: Tensor, radius: int, sigma: float) -> Tensor:
    """(B, C, h, w) of means over radius x radius patches with Gaussian weights that sum to 1; beyond the border lie zeros. 1 changes nothing."""
    if radius == 1:
        return maps
    offsets = torch.arange(radius, dtype=torch.float64) - radius // 2
    line = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    planes = maps.flatten(0, 1)[:, None]
    return F.conv2d(planes, kernel.to(maps)[None, None], padding=radius // 2)[:, 0].unflatten(0, maps.shape[:2])


def as_tokens(maps: Tensor, class_token: Tensor) -> Tensor:
    """(B, 1 + h*w, C), the class token first, from (B, C, h, w) and (B, C, 1, 1)."""
    return torch.cat([class_token.float().flatten(2), maps.flatten(2)], dim=2).transpose(1, 2)
