"""Attention without a softmax, a transformer block around it, and a decoder of such blocks behind a noisy bottleneck.

phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)) with phi = elu + 1, which takes time linear in the number of tokens and cannot focus: each token
gets a broad average of the others. Katharopoulos et al., "Transformers are RNNs", arXiv:2006.16236, equations 4-7. No 1 / sqrt(d).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Three (..., N, D) to (..., N, D)."""
    query, key = F.elu(query) + 1, F.elu(key) + 1
    total = query @ key.sum(dim=-2, keepdim=True).transpose(-2, -1)  # (..., N, 1)
    return query @ (key.transpose(-2, -1) @ value) / total


class LinearBlock(nn.Module):
    """A pre-norm transformer block of linear attention and an MLP of four times the width; (B, N, D) to (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, eps=1e-8), nn.LayerNorm(width, eps=1e-8)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        parts = (
            self.qkv(self.attention_norm(tokens)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (3, B, heads, N, D / heads)
        attended = linear_attention(*parts.unbind(0)).transpose(1, 2).flatten(2)
        tokens = tokens + self.project(attended)
        return tokens + self.mlp(self.mlp_norm(tokens))


class Reconstruction(nn.Module):
    """The noisy bottleneck and the decoder: (B, N, D) to the (B, N, D) that each decoder block gives, in order."""

    def __init__(self, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )
        self.blocks = nn.ModuleList(LinearBlock(width, heads) for _ in range(depth))
        self.register_buffer("steps", torch.tensor(0))  # of training; here because the loss depends on it, and a resumed one must too
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        outputs = [self.bottleneck(tokens)]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return outputs[1:]
