"""The Perceiver written out for exporters: padded tokens instead of rows, and every expert asked for every latent, as no shape may depend on what is routed.

It computes what trunk.py, tokens.py and experts.py do in evaluation mode. The head for the auxiliary loss and what is only looked at are left out.

B records, N latents, L tokens, M modalities, E experts, D width, P presence, H hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stages.datasets.records import key
from stages.fusion.deep.maths.encoder import Padded, time_code
from stages.fusion.deep.maths.graph import Attending, linear
from stages.fusion.perceiver.experts import Dense, Mixture, Router
from stages.fusion.perceiver.tokens import FURTHEST, Adapter, Tokeniser
from stages.fusion.perceiver.trunk import Attention, Block, Network


class WrittenNetwork(nn.Module):
    """lengths: of each modality its L, at most as many tokens as are read."""

    def __init__(self, network: Network, lengths: Mapping[str, int]) -> None:
        super().__init__()
        network = copy.deepcopy(network).cpu()
        self.tokens, self.latents, self.asks = WrittenTokens(network.tokeniser, lengths), network.latents, network.asks
        self.presence = nn.Parameter(torch.stack([network.presence[key(name)].detach() for name in network.tokeniser.names]))  # (M, P)
        self.blocks, self.rounds = nn.ModuleList(map(WrittenBlock, network.blocks)), network.shape.blocks
        self.norm, self.pool, self.head = network.pooled_norm, _attending(network.pool), network.head

    def forward(self, tokens: Mapping[str, Padded]) -> tuple[Tensor, Tensor]:
        """The logit (B,) and what it is read off (B, D)."""
        values, mask, present = self.tokens(tokens)
        known = present.to(values.dtype) @ self.presence
        latents = torch.where(mask[:, :1, None], self.latents, self.latents)  # (B, N, D), by broadcasting alone
        for number in range(self.rounds):
            latents = self.blocks[min(number, len(self.blocks) - 1)](latents, values, mask, known)
        asks = torch.where(mask[:, :1, None], self.asks, self.asks)
        pooled = self.pool(asks, self.norm(latents))[0][:, 0]
        return self.head(pooled)[:, 0], pooled


class WrittenTokens(nn.Module):
    """Of each modality its tokens, or the sign that it is absent in the first place."""

    def __init__(self, tokeniser: Tokeniser, lengths: Mapping[str, int]) -> None:
        super().__init__()
        self.tokeniser = tokeniser
        last = tokeniser.position.num_embeddings - 1
        self.steps = {name: torch.arange(lengths[name]).clamp(max=last) for name in tokeniser.names}

    def forward(self, tokens: Mapping[str, Padded]) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, L, D), mask (B, L) bool and presence (B, M) bool."""
        parts = zip(*(self._part(name, tokens[name]) for name in self.tokeniser.names), strict=True)
        values, masks, present = parts
        return torch.cat(values, 1), torch.cat(masks, 1), torch.stack(present, 1)

    def _part(self, name: str, given: Padded) -> tuple[Tensor, Tensor, Tensor]:
        own, length = self.tokeniser, len(self.steps[name])
        present = given.mask.any(1)
        values = _adapted(own.adapters[key(name)], given.values) + own.time(time_code(given.time)) + own.position(self.steps[name])
        values = torch.where(present[:, None, None], values, own.absent[key(name)]) + own.embedding[key(name)]
        first = torch.arange(length) == 0
        return values, given.mask | (first & ~present[:, None]), present


class WrittenBlock(nn.Module):
    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norms, self.reads, self.within = block.norms, _attending(block.reads), _attending(block.within)
        self.feed = block.feed if isinstance(block.feed, Dense) else Everyone(block.feed)

    def forward(self, latents: Tensor, tokens: Tensor, mask: Tensor, known: Tensor) -> Tensor:
        """latents: (B, N, D); tokens: (B, L, D); mask: (B, L); known: (B, P), of the modalities that are there."""
        latents = latents + self.reads(self.norms["latents"](latents), self.norms["tokens"](tokens), mask)[0]
        normed = self.norms["within"](latents)
        latents = latents + self.within(normed, normed)[0]
        rows = self.norms["feed"](latents)
        return latents + (self.feed.layers(rows) if isinstance(self.feed, Dense) else self.feed(rows, known))


class Everyone(nn.Module):
    """A mixture whose experts are all asked; those that were not chosen count 0."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        own, self.router = mixture.experts, mixture.router
        weights = zip(
            own.first.detach().mT, own.first_bias.detach()[:, 0], own.second.detach().mT, own.second_bias.detach()[:, 0], strict=True
        )
        self.experts = nn.ModuleList(
            nn.Sequential(linear(first, one), nn.GELU(), linear(second, other)) for first, one, second, other in weights
        )

    def forward(self, rows: Tensor, known: Tensor) -> Tensor:
        """rows: (B, N, D); known: (B, P). Returns (B, N, D)."""
        told = torch.stack([expert(rows) for expert in self.experts], 1)  # (B, E, N, D)
        if self.router is None:
            return told.mean(1)
        gates = _gates(self.router, torch.cat([rows, known[:, None] + 0 * rows[:, :, :1]], 2))
        return (told * gates.transpose(1, 2)[..., None]).sum(1)


def _adapted(adapter: Adapter, values: Tensor) -> Tensor:
    """(B, L, D): what `Adapter` gives of each token, without a shape that holds B."""
    standard = ((values - adapter.centre) / adapter.scale).clamp(-FURTHEST, FURTHEST)
    size = (standard.square().mean(2, keepdim=True) + 1e-6).log() / 2
    return adapter.linear(torch.cat([adapter.norm(standard), size], 2))


def _gates(router: Router, rows: Tensor) -> Tensor:
    """(B, N, E) of (B, N, D + P): what `Router` gives of each row."""
    if router.gate == "laplace":
        logits = router.linear.bias - (rows[:, :, None] - router.linear.weight).square().sum(3).sqrt()
    else:
        logits = router.linear(rows)
    share = logits.sigmoid() if router.gate == "sigmoid" else logits.softmax(2)
    best, chosen = share.topk(router.top_k, 2)
    return (0 * share).scatter(2, chosen, best / best.sum(2, keepdim=True))


def _attending(written: Attention) -> Attending:
    parts = zip(written.key_value.weight.detach().chunk(2), written.key_value.bias.detach().chunk(2), strict=True)
    return Attending(written.heads, written.query, *(linear(weight, bias) for weight, bias in parts), written.out)
