"""Cross-attention fusion: a few queries read all tokens of a record, whichever modalities it has, and are one vector in the end.

A layer is attention from queries to tokens, attention among queries, and a feed-forward network, each after a norm and with a residual. Queries are
learnt, or they are the tokens of one modality ("video" or "series", as the first description of the weld model has it). In the style "per_modality" each
modality is read by queries of its own and a network joins what they bring, which is how that model was first built.

After Vaswani et al., arXiv:1706.03762, and Perceiver IO (Jaegle et al., arXiv:2107.14795). Deviations: attention to what is masked is a very small finite
number before the softmax, so that nothing is ever NaN; the tokens have one norm for all layers, whose projections do what norms of their own would.

B records, Q queries, L tokens, M modalities, W width of tokens, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stages.datasets.records import key
from stages.fusion.deep.maths.encoder import Encoded, mean
from stages.fusion.deep.maths.network import Fused

LEARNED = "learned"


class Attention(nn.Module):
    """Multi-head attention that also returns its weights.

    Queries are few and tokens many, so the projections of keys and values are applied to what is asked and to what was read instead of to every token:
    q . (K t) = (K' q) . t, and the mean of V t is V of the mean. The result is the same; the cost is L * F * heads * Q and no more L * F * F. A bias of
    the keys would add the same to all scores of a query, so there is none.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """queries: (B, Q, F); tokens: (B, L, F); mask: (B, L) bool. Returns (B, Q, F) and the weights (B, heads, Q, L)."""
        query = self.query(queries).unflatten(2, (self.heads, -1))  # (B, Q, heads, F / heads)
        asked = torch.einsum("bqhd,hdf->bhqf", query, self.key.weight.unflatten(0, (self.heads, -1)))
        scores = (asked.flatten(1, 2) @ tokens.transpose(1, 2)).unflatten(1, (self.heads, -1)) * query.shape[3] ** -0.5
        weights = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min).softmax(3)
        read = (weights.flatten(1, 2) @ tokens).unflatten(1, (self.heads, -1))  # (B, heads, Q, F)
        values = torch.einsum("bhqf,hdf->bqhd", read, self.value.weight.unflatten(0, (self.heads, -1)))
        return self.out(values.flatten(2) + self.value.bias), weights


class Layer(nn.Module):
    def __init__(self, features: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({name: nn.LayerNorm(features) for name in ("queries", "within", "feed")})
        self.reads, self.within = Attention(features, heads), Attention(features, heads)
        self.feed = nn.Sequential(nn.Linear(features, ffn), nn.GELU(), nn.Dropout(dropout), nn.Linear(ffn, features))
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, asking: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """queries: (B, Q, F), of which those of `asking`, (B, Q) bool, count. Returns them, their weights to tokens and those among them."""
        seen, weights = self.reads(self.norms["queries"](queries), tokens, mask)
        queries = queries + self.dropout(seen)
        normed = self.norms["within"](queries)
        told, within = self.within(normed, normed, asking)
        queries = queries + self.dropout(told)
        return queries + self.dropout(self.feed(self.norms["feed"](queries))), weights, within


class Reader(nn.Module):
    """Queries that read tokens in several layers: learnt ones, or tokens that are given as queries."""

    def __init__(self, features: int, heads: int, queries: int, layers: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, queries, features), std=0.02)) if queries else None
        self.layers = nn.ModuleList(Layer(features, heads, ffn, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(features)

    def forward(self, tokens: Tensor, mask: Tensor, given: tuple[Tensor, Tensor] | None = None) -> Fused:
        """tokens: (B, L, F), mask: (B, L); given: queries (B, Q, F) and which of them count, where none are learnt."""
        if given is None:
            queries = self.queries.expand(len(tokens), -1, -1)
            asking = torch.ones(queries.shape[:2], dtype=torch.bool, device=tokens.device)
        else:
            queries, asking = given
        weights, within = [], []
        for layer in self.layers:
            queries, to_tokens, among = layer(queries, asking, tokens, mask)
            weights.append(to_tokens)
            within.append(among)
        looked = torch.stack(weights).mean((0, 2))  # (B, Q, L): over layers and heads
        return Fused(mean(self.norm(queries), asking)[:, None], mean(looked, asking), tuple(weights), tuple(within))


class CrossAttentionFusionModule(nn.Module):
    """modalities: their names. width: of the tokens. query: "learned", or the name of the modality whose tokens ask. queries: how many learnt ones."""

    def __init__(
        self,
        modalities: Sequence[str],
        width: int = 256,
        features: int = 512,
        *,
        heads: int = 8,
        queries: int = 4,
        layers: int = 2,
        ffn: int = 1024,
        dropout: float = 0.1,
        query: str = LEARNED,
        style: Literal["joint", "per_modality"] = "joint",
    ) -> None:
        check_sizes(features, {"queries": queries, "layers": layers, "ffn": ffn, "heads": heads}, query, style)
        if query != LEARNED and query not in modalities:
            raise ValueError(f"query must be {LEARNED!r} or a modality that is shown ({', '.join(modalities)}), got {query!r}")
        super().__init__()
        self.query, self.style = query, style
        self.project = nn.Sequential(nn.Linear(width, features), nn.LayerNorm(features))
        own = queries if query == LEARNED else 0
        readers = modalities if style == "per_modality" else ["all"]
        self.readers = nn.ModuleDict({key(name): Reader(features, heads, own, layers, ffn, dropout) for name in readers})
        joins = nn.Sequential(
            nn.Linear(len(modalities) * features, features), nn.GELU(), nn.Dropout(dropout), nn.Linear(features, features)
        )
        self.join = joins if style == "per_modality" else None

    def forward(self, encoded: Encoded) -> Fused:
        tokens = self.project(encoded.tokens)
        if self.style == "per_modality":
            return self._each(tokens, encoded)
        given = None
        if self.query != LEARNED:
            span = encoded.spans[self.query]
            given = tokens[:, span], encoded.mask[:, span]
        return self.readers[key("all")](tokens, encoded.mask, given)

    def _each(self, tokens: Tensor, encoded: Encoded) -> Fused:
        """The attention within each modality, every one of which has the same share; there are no weights over all tokens."""
        read = [self.readers[key(name)](tokens[:, span], encoded.mask[:, span]) for name, span in encoded.spans.items()]
        features = self.join(torch.cat([one.features for one in read], 2))
        return Fused(features, torch.cat([one.attention for one in read], 1) / len(read))


def check_sizes(features: int, sizes: dict[str, int], query: str, style: str) -> None:
    """Raises ValueError for what does not go together, before any layer is made."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if features % sizes["heads"]:
        raise ValueError(f"features must be a multiple of heads, got {features} and {sizes['heads']}")
    if query != LEARNED and style == "per_modality":
        raise ValueError(f"in the style per_modality queries are learnt, got query {query!r}")


def by_modality(attention: Tensor, encoded: Encoded) -> Tensor:
    """(B, L) attention to tokens, summed over the tokens of each modality: (B, M), rows sum to 1."""
    return torch.stack([attention[:, span].sum(1) for span in encoded.spans.values()], 1)
