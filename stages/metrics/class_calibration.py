"""Whether the probabilities of several classes mean what they say: one temperature for all, or a scale and an offset for each class.

Temperature scaling divides all logits by one T > 0 and moves no decision; vector scaling multiplies the logit of each class by its own number and adds
another (both Guo et al., ICML 2017, arXiv:1706.04599), which mends a model that believes in some classes too readily, and may move decisions. Both have
a convex likelihood. Deviation: vector scaling is drawn towards leaving logits as they are, by a penalty as heavy as `PRIOR` records a parameter,
for a class with few validation records would else be scaled by what chance made of them; and a scale is never below 0, so that no class is turned round.

N records, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.calibration import T_RANGE
from stages.metrics.inputs import Floats, Undefined, check_finite

PRIOR = 1.0
Places = NDArray[np.int64]


class VectorScaling(NamedTuple):
    scale: Floats  # (C,) at least 0
    offset: Floats  # (C,)

    def logits(self, logits: ArrayLike) -> Floats:
        """(N, C) to (N, C)."""
        return np.asarray(logits, dtype=np.float64) * self.scale + self.offset


def class_probabilities(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """(N, C) to (N, C), rows sum to 1."""
    from scipy.special import softmax

    return softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)


def class_nll(logits: ArrayLike, place: ArrayLike) -> float:
    """Mean negative log-likelihood in nats. logits: (N, C); place: (N,) the column of each record's class."""
    values, true = checked_classes(logits, place)
    return float(-_log_probabilities(values)[np.arange(len(true)), true].mean())


def class_temperature(logits: ArrayLike, place: ArrayLike) -> float:
    """The T in 0.05..20 whose logits / T have the least negative log-likelihood; never one that is worse than T = 1. Held-out records."""
    from scipy.optimize import minimize_scalar

    values, true = checked_classes(logits, place)
    low, high = (float(np.log(limit)) for limit in T_RANGE)
    found = minimize_scalar(lambda log_t: class_nll(values / np.exp(log_t), true), bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    best = float(np.exp(found.x))
    return best if class_nll(values / best, true) < class_nll(values, true) else 1.0


def vector_scaling(logits: ArrayLike, place: ArrayLike) -> VectorScaling:
    """A scale and an offset for each class, of held-out records; arguments as of `class_nll`. A class that none of them has keeps both."""
    from scipy.optimize import minimize

    values, true = checked_classes(logits, place)
    classes, count = values.shape[1], len(true)
    hit = np.eye(classes)[true]

    def cost(parameters: Floats) -> tuple[float, Floats]:
        scale, offset = parameters[:classes], parameters[classes:]
        log_probability = _log_probabilities(values * scale + offset)
        off = np.exp(log_probability) - hit  # the gradient of the likelihood in the scaled logits
        away = np.concatenate([scale - 1, offset])
        gradient = np.concatenate([(off * values).sum(0), off.sum(0)]) + PRIOR * away
        return float((-log_probability[hit == 1].sum() + PRIOR * np.square(away).sum() / 2) / count), gradient / count

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    known = np.bincount(true, minlength=classes) > 0
    bounds = [(0.0, None) if one else (1.0, 1.0) for one in known] + [(None, None) if one else (0.0, 0.0) for one in known]
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9}).x
    return VectorScaling(found[:classes], found[classes:])


def class_ece(probabilities: ArrayLike, place: ArrayLike, bins: int = 15) -> float:
    """How far the probability of the class that is told is from how often it is right, 0..1, in bins of equal numbers of records."""
    from stages.metrics.calibration import ece

    values, true = checked_classes(probabilities, place)
    return ece(np.clip(values.max(axis=1), 0, 1), (values.argmax(axis=1) == true).astype(int), bins)


def checked_classes(values: ArrayLike, place: ArrayLike) -> tuple[Floats, Places]:
    """(N, C) finite numbers and (N,) columns. Raises Undefined where there is no record, ValueError for a class that has no column."""
    numbers, true = np.asarray(values, dtype=np.float64), np.asarray(place, dtype=np.int64)
    if numbers.ndim != 2 or true.shape != numbers.shape[:1]:
        raise ValueError(f"expected (N, C) numbers and (N,) columns, got {numbers.shape} and {true.shape}")
    if not len(true):
        raise Undefined("no record: there is nothing to measure")
    if ((true < 0) | (true >= numbers.shape[1])).any():
        raise ValueError(f"columns must be in 0..{numbers.shape[1] - 1}, got {true.min()}..{true.max()}; leave out records of classes that are not known")
    check_finite(numbers, "logit")
    return numbers, true


def _log_probabilities(logits: Floats) -> Floats:
    from scipy.special import log_softmax

    return log_softmax(logits, axis=1)
