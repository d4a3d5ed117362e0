"""Convex weights of several scores, chosen on held-out records from all of a grid.

B records, M modalities, G weightings.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.metrics.ranking import auroc

FINEST = 20  # steps from 0 to 1: .05
MOST = 20_000  # weightings; with more modalities the steps are coarser


def grid(members: int) -> Tensor:
    """(G, M) float64: all weights that are multiples of a step and sum to 1; the step is .05 up to five members."""
    steps = FINEST
    while steps > 1 and math.comb(steps + members - 1, members - 1) > MOST:
        steps -= 1
    count = math.comb(steps + members - 1, members - 1)
    bars = np.array(list(itertools.combinations(range(steps + members - 1), members - 1)), dtype=np.int64).reshape(count, members - 1)
    edges = np.concatenate([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), steps + members - 1)], 1)
    return torch.from_numpy((np.diff(edges, axis=1) - 1) / steps)


def weighted(scores: Tensor, present: Tensor, weight: Tensor) -> Tensor:
    """(B,): the mean of what is there. scores: (B, M); present: (B, M) bool; weight: (M,).

    Weights are scaled to sum to 1 over what a record has; where all of that has weight 0 it counts alike.
    """
    return (shares(present, weight) * scores).sum(1)


def shares(present: Tensor, weight: Tensor) -> Tensor:
    """(B, M): the weights of `weighted`, rows sum to 1."""
    held = weight * present
    held = torch.where(held.sum(1, keepdim=True) > 0, held, present.to(weight.dtype))
    return held / held.sum(1, keepdim=True).clamp(min=1e-12)


def best(logits: Tensor, present: Tensor, label: Tensor) -> Tensor:
    """(M,) float64: the weights of the grid with the highest AUROC, of those the one with the least negative log-likelihood.

    logits: (B, M), calibrated; present: (B, M) bool, every record has something; label: (B,) of both kinds.
    """
    logits, target = logits.double(), label.double()
    found = []
    for weight in grid(logits.shape[1]):
        fused = weighted(logits, present, weight)
        loss = functional.binary_cross_entropy_with_logits(fused, target)
        found.append((-round(auroc(fused.numpy(), label.numpy()), 12), float(loss), weight))
    return min(found, key=lambda one: one[:2])[2]
