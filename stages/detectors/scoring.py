"""A fitted detector over all batches of one split, as arrays that metrics and plots take."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from stages.detectors.prediction import predictions
from stages.metrics.judgement import Scored
from stages.types import Batches, Detector


def score_split(detector: Detector, batches: Batches, map_size: int) -> Scored:
    """Image scores, and maps and masks at `map_size`: maps resized bilinearly, masks by nearest neighbour."""
    scores, labels, sample_ids, maps, masks = [], [], [], [], []
    for batch, prediction in predictions(detector, batches):
        scores.append(prediction.image_score.cpu().numpy())
        labels.append(batch.label.numpy())
        sample_ids += batch.sample_id
        if prediction.anomaly_map is not None:
            maps.append(_resized(prediction.anomaly_map[:, None], map_size, "bilinear")[:, 0].cpu().numpy())
        if batch.mask is not None:
            masks.append(_resized(batch.mask[:, None].float(), map_size, "nearest-exact")[:, 0].bool().numpy())
    return Scored(
        sample_ids,
        np.concatenate(labels) if labels else np.empty(0, dtype=np.int64),
        np.concatenate(scores) if scores else np.empty(0, dtype=np.float32),
        np.concatenate(maps) if maps else None,
        np.concatenate(masks) if masks else None,
    )


def _resized(images: Tensor, size: int, mode: str) -> Tensor:
    """(B, C, H, W) to (B, C, size, size)."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode=mode, align_corners=False if mode == "bilinear" else None)
