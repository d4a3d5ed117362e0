"""Where in a picture, a film or a spectrogram a convolutional network looks for what it says.

Selvaraju et al., "Grad-CAM", arXiv:1610.02391: the channels of one layer, each weighed by the mean gradient of the answer over its places, summed; what speaks
against the answer is cut off.

B inputs, C channels, places of any number of axes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def grad_cam(module: nn.Module, layer: nn.Module, given: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, *places) of the layer, 0 or more, in units of the answer; frozen modules too.

    layer: one of the module's, whose output is (B, C, *places). answer: from the module's output to (B,), say one class's logit; each must depend on its
    own input alone. Raises ValueError where the layer was not used or has no places.
    """
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = layer.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            found = answer(module(given))
    finally:
        handle.remove()
    if len(kept) != 1 or kept[0].ndim < 3:
        seen = f"output of {tuple(kept[0].shape)}" if kept else "no output"
        raise ValueError(f"Grad-CAM needs a layer that is used once and gives (inputs, channels, places), got {seen} in {len(kept)} uses")
    if not found.requires_grad:
        raise ValueError("the answer does not depend on the layer by a gradient; the module must not run without one")
    (gradient,) = torch.autograd.grad(found.sum(), kept[0])
    places = tuple(range(2, kept[0].ndim))
    return (gradient.mean(places, keepdim=True) * kept[0].detach()).sum(1).clamp(min=0)
