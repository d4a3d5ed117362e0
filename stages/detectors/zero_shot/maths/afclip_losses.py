"""What AF-CLIP descends: a focal loss on images, a focal loss and an absolute error on patches, and that patches of one kind be more alike than
patches of both. Fang et al., arXiv:2507.19949.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GAMMA = 4


def focal(logits: Tensor, anomalous: Tensor) -> Tensor:
    """Mean of -(1 - p)^4 log p of the right answer, both answers weighing the same. logits: (..., 2) good, bad. anomalous: (...) bool."""
    log = logits.log_softmax(dim=-1).gather(-1, anomalous[..., None].long())
    return -((1 - log.exp()) ** GAMMA * log).mean()


def map_loss(logits: Tensor, marked: Tensor) -> Tensor:
    """Focal loss and mean absolute error on the grid of patches. logits: (B, N, 2). marked: (B, N) bool."""
    return focal(logits, marked) + (logits.softmax(dim=-1)[..., 1] - marked.float()).abs().mean()


def patch_alignment(vectors: Tensor, marked: Tensor) -> Tensor:
    """By how much the cosine of unlike patches exceeds that of like ones, at least 0. vectors: (B, N, D) of length 1. marked: (B, N) bool.

    Means over ordered pairs of one image, a patch with itself included, pooled over the batch. Sums of both kinds are enough: no B x N x N matrix is
    made. Without a pair of unlike patches there is nothing to tell apart, and the loss is 0.
    """
    kinds = torch.stack([marked, ~marked]).to(vectors)
    sums = torch.einsum("kbn,bnd->kbd", kinds, vectors)
    bad, good = kinds.sum(dim=2).double()
    pairs = float(2 * (bad * good).sum())
    if not pairs:
        return vectors.new_zeros(())
    unlike = 2 * (sums[0] * sums[1]).sum() / pairs
    like = sums.square().sum() / float((bad.square() + good.square()).sum())
    return F.relu(unlike - like)


def on_grid(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H, W) bool to (B, h*w) bool: shrunk bilinearly, set above a half. Nothing is enlarged."""
    return F.interpolate(masks[:, None].float(), grid, mode="bilinear", align_corners=False)[:, 0].flatten(1) > 0.5
