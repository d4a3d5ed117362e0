"""Several detectors asked at once: image scores made comparable and averaged, members chosen on validation images, and who errs with whom.

Scores of two detectors have nothing in common but their direction. Each is measured from where good images lie that its model has not learnt
from: the distance from their median in robust standard deviations, then asinh, which keeps small distances as they are and takes the
logarithm of large ones, so that no detector with a steep score outvotes the others. Nothing of it depends on the images that are scored together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.inputs import Floats, Undefined
from stages.metrics.ranking import auroc

LEAST, MOST = 3, 5  # members
NORMAL_MAD = 1.4826  # standard deviation of a Gaussian in units of its median absolute deviation


class Choice(NamedTuple):
    members: list[str]
    by: str  # what decided, in words


class Held(NamedTuple):
    """Validation images of one category as one detector sees them."""

    score: Floats  # (n,), calibrated
    label: np.ndarray  # (n,) 0 or 1


def calibrated(score: ArrayLike, good: ArrayLike) -> Floats:
    """(N,) scores on a scale that all detectors share; 0 is a typical good image. good: (n,) scores of good images that were not learnt from.

    Raises Undefined where these are all alike: then nothing says how far is far.
    """
    good = np.asarray(good, dtype=float)
    if not len(good):
        raise Undefined("no held-out good images to calibrate on")
    middle = np.median(good)
    spread = NORMAL_MAD * np.median(np.abs(good - middle)) or good.std()
    if not spread > 0:
        raise Undefined("all held-out good images have one score")
    return np.arcsinh((np.asarray(score, dtype=float) - middle) / spread)


def choose(val: Mapping[str, Mapping[str, Held]]) -> Choice:
    """Three to five of the detectors, by validation images alone. val: by detector, by category; the same images in the same order for all.

    Where some of these images are bad: the detectors with the highest AUROC on them, as many as give the highest AUROC together. Where all are good
    nothing says how well a detector finds defects; those stay that agree most with the others on which good images look unusual (mean rank correlation:
    "model centrality", Ma et al., "The need for unsupervised outlier model selection", SIGKDD Explorations 25(1), 2023).
    Raises Undefined for fewer than three detectors.
    """
    if len(val) < LEAST:
        raise Undefined(f"an ensemble needs at least {LEAST} detectors, here are {len(val)}")
    names = list(val)
    counts = range(LEAST, min(MOST, len(names)) + 1)
    measured = [category for category, held in next(iter(val.values())).items() if 0 < held.label.sum() < len(held.label)]
    if not measured:
        agreement = {name: float(np.mean([_agreement(val[name], val[other]) for other in names if other != name])) for name in names}
        best = sorted(names, key=lambda name: (-agreement[name], names.index(name)))[: counts[-1]]
        return Choice(
            [name for name in names if name in best], "agreement with the others on held-out good images, as no bad ones were held out"
        )

    def quality(members: Sequence[str]) -> float:
        held = [[val[name][category] for name in members] for category in measured]
        return float(np.mean([auroc(np.mean([one.score for one in ones], axis=0), ones[0].label) for ones in held]))

    order = sorted(names, key=lambda name: (-quality([name]), names.index(name)))
    size = max(counts, key=lambda count: (quality(order[:count]), -count))
    return Choice([name for name in names if name in order[:size]], "image AUROC on validation images")


def _agreement(one: Mapping[str, Held], other: Mapping[str, Held]) -> float:
    """Mean rank correlation over categories; 0 where there is none to speak of."""
    found = [_spearman(held.score, other[category].score) for category, held in one.items()]
    return float(np.mean(found)) if found else 0.0


def _spearman(one: Floats, other: Floats) -> float:
    first, second = (_ranks(values) for values in (one, other))
    if len(one) < 2 or not first.std() or not second.std():
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: Floats) -> Floats:
    """Mean ranks, ties sharing theirs."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") - 1) / 2


def errors_together(wrong: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """For each pair of detectors how many images both judge wrong, beside how many that would be if errors fell independently.

    wrong: by detector, (N,) bool over the same images. The pairs with the largest excess first.
    """
    pairs = []
    for one, other in combinations(wrong, 2):
        both, expected = int((wrong[one] & wrong[other]).sum()), float(wrong[one].sum() * wrong[other].sum() / max(1, len(wrong[one])))
        pairs.append({"models": [one, other], "both": both, "by_chance": round(expected, 2)})
    return sorted(pairs, key=lambda pair: (pair["by_chance"] - pair["both"], pair["models"]))
