"""Scores of many records: as they are, and with only some of their modalities left.

B records, M modalities; a subset of modalities is a mask whose bit m stands for the m-th modality of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch

from stages.datasets.records import Records, RecordSet, batches

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector

ALL_SUBSETS = 5  # up to so many modalities every subset is scored, 31 of them; beyond, one, all but one, and all


def scores(detector: RecordDetector, records: RecordSet, device: torch.device | str = "cpu") -> np.ndarray:
    """(B,) float64; NaN for a record that shows nothing, which a detector of few modalities may meet."""
    found = [_scores(detector, batch.to(device)) for batch in batches(records)]
    return np.concatenate(found) if found else np.empty(0)


def _scores(detector: RecordDetector, batch: Records) -> np.ndarray:
    there = batch.present.any(1)
    if there.all():
        return detector.score(batch).double().cpu().numpy()
    value = np.full(batch.samples, np.nan)
    if there.any():
        value[there.cpu().numpy()] = detector.score(batch.take(there.nonzero()[:, 0].tolist())).double().cpu().numpy()
    return value


def shows(records: RecordSet) -> np.ndarray:
    """(B,) bool: whether a record has any of the modalities that are shown of it."""
    found = [batch.present.any(1).numpy() for batch in batches(records)]
    return np.concatenate(found) if found else np.empty(0, bool)


def subsets(modalities: int) -> list[int]:
    """The masks of the subsets that are scored, fewest modalities first; never the empty one."""
    whole = 2**modalities - 1
    if modalities <= ALL_SUBSETS:
        sizes = range(1, modalities + 1)
        return [sum(1 << member for member in members) for size in sizes for members in combinations(range(modalities), size)]
    return [*(1 << one for one in range(modalities)), *(whole ^ (1 << one) for one in range(modalities)), whole]


def nothing_known(detector: RecordDetector, validation: np.ndarray) -> float:
    """The score of a record of which nothing is known: what the detector itself says of one, or its mean over validation records.

    validation: (n,) scores of those that show something; 0 where there is none of them.
    """
    if detector.nothing is not None:
        return detector.nothing
    return float(validation.mean()) if len(validation) else 0.0


def subset_scores(
    detector: RecordDetector, records: RecordSet, masks: Sequence[int], prior: float, device: torch.device | str = "cpu"
) -> dict[int, np.ndarray]:
    """By mask the scores of all B records with only those modalities left, (B,) float64 each.

    prior: the score of a record that has none of them. A record that lacks a modality anyway is scored once for both subsets, with and without it.
    """
    found = [_of_batch(detector, batch.to(device), masks, prior) for batch in batches(records)]
    return {mask: np.concatenate([one[place] for one in found]) for place, mask in enumerate(masks)} if found else {}


def _of_batch(detector: RecordDetector, batch: Records, masks: Sequence[int], prior: float) -> np.ndarray:
    """(len(masks), B)."""
    fitted = detector.shaped(batch)
    names = list(fitted.tokens)
    held = (fitted.present.cpu().numpy() * (1 << np.arange(len(names)))).sum(1)
    left = np.asarray(masks)[:, None] & held  # (len(masks), B), what each record has of each subset
    value = np.full(left.shape, prior)
    for mask in np.unique(left[left > 0]):
        rows = np.flatnonzero((left == mask).any(0))
        wanted = fitted.take(rows.tolist()).only([name for member, name in enumerate(names) if mask >> member & 1])
        scored = np.zeros(left.shape[1])
        scored[rows] = detector.score(wanted).double().cpu().numpy()
        value = np.where(left == mask, scored, value)
    return value
