"""Made-up anomalies for the regime `synth-erase`: the network sees a corrupted window and is asked for the clean one. No label is needed for it.

B batch, T steps, V variables; values are in standard deviations.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEAKEST, STRONGEST = 0.3, 3.0  # deviations


def corrupted(window: Tensor, share: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The window with a level, a ramp, a wave or a freeze added in one span of some variables, in `share` of the samples; (B, T) bool where.

    window: (B, T, V).
    """
    batch, steps, variables = window.shape

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator).to(window.device)

    length = (3 * (steps / 6) ** uniform(batch)).long()  # 3 steps to half the window, short ones more often
    start = (uniform(batch) * (steps - length + 1)).long()
    within = torch.arange(steps, device=window.device) - start[:, None]
    touched = (within >= 0) & (within < length[:, None]) & (uniform(batch) < share)[:, None]
    phase = (within + 1).clamp(min=0) / length[:, None]  # 0 .. 1 in the span
    forms = torch.stack([torch.ones_like(phase), phase, (1 - torch.cos(6 * torch.pi * phase)) / 2, torch.zeros_like(phase)])
    form = (uniform(batch) * 4).long()
    chosen = uniform(batch, variables) < 0.2 + 0.6 * uniform(batch, 1)
    sign = torch.where(uniform(batch, variables) < 0.5, -1.0, 1.0)
    strength = sign * WEAKEST * (STRONGEST / WEAKEST) ** uniform(batch, variables) * chosen
    shape = forms[form, torch.arange(batch, device=window.device)]
    added = window + shape[..., None] * strength[:, None]
    frozen = window.gather(1, start[:, None, None].expand(-1, steps, variables))
    changed = torch.where((form == 3)[:, None, None] & chosen[:, None], frozen, added)
    return torch.where(touched[..., None], changed, window), touched
