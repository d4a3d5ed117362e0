"""Which class a detector says each record is of, and which its nearest neighbours in training are of.

S seeds, N records, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from stages.datasets.records import NORMAL, RecordSet, batches
from stages.fusion.detector import class_of
from stages.fusion.scoring import shows
from stages.metrics.classes import nearest_class
from stages.metrics.inputs import check_finite
from stages.metrics.record_classes import Told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stages.fusion.detector import RecordDetector

NEIGHBOURS = 5
UNNAMED = "not named"  # the class of anomalous records of which nobody said what is wrong with them


def tells(detector: RecordDetector) -> bool:
    """Whether there is a class to tell: it learnt of more than one."""
    return detector.telling and len(detector.classes) > 1


def told(
    detectors: Sequence[RecordDetector], train: RecordSet, splits: Mapping[str, RecordSet], device: torch.device | str = "cpu"
) -> dict[str, Told]:
    """By split what the detectors, one a seed, say of its records. Their neighbours are sought among the records that were learnt from.

    A record that shows a detector nothing is of each class with the share that the class has of training.
    """
    known = detectors[0].classes
    bank_class = class_of(train, known).numpy()
    kept = np.flatnonzero(bank_class >= 0)
    share = np.log(np.bincount(bank_class[kept], minlength=len(known)) / max(len(kept), 1) + 1e-12)
    banks = [classified(detector, train.kept(kept.tolist()), device) for detector in detectors]
    found = {}
    for split, records in splits.items():
        own = names_of(records)
        names = [*known, *sorted(set(own) - set(known))]
        each = [
            _told(detector, bank, bank_class[kept][stored], records, share, device)
            for detector, (stored, _, bank) in zip(detectors, banks, strict=True)
        ]
        place = np.array([names.index(name) for name in own], dtype=np.int64)
        found[split] = Told(np.stack([one for one, _ in each]), np.stack([one for _, one in each]), place, names)
    return found


def names_of(records: RecordSet) -> list[str]:
    """The class of each record by name, "normal" or its kind of fault."""
    kinds = list(records.fault) or [""] * records.samples
    return [NORMAL if label == 0 else kind or UNNAMED for kind, label in zip(kinds, records.label.tolist(), strict=True)]


def classified(detector: RecordDetector, records: RecordSet, device: torch.device | str = "cpu") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which records show the detector anything, (N,) bool, and of those n the logits, (n, C), and the features, (n, F), float64."""
    there = shows(records)
    seen = records.kept(np.flatnonzero(there).tolist())
    found = [detector.classify(batch.to(device)) for batch in batches(seen)]
    if not found:
        return there, np.empty((0, len(detector.classes))), np.empty((0, 1))
    logits, features = (torch.cat([one[part] for one in found]).double().cpu().numpy() for part in (0, 1))
    check_finite(logits, "logits of classes")
    return there, logits, features


def _told(
    detector: RecordDetector, bank: np.ndarray, bank_class: np.ndarray, records: RecordSet, share: np.ndarray, device: torch.device | str
) -> tuple[np.ndarray, np.ndarray]:
    """(N, C) logits and (N,) the class of the neighbours."""
    there, logits, features = classified(detector, records, device)
    whole, neighbour = np.tile(share, (len(there), 1)), np.full(len(there), int(share.argmax()))
    if there.any():
        whole[there] = logits
        neighbour[there] = nearest_class(bank, bank_class, features, len(share), NEIGHBOURS)
    return whole, neighbour
