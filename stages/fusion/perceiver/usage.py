"""Whether experts are used, and what their choice depends on.

B records, N latents, M modalities, E experts.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def summary(gates: Tensor, present: Tensor, modalities: list[str], label: Tensor) -> dict[str, Any]:
    """Per layer: how often each expert is the first choice of a latent, its mean gate, the entropy of the first over log E (1: all alike, 0: one takes all),
    and how many nats the first choice tells of each modality's presence and of the class.

    gates: (layers, B, N, E); present: (B, M) bool; label: (B,), below 0 where unknown. Information is estimated from counts, which overstates it by about
    (E - 1) / (2 B N) nats and more where latents of a record agree; what never changes has none.
    """
    layers = []
    for gate in gates:
        first = gate.argmax(2)  # (B, N)
        share = torch.bincount(first.flatten(), minlength=gate.shape[2]).double() / first.numel()
        known = label >= 0
        told = {name: information(first, present[:, number].long()) for number, name in enumerate(modalities)}
        layers.append(
            {
                "first_choice": share.tolist(),
                "mean_gate": gate.double().mean((0, 1)).tolist(),
                "entropy": entropy(share) / math.log(len(share)) if len(share) > 1 else 0.0,
                "information": {"present": told, "class": information(first[known], label[known].long())},
            }
        )
    return {"experts": gates.shape[3], "layers": layers}


def entropy(share: Tensor) -> float:
    """In nats, of probabilities (E,)."""
    return float(-torch.special.xlogy(share, share).sum())


def information(first: Tensor, trait: Tensor) -> float:
    """Mutual information, in nats, of the chosen expert of each latent, (B, N), and a trait of its record, (B,), both whole numbers from 0."""
    if not first.numel():
        return 0.0
    kinds = int(trait.max()) + 1
    joint = torch.bincount((first * kinds + trait[:, None]).flatten(), minlength=(int(first.max()) + 1) * kinds)
    share = joint.view(-1, kinds).double() / first.numel()
    return max(entropy(share.sum(0)) + entropy(share.sum(1)) - entropy(share.flatten()), 0.0)
