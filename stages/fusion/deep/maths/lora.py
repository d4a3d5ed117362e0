"""Low-rank adapters: a frozen linear layer W learns a correction of rank r, so that a large network is fitted with few parameters.

Hu et al., LoRA, arXiv:2106.09685: W x becomes W x + (alpha / r) B A x, A (r, in) drawn, B (out, r) zero at the start, so that a network with fresh adapters
is the network without them. Its section 4.2 adapts the query and value projections of attention alone; so does this by default.

Deviations: no dropout before A. A is drawn uniformly within +-1 / sqrt(in), which is what the authors' code does and not the Gaussian of their text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from stages.errors import UserError
from stages.seed import torch_generator

QUERY_VALUE = ("query", "value", "q_proj", "v_proj")  # as the networks of transformers, and the built-in ones, call them


class NoSuchLayer(UserError, ValueError):
    """There is nothing in a network that an adapter could be put on, or adapters do not fit it."""


class LowRank(nn.Module):
    """A linear layer and its correction. The layer itself is frozen; `merged` says whether the correction is inside its weight."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        if not 1 <= rank <= min(layer.in_features, layer.out_features):
            raise ValueError(f"rank must be in 1..{min(layer.in_features, layer.out_features)} for this layer, got {rank}")
        place = layer.weight.device
        bound = 1 / math.sqrt(layer.in_features)
        drawn = torch.empty(rank, layer.in_features, device="cpu").uniform_(-bound, bound, generator=generator)
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(drawn.to(place))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank, device=place))
        self.scale, self.merged = alpha / rank, False

    def forward(self, values: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if self.merged:
            return self.layer(values)
        return self.layer(values) + self.scale * nn.functional.linear(nn.functional.linear(values, self.down), self.up)

    @property
    def weight(self) -> Tensor:
        """(out, in) what the layer is together with its correction; some networks look at it."""
        return self.layer.weight if self.merged else self.layer.weight + self.correction

    @property
    def correction(self) -> Tensor:
        """(out, in)."""
        return self.scale * self.up @ self.down

    @torch.no_grad()
    def merge(self) -> None:
        if not self.merged:
            self.layer.weight += self.correction
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            self.layer.weight -= self.correction
            self.merged = False


def inject(network: nn.Module, rank: int = 8, alpha: float = 16.0, names: Sequence[str] = QUERY_VALUE, seed: int = 0) -> list[str]:
    """Put an adapter on every linear layer whose own name is among `names`; returns where. Freezes nothing but these layers.

    Raises NoSuchLayer where there is none.
    """
    layers = {place: layer for place, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    chosen = [place for place in layers if place.rpartition(".")[2] in names]
    if not chosen:
        known = ", ".join(sorted({place.rpartition(".")[2] for place in layers})) or "none"
        raise NoSuchLayer(f"{type(network).__name__} has no linear layer called {' or '.join(names)}; its linear layers are called: {known}")
    for place in chosen:
        parent, _, own = place.rpartition(".")
        setattr(network.get_submodule(parent), own, LowRank(layers[place], rank, alpha, torch_generator(seed, "adapter", place)))
    return chosen


def adapters(network: nn.Module) -> Iterator[tuple[str, LowRank]]:
    return ((place, layer) for place, layer in network.named_modules() if isinstance(layer, LowRank))


def merge(network: nn.Module) -> None:
    """Move every correction into its layer: the same function at the cost of the bare network."""
    for _, layer in adapters(network):
        layer.merge()


def unmerge(network: nn.Module) -> None:
    for _, layer in adapters(network):
        layer.unmerge()


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """The corrections alone, "<layer>.down" (r, in) and "<layer>.up" (out, r): what has to be kept of a fine-tuning."""
    return {f"{place}.{half}": getattr(layer, half).detach().clone() for place, layer in adapters(network) for half in ("down", "up")}


@torch.no_grad()
def load_adapters(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a network with adapters of the same places and rank these corrections. Raises NoSuchLayer where they are not of this network."""
    own = {f"{place}.{half}": getattr(layer, half) for place, layer in adapters(network) for half in ("down", "up")}
    wrong = sorted(set(own) ^ set(state)) or [key for key in own if own[key].shape != state[key].shape]
    if wrong:
        raise NoSuchLayer(f"these adapters are not of this network: {len(wrong)} tensors differ in name or shape, the first is {wrong[0]}")
    if any(layer.merged for _, layer in adapters(network)):
        raise NoSuchLayer("the adapters of this network are merged; unmerge them before others are loaded")
    for key, value in state.items():
        own[key].copy_(value)
