"""A few learnt latents read the tokens of a record, whatever their number, talk to each other, and are read out as one logit.

A block is cross-attention from latents to tokens, self-attention among latents, and a feed-forward layer of experts; all pre-norm with residuals. Keys and
values of the tokens are computed on the rows that exist and padded after it.

After Perceiver IO (Jaegle et al., arXiv:2107.14795). Deviations:
- One feed-forward layer per block, after the self-attention; the paper has one after each attention.
- Every block reads the tokens, with weights of its own unless `share_weights`; the paper reads them once, its predecessor shares all but the first.
- The latents are read out by attention from one learnt query, the paper's decoder with one output.
- A head on the mean token of each modality serves the auxiliary loss alone.

B records, N latents, L tokens of the longest record, R rows, M modalities, E experts, D width, P presence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.datasets.records import Ragged, key
from stages.fusion.perceiver.experts import Dense, Gate, Mixture, Routing, equal_hidden
from stages.fusion.perceiver.tokens import Sequences, Tokeniser

PRESENCE = 32  # P


class Shape(NamedTuple):
    """The sizes of a network, named as the detector's options are."""

    width: int = 256
    latents: int = 32
    heads: int = 4
    blocks: int = 3
    experts: int = 4
    top_k: int = 2
    hidden: int = 512
    max_tokens: int = 256
    ffn: str = "moe"
    match: str = "total"
    routing: str = "learned"
    gate: Gate = "softmax"
    share_weights: bool = False
    dropout: float = 0.1

    def check(self) -> None:
        """Raises ValueError for sizes that do not go together."""
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k must be in 1..{self.experts} (experts), got {self.top_k}")
        for name in ("latents", "blocks", "hidden", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def feed_forward(self) -> nn.Module:
        if self.ffn == "moe":
            return Mixture(self.width, PRESENCE, self.hidden, self.experts, self.top_k, self.gate, self.routing == "uniform")
        used = self.experts if self.match == "total" else self.top_k
        return Dense(self.width, equal_hidden(self.width, PRESENCE, self.hidden, self.experts, used))


class Reading(NamedTuple):
    """What the network makes of B records."""

    logit: Tensor  # (B,)
    unimodal: Tensor  # (B, M) logits of each modality alone; of those that are absent they mean nothing
    present: Tensor  # (B, M) bool
    latents: Tensor  # (B, N, D)
    gates: Tensor  # (layers, B, N, E); E is 0 without experts
    attention: Tensor  # (B, M) share of the latents' attention, mean over blocks and heads; rows sum to 1
    routings: list[Routing]  # of each block that has a router


class Attention(nn.Module):
    """Multi-head attention of queries to keys and values that were projected beforehand."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, queries: Tensor, key_value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """queries: (B, N, D); key_value: (B, L, 2 D) as `self.key_value` gives it; mask: (B, L) bool. Returns (B, N, D) and the weights (B, heads, N, L)."""
        query = self.query(queries).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
        keys, values = key_value.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = query @ keys.transpose(2, 3) * query.shape[3] ** -0.5
        if mask is not None:
            weights = weights.masked_fill(~mask[:, None, None], float("-inf"))
        weights = weights.softmax(3)
        return self.out((weights @ values).transpose(1, 2).flatten(2)), weights


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(shape.width) for name in ("latents", "tokens", "within", "feed")})
        self.reads, self.within = (Attention(shape.width, shape.heads) for _ in range(2))
        self.feed = shape.feed_forward()

    def forward(self, latents: Tensor, sequences: Sequences, presence: Tensor) -> tuple[Tensor, Routing | None, Tensor, Tensor]:
        """latents: (B, N, D); presence: (B, P). Returns the latents, the routing, the gates (B, N, E) and the weights (B, heads, N, L)."""
        tokens = sequences.padded(self.reads.key_value(self.norms["tokens"](sequences.rows)))
        seen, weights = self.reads(self.norms["latents"](latents), tokens, sequences.mask)
        latents = latents + seen
        normed = self.norms["within"](latents)
        latents = latents + self.within(normed, self.within.key_value(normed))[0]
        rows = self.norms["feed"](latents).flatten(0, 1)
        fed, routing, gates = self.feed(rows, presence.repeat_interleave(latents.shape[1], 0))
        return latents + fed.view_as(latents), routing, gates.view(*latents.shape[:2], -1), weights


class Network(nn.Module):
    """widths: the modalities and their D."""

    def __init__(self, widths: Mapping[str, int], shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokeniser = Tokeniser(widths, shape.width, shape.max_tokens)
        self.latents = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, shape.latents, shape.width), std=0.02))
        self.presence = nn.ParameterDict({key(name): nn.init.trunc_normal_(torch.empty(PRESENCE), std=1.0) for name in widths})
        self.blocks = nn.ModuleList(Block(shape) for _ in range(min(shape.blocks, 2) if shape.share_weights else shape.blocks))
        self.asks = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, shape.width), std=0.02))
        self.pooled_norm, self.pool = nn.LayerNorm(shape.width), Attention(shape.width, shape.heads)
        self.head = nn.Sequential(nn.LayerNorm(shape.width), nn.Dropout(shape.dropout), nn.Linear(shape.width, 1))
        self.alone = nn.ModuleDict({key(name): nn.Linear(shape.width, 1) for name in widths})

    def forward(self, tokens: Mapping[str, Ragged]) -> Reading:
        """tokens: the modalities of `widths`, of B records each."""
        sequences = self.tokeniser(tokens)
        batch = len(sequences.present)
        latents, routings, gates, shares = self.latents.expand(batch, -1, -1), [], [], []
        presence = sequences.present.to(latents.dtype) @ torch.stack([self.presence[key(name)] for name in self.tokeniser.names])
        for number in range(self.shape.blocks):
            block = self.blocks[min(number, len(self.blocks) - 1)]
            latents, routing, gate, weights = block(latents, sequences, presence)
            routings += [routing] if routing else []
            gates.append(gate)
            shares.append(weights.detach().mean((1, 2)))
        normed = self.pooled_norm(latents)
        pooled = self.pool(self.asks.expand(batch, -1, -1), self.pool.key_value(normed))[0][:, 0]
        attention = self._by_modality(torch.stack(shares).mean(0), sequences)
        unimodal = self._unimodal(sequences)
        return Reading(self.head(pooled)[:, 0], unimodal, sequences.present, latents, torch.stack(gates), attention, routings)

    def _unimodal(self, sequences: Sequences) -> Tensor:
        """(B, M) logits of the mean token of each modality."""
        batch, names = len(sequences.present), self.tokeniser.names
        pair = sequences.modality * batch + sequences.record
        total = sequences.rows.new_zeros(len(names) * batch, sequences.rows.shape[1]).index_add(0, pair, sequences.rows)
        means = total / torch.bincount(pair, minlength=len(total))[:, None]
        return torch.cat([self.alone[key(name)](mean) for name, mean in zip(names, means.split(batch))], 1)

    def _by_modality(self, share: Tensor, sequences: Sequences) -> Tensor:
        """(B, L) attention to tokens, summed over the tokens of each modality, (B, M)."""
        batch, modalities = sequences.present.shape
        pair = sequences.record * modalities + sequences.modality
        return share.new_zeros(batch * modalities).index_add(0, pair, share.flatten()[sequences.slot]).view(batch, modalities)
