"""A feed-forward layer of several experts, of which a router asks the best few for each latent.

The router sees the latent and which modalities the record has. Gates are the router's probabilities over the chosen experts, made to sum to one. Only
chosen rows are computed: they are sorted by expert, each expert sees its own, and the results are added back where they came from.

Papers: Shazeer et al., "Outrageously Large Neural Networks" (arXiv:1701.06538), top-k gates; Fedus et al., "Switch Transformers" (arXiv:2101.03961), load
balance; Zoph et al., "ST-MoE" (arXiv:2202.08906), z-loss; Han et al., "FuseMoE" (arXiv:2402.03226), the Laplace gate. Deviations:
- No capacity limit: no row is dropped, as there are few.
- No noise on the router's logits but a jitter of its input by 1 % in training, as in Switch.
- The router sees the presence of modalities; in FuseMoE each modality has a router of its own.
- What is routed are latents. They are never padding, so the statistics of the router need no mask.

R rows (latents of all records), D width, E experts, K chosen, H hidden.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Gate = Literal["softmax", "laplace", "sigmoid"]
JITTER = 0.01


class Routing(NamedTuple):
    logits: Tensor  # (R, E)
    probabilities: Tensor  # (R, E), rows sum to 1
    gates: Tensor  # (R, E), rows sum to 1, K of them not zero
    chosen: Tensor  # (R, K) int64, the best first


class Router(nn.Module):
    """Of rows (R, D) the experts that they go to. gate: how a logit becomes a probability; "laplace": the logit is a distance, negated."""

    def __init__(self, width: int, experts: int, top_k: int, gate: Gate) -> None:
        super().__init__()
        self.linear, self.top_k, self.gate = nn.Linear(width, experts), top_k, gate

    def forward(self, rows: Tensor) -> Routing:
        if self.training:
            rows = rows * (1 + JITTER * (2 * torch.rand_like(rows) - 1))
        logits = -torch.cdist(rows, self.linear.weight) + self.linear.bias if self.gate == "laplace" else self.linear(rows)
        share = logits.sigmoid() if self.gate == "sigmoid" else logits.softmax(1)
        best, chosen = share.topk(self.top_k, 1)
        gates = torch.zeros_like(share).scatter(1, chosen, best / best.sum(1, keepdim=True))
        return Routing(logits, share / share.sum(1, keepdim=True), gates, chosen)


class Experts(nn.Module):
    """E two-layer networks D -> H -> D with GELU."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.first = nn.Parameter(_uniform(experts, width, hidden, fan_in=width))
        self.first_bias = nn.Parameter(_uniform(experts, 1, hidden, fan_in=width))
        self.second = nn.Parameter(_uniform(experts, hidden, width, fan_in=hidden))
        self.second_bias = nn.Parameter(_uniform(experts, 1, width, fan_in=hidden))

    def forward(self, rows: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """rows: (R, D), gates: (R, E), chosen: (R, K), as of the router. Returns (R, D)."""
        ranked, place = chosen.flatten().sort(stable=True)
        source = place // chosen.shape[1]
        counts = torch.bincount(ranked, minlength=len(self.first)).tolist()
        parts = rows.index_select(0, source).split(counts)
        found = torch.cat([self._one(expert, part) for expert, part in enumerate(parts)])
        return torch.zeros_like(rows).index_add(0, source, found * gates[source, ranked][:, None])

    def all(self, rows: Tensor, gates: Tensor) -> Tensor:
        """The same with every expert asked for every row: of fixed shape, for gates that choose all, and to check by."""
        hidden = functional.gelu(rows @ self.first + self.first_bias)  # (E, R, H)
        return ((hidden @ self.second + self.second_bias) * gates.T[..., None]).sum(0)

    def _one(self, expert: int, rows: Tensor) -> Tensor:
        hidden = functional.gelu(torch.addmm(self.first_bias[expert], rows, self.first[expert]))
        return torch.addmm(self.second_bias[expert], hidden, self.second[expert])


class Mixture(nn.Module):
    """The feed-forward layer: router and experts. uniform: every expert counts the same for every row, and there is no router."""

    def __init__(self, width: int, presence: int, hidden: int, experts: int, top_k: int, gate: Gate, uniform: bool) -> None:
        super().__init__()
        self.router = None if uniform else Router(width + presence, experts, top_k, gate)
        self.experts, self.count = Experts(width, hidden, experts), experts

    def forward(self, rows: Tensor, presence: Tensor) -> tuple[Tensor, Routing | None, Tensor]:
        """rows: (R, D); presence: (R, P), what is known of each row's record. Returns (R, D), the routing, and the gates (R, E)."""
        if self.router is None:
            gates = rows.new_full((len(rows), self.count), 1 / self.count)
            return self.experts.all(rows, gates), None, gates
        routing = self.router(torch.cat([rows, presence], 1))
        if torch.compiler.is_exporting():
            return self.experts.all(rows, routing.gates), routing, routing.gates
        return self.experts(rows, routing.gates, routing.chosen), routing, routing.gates


class Dense(nn.Module):
    """The feed-forward layer without experts, of the interface of `Mixture`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, rows: Tensor, presence: Tensor) -> tuple[Tensor, None, Tensor]:
        return self.layers(rows), None, rows.new_empty(len(rows), 0)


def equal_hidden(width: int, presence: int, hidden: int, experts: int, used: int) -> int:
    """The hidden width at which `Dense` has as many parameters as a router and `used` of its experts."""
    router = (width + presence + 1) * experts
    one = 2 * width * hidden + hidden + width
    return max(round((router + used * one - width) / (2 * width + 1)), 1)


def balance_loss(routing: Routing) -> Tensor:
    """Switch, equation 4: E * sum of (share of rows whose first choice is j) * (mean probability of j); 1 where all are used alike."""
    experts = routing.logits.shape[1]
    used = torch.bincount(routing.chosen[:, 0], minlength=experts) / len(routing.chosen)
    return experts * (used * routing.probabilities.mean(0)).sum()


def z_loss(routing: Routing) -> Tensor:
    """ST-MoE, equation 5: mean squared logarithm of the sum of exponentials of the router's logits."""
    return routing.logits.logsumexp(1).square().mean()


def _uniform(*shape: int, fan_in: int) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(*shape).uniform_(-bound, bound)
