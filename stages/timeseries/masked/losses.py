"""What the masked autoencoder descends: redraw the hidden patches, imitate the teacher on normal ones, and leave it on anomalous ones.

The push away from the teacher is not in the paper (arXiv:2306.12041), whose discrepancy comes from the student's capacity alone; it needs labels, so
only the regime `weak` has it.

B batch, N patches, T steps, V variables. Errors are in squared standard deviations of the training data.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.timeseries.masked.network import MAEOutput

MarginType = Literal["hinge", "softplus", "dynamic", "none"]
ENOUGH = 16  # masked normal patches, to measure the dynamic margin in one batch
DECAY = 0.99  # of the running measure that stands in for a smaller batch


class Terms(NamedTuple):
    """Scalars, before they are weighted."""

    reconstruction: Tensor
    distillation: Tensor
    push: Tensor


class Losses(nn.Module):
    """The three terms of a batch. What it remembers from step to step, for the dynamic margin, are buffers, so that a training resumes."""

    def __init__(
        self, margin_type: MarginType = "hinge", margin: float = 0.5, dynamic_k: float = 3.0, patch_level: bool = True, trim: float = 0.0
    ) -> None:
        """trim: the share of masked patches, those with the highest loss of a batch, that is left out: contamination is never redrawn well."""
        super().__init__()
        if not 0 <= trim < 1:
            raise ValueError(f"trim must be in 0..1 (share of masked patches left out; 1 leaves none), got {trim}")
        self.margin_type, self.margin, self.dynamic_k, self.patch_level, self.trim = margin_type, margin, dynamic_k, patch_level, trim
        self.register_buffer("running", torch.tensor([0.0, 0.0]))  # mean and deviation of the discrepancy of normal patches

    def forward(self, output: MAEOutput, target: Tensor, mask: Tensor, anomalous: Tensor) -> Terms:
        """target: (B, T, V). mask: (B, N) or (B, N, V) bool, what the loss is taken on. anomalous: (B, N) bool, all False where labels are unseen."""
        redrawn, weight = patch_means((output.teacher - target).square(), mask)
        discrepancy, _ = patch_means((output.teacher.detach() - output.student).square(), mask)
        normal = weight * ~anomalous
        reconstruction = _weighted_mean(redrawn, self._trimmed(redrawn.detach(), normal))
        if not self.patch_level:
            discrepancy, normal, weight = _per_window(discrepancy, weight, anomalous)
        distillation = _weighted_mean(discrepancy, normal)
        return Terms(reconstruction, distillation, self._push(discrepancy, normal, weight - normal))

    def _trimmed(self, error: Tensor, weight: Tensor) -> Tensor:
        counted = weight > 0
        if self.trim == 0 or not counted.any():
            return weight
        return weight * (error <= error[counted].quantile(1 - self.trim))

    def _push(self, discrepancy: Tensor, normal: Tensor, anomalous: Tensor) -> Tensor:
        if self.margin_type == "none":
            return discrepancy.new_zeros(())
        margin = self._dynamic(discrepancy.detach()[normal > 0]) if self.margin_type == "dynamic" else self.margin
        short = margin - discrepancy
        return _weighted_mean(F.softplus(short) if self.margin_type == "softplus" else F.relu(short), anomalous)

    def _dynamic(self, normal: Tensor) -> Tensor:
        """mean + k deviations of the discrepancy on normal patches: of this batch, or of those before where it has too few."""
        if len(normal) >= ENOUGH:
            measured = torch.stack([normal.mean(), normal.std()])
            if self.training:
                started = bool(self.running.any())
                self.running.copy_(DECAY * self.running + (1 - DECAY) * measured if started else measured)
        else:
            measured = self.running
        return measured[0] + self.dynamic_k * measured[1]


def patch_means(error: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, V) errors to the mean over what is masked of each patch, (B, N), and the share of each patch that is masked."""
    by_patch = error.unflatten(1, (mask.shape[1], -1)).mean(2)  # (B, N, V)
    if mask.ndim == 2:
        return by_patch.mean(2), mask.to(error)
    hidden = mask.to(error)
    return (by_patch * hidden).sum(2) / hidden.sum(2).clamp(min=1), hidden.mean(2)


def _per_window(discrepancy: Tensor, weight: Tensor, anomalous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = (discrepancy * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
    normal = ~(anomalous & (weight > 0)).any(1)
    return mean, normal.to(mean), torch.ones_like(mean)


def _weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """0 where nothing counts."""
    return (value * weight).sum() / weight.sum().clamp(min=1e-6)
