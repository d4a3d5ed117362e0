"""Losses of logits against targets of 0 and 1, of any shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def focal(logits: Tensor, target: Tensor, gamma: float = 4.0) -> Tensor:
    """Mean of (1 - p)^gamma (-log p), p being the probability of the right answer; no weight between the classes.

    Lin et al., arXiv:1708.02002, equation 4. From logits, so that log p is finite for every one.
    """
    wrong = torch.where(target > 0, -logits, logits)  # the logit of the wrong answer
    return (wrong.sigmoid() ** gamma * F.softplus(wrong)).mean()


def truncated_l1(logits: Tensor, target: Tensor, margin: float) -> Tensor:
    """Mean over the normal of max(0, margin + s), plus mean over the anomalous of max(0, margin - s); 0 where there are none."""
    anomalous = (target > 0).to(logits)
    return _mean(F.relu(margin + logits), 1 - anomalous) + _mean(F.relu(margin - logits), anomalous)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)
