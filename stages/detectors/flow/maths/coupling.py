"""The invertible layer that CFLOW, FastFlow and U-Flow share: affine coupling, a learned scale and shift of each channel, a fixed permutation.

A flow maps features x to z = f(x), where f can be undone exactly and log|det df/dx| costs nothing, so that the likelihood of x under
z ~ N(0, 1) is known: log p(x) = log N(z) + log|det df/dx|. The first half of the channels passes and decides how the second half is scaled
and shifted (Dinh et al., RealNVP, arXiv:1605.08803; the shape of this layer is that of the FrEIA library's "all in one" block, whose
formulas were taken, not its code). With x1 of ceil(C/2) and x2 of floor(C/2) channels:

    a_s, a_t = split(0.1 net(x1, condition))    s = clamp tanh(a_s)    y = permute(g * [x1, x2 exp(s) + a_t] + b)
    log|det| = sum of s + positions * sum of log g,    g = 0.1 softplus(gamma, beta=0.5), which starts at 1; b starts at 0

Values are (B, C) vectors or (B, C, h, w) maps; the permutation is a saved buffer, for it is part of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Subnet = Callable[[int, int], nn.Module]  # (channels in, channels out) -> the network of a coupling
Permutation = Literal["hard", "soft"]  # of the channels: an order, or a rotation that mixes all of them
GAMMA_OF_ONE = 2 * math.log(math.exp(5) - 1)  # 0.1 softplus of it, beta 0.5, is 1


class AllInOne(nn.Module):
    """One layer. clamp: the greatest |s|. condition: channels of the second argument of `forward`, which is seen and not changed."""

    def __init__(self, channels: int, subnet: Subnet, *, clamp: float, condition: int = 0, permutation: Permutation = "hard") -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"a coupling splits the channels in two, so it needs at least 2; got {channels}")
        self.passive, self.clamp = channels - channels // 2, clamp
        self.subnet = subnet(self.passive + condition, 2 * (channels - self.passive))
        self.gamma = nn.Parameter(torch.full((channels,), GAMMA_OF_ONE))
        self.shift = nn.Parameter(torch.zeros(channels))
        if permutation == "hard":
            self.register_buffer("order", torch.randperm(channels))  # channel i of the output is channel order[i]
        else:
            self.register_buffer("rotation", random_rotation(channels))  # (C, C)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, C, ...) -> the same shape, and log|det| (B,)."""
        passive, active = x.split([self.passive, x.shape[1] - self.passive], dim=1)
        log_scale, offset = self._coefficients(passive, condition)
        scale = self._scale()
        y = _over_channels(torch.cat([passive, torch.addcmul(offset, active, log_scale.exp())], dim=1), scale, self.shift)
        log_det = log_scale.flatten(1).sum(dim=1) + x[0, 0].numel() * scale.log().sum()
        return self._permuted(y), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The x of which `forward` gives y, and log|det| of this direction (B,)."""
        scale = self._scale()
        x = _over_channels(self._permuted_back(y), 1 / scale, -self.shift / scale)
        passive, active = x.split([self.passive, x.shape[1] - self.passive], dim=1)
        log_scale, offset = self._coefficients(passive, condition)
        log_det = -log_scale.flatten(1).sum(dim=1) - y[0, 0].numel() * scale.log().sum()
        return torch.cat([passive, (active - offset) * (-log_scale).exp()], dim=1), log_det

    def _coefficients(self, passive: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        seen = passive if condition is None else torch.cat([passive, condition], dim=1)
        log_scale, offset = (0.1 * self.subnet(seen)).chunk(2, dim=1)  # a tenth, so that the layer starts near the identity
        return self.clamp * torch.tanh(log_scale), offset

    def _scale(self) -> Tensor:
        return 0.1 * F.softplus(self.gamma, beta=0.5)

    def _permuted(self, values: Tensor) -> Tensor:
        if hasattr(self, "order"):
            return values.index_select(1, self.order)
        return torch.einsum("ij,bj...->bi...", self.rotation, values)

    def _permuted_back(self, values: Tensor) -> Tensor:
        if hasattr(self, "order"):
            return values.index_select(1, self.order.argsort())
        return torch.einsum("ji,bj...->bi...", self.rotation, values)


class Flow(nn.Module):
    """Layers one after another; log|det| adds up."""

    def __init__(self, *layers: AllInOne) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x, condition)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(len(z))
        for layer in reversed(self.layers):
            z, log_det = layer.inverse(z, condition)
            total = total + log_det
        return z, total


def convolutions(kernel: int, hidden_ratio: float) -> Subnet:
    """Convolution, ReLU, convolution, all at the size of the map; `hidden_ratio` x the channels that come in between them."""

    def subnet(channels: int, outputs: int) -> nn.Module:
        hidden = int(channels * hidden_ratio)
        if hidden < 1:
            raise ValueError(f"hidden_ratio {hidden_ratio} of {channels} channels leaves none; raise it above {1 / channels:.3f}")
        first, second = (nn.Conv2d(a, b, kernel, padding="same") for a, b in ((channels, hidden), (hidden, outputs)))
        return nn.Sequential(first, nn.ReLU(), second)

    return subnet


def random_rotation(size: int) -> Tensor:
    """(size, size), uniform over the rotations SO(size): of a Gaussian matrix, the Q whose R has a positive diagonal, with det 1."""
    q, r = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.det(q).sign()
    return q.float()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights and permutations drawn inside depend on `seed` alone, and the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _over_channels(values: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    shape = (-1, *[1] * (values.dim() - 2))
    return torch.addcmul(shift.view(shape), values, scale.view(shape))
