"""Two autoencoders of tokens, and how they are trained: along time for sound, token by token for film.

Both take tokens that are standardised by what they learnt from. B records, N tokens of all, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from stages.datasets.records import Ragged
from stages.fusion.deep.maths.ragged import beside
from stages.types import Resizing

FLOOR = 1e-6  # a column that varies less is left in its own units


class Standardised(Resizing):
    """Columns in deviations from their mean over the tokens of training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def learn(self, values: Tensor) -> None:
        """values: (N, D) of training."""
        deviation = values.double().std(dim=0, correction=0)
        self.centre.copy_(values.double().mean(dim=0))
        self.scale.copy_(torch.where(deviation > FLOOR, deviation, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        return (values - self.centre) / self.scale


class TimeConvolution(nn.Module):
    """Batch normalisation over tokens, then a convolution of three tokens of one record. (N, D) to (N, out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm, self.mix = nn.BatchNorm1d(width), nn.Linear(3 * width, out)

    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        return self.mix(beside(self._normed(values), offsets))

    def _normed(self, values: Tensor) -> Tensor:
        """One token alone has no deviation: it is seen as when judging."""
        if len(values) > 1 or not self.training:
            return self.norm(values)
        norm = self.norm
        return batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps)


class TimeAutoencoder(nn.Module):
    """Three convolutions of one width, one to the code, and back the same way; LeakyReLU between, PReLU last."""

    def __init__(self, width: int, hidden: int, code: int) -> None:
        super().__init__()
        self.standardised = Standardised(width)
        sizes = [width, hidden, hidden, hidden, code, hidden, hidden, hidden, width]
        self.layers = nn.ModuleList(TimeConvolution(one, other) for one, other in pairwise(sizes))
        self.between, self.last = nn.LeakyReLU(0.2), nn.PReLU(width)

    def forward(self, tokens: Ragged) -> Tensor:
        """(N,): the mean squared error of each token."""
        values = seen = self.standardised(tokens.values)
        for layer in self.layers[:-1]:
            values = self.between(layer(values, tokens.offsets))
        return (self.last(self.layers[-1](values, tokens.offsets)) - seen).square().mean(dim=1)


class TokenAutoencoder(nn.Module):
    """Fully connected, each token by itself; the widths lead to the code, which is the last of them, and back; ReLU and dropout between."""

    def __init__(self, width: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.standardised = Standardised(width)
        sizes = [width, *widths, *reversed(widths[:-1])]
        hidden = [part for one, other in pairwise(sizes) for part in (nn.Linear(one, other), nn.ReLU(), nn.Dropout(dropout))]
        self.layers = nn.Sequential(*hidden, nn.Linear(sizes[-1], width))

    def forward(self, tokens: Ragged) -> Tensor:
        """(N,): the mean squared error of each token."""
        seen = self.standardised(tokens.values)
        return (self.layers(seen) - seen).square().mean(dim=1)


def one_cycle(step: int, total: int) -> float:
    """Share of the greatest learning rate: up from 1/25 over the first 30 % of the steps, down to 1/250,000, both along a cosine (arXiv:1708.07120)."""
    rise = max(0.3 * total - 1, 1)
    if step <= rise:
        return _between(1 / 25, 1.0, step / rise)
    return _between(1.0, 1 / 250_000, min((step - rise) / max(total - 1 - rise, 1), 1.0))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
