"""Small networks that stand where large pretrained ones would, for machines that have no weights: the same tokens, of width 192, from random filters.

They are drawn from a seed and nothing has taught them anything; what they see is what random filters see (texture, loudness, movement). They exist so that
everything around them can run, be tested and be compared with no file at all, and are no substitute for a pretrained backbone.

B records, N views, T frames, M mel bands, L columns of a spectrogram, D = 192.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.seed import derive

WIDTH = 192
MOMENTS, STRETCHES = 8, 16  # tokens of a film and of a sound


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, values: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        query, key, value = (layer(values).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A layer of a pre-norm transformer."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, values: Tensor) -> Tensor:
        values = values + self.attention(self.before(values))
        return values + self.mlp(self.between(values))


class VideoTwin(nn.Module):
    """(B, 1, T, H, W) to (B, 8, 192): tubes of 2 frames and 8 x 8 pixels, four blocks over those of one moment, and their mean."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, WIDTH, (2, 8, 8), (2, 8, 8))
        self.layer = nn.ModuleList(Block(WIDTH) for _ in range(blocks))

    def forward(self, film: Tensor) -> Tensor:
        tubes = self.stem(film)  # (B, D, T / 2, h, w)
        values = tubes.flatten(3).permute(0, 2, 3, 1).flatten(0, 1)  # (B * T / 2, h * w, D)
        for block in self.layer:
            values = block(values)
        moments = values.mean(1).unflatten(0, (len(film), -1))  # (B, T / 2, D)
        return F.adaptive_avg_pool1d(moments.transpose(1, 2), MOMENTS).transpose(1, 2)


class ImageTwin(nn.Module):
    """(N, 3, H, W) to (N, 1 + h * w, 192), the class token first, as a vision transformer with patches of 16 x 16 pixels; H and W of any size."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) * 0.02)
        self.layer = nn.ModuleList(Block(WIDTH) for _ in range(blocks))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.stem(pixels).flatten(2).transpose(1, 2)
        values = torch.cat([self.token.expand(len(pixels), -1, -1), patches], 1)
        for block in self.layer:
            values = block(values)
        return self.norm(values)


class AudioTwin(nn.Module):
    """(B, 1, M, L) to (B, 16, 192): four convolutions over bands and time, the mean over bands, and the time cut into 16 stretches."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, WIDTH // 8, WIDTH // 4, WIDTH // 2, WIDTH)
        self.layer = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, 2 if number < 2 else (2, 1), 1), nn.GroupNorm(1, after), nn.GELU())
            for number, (before, after) in enumerate(pairwise(widths))
        )

    def forward(self, spectrogram: Tensor) -> Tensor:
        values = spectrogram
        for convolution in self.layer:
            values = convolution(values)
        return F.adaptive_avg_pool1d(values.mean(2), STRETCHES).transpose(1, 2)


def drawn(kind: type[nn.Module], seed: int) -> nn.Module:
    """The network as this seed draws it, whatever the global generator holds, which stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "twin", kind.__name__))
        return kind()
