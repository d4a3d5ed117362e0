"""StableAdamW: AdamW that shortens the step of a tensor whose gradient its second moment does not know yet.

Wortsman et al., "Stable and low-precision training for large-scale vision-language models", arXiv:2304.13013, algorithm 2, with bias
corrections and with amsgrad (the largest second moment so far) as Dinomaly uses it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class StableAdamW(torch.optim.Optimizer):
    """For each tensor theta with gradient g at step t:

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  v^ <- max(v^, v)
    d = sqrt(v^) / sqrt(1 - b2^t) + eps
    r = max(1, RMS(g / d) / threshold)
    theta <- (1 - lr wd) theta - lr / ((1 - b1^t) r) m / d
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        threshold: float = 1.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "threshold": threshold})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: nn.Parameter, gradient: Tensor, group: dict) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state |= {"step": 0, **{key: torch.zeros_like(parameter) for key in ("mean", "square", "largest_square")}}
        state["step"] += 1
        mean, square, largest = state["mean"], state["square"], state["largest_square"]
        mean.lerp_(gradient, 1 - first)
        square.lerp_(gradient.square(), 1 - second)
        torch.maximum(largest, square, out=largest)
        scale = largest.sqrt().div_((1 - second ** state["step"]) ** 0.5).add_(group["eps"])
        surprise = (gradient / scale).square().mean().sqrt() / group["threshold"]
        rate = group["lr"] / (1 - first ** state["step"]) / surprise.clamp(min=1)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(rate * mean / scale)
