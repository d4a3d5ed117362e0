"""Whether a probability means what it says: temperature scaling, and four ways to measure how far off it is.

A logit divided by a temperature T > 0 keeps every order and every decision at probability 0.5; only confidence changes (Guo et al., "On Calibration of
Modern Neural Networks", ICML 2017, arXiv:1706.04599). In 1 / T the negative log-likelihood is convex, so its one minimum is found exactly, where its
slope is zero. Calibration here is that of P(anomalous), not of the likelier class. Bins of the calibration error hold equal numbers of records; equal
probabilities are never parted, so that no result depends on an order (Nixon et al., "Measuring Calibration in Deep Learning", 2019, arXiv:1904.01685).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.inputs import Flags, Floats, checked_pair, require_both_classes

T_RANGE = (0.05, 20.0)  # where classes part without error the likelihood asks for T = 0, and where they are mixed up for T = infinity


class Reliability(NamedTuple):
    """Bins in ascending order of probability; all (K,). Perfect calibration is `observed` = `predicted`."""

    count: NDArray[np.int64]  # records, at least 1
    predicted: Floats  # mean probability
    observed: Floats  # share that is anomalous
    low: Floats  # Wilson's 95 % interval of `observed`
    high: Floats


def temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The T in 0.05..20 whose logits / T have the least negative log-likelihood; never one that is worse than T = 1.

    logits, labels: (N,), held-out records. Raises Undefined where all are of one class: such records say nothing of confidence.
    """
    from scipy.optimize import brentq

    values, anomalous = checked_pair(logits, labels)
    require_both_classes(anomalous, "record")

    def slope(inverse: float) -> float:
        return float(np.mean((probability(values, 1 / inverse) - anomalous) * values))

    least, most = 1 / T_RANGE[1], 1 / T_RANGE[0]
    if slope(least) >= 0:  # it rises with confidence from the start: no confidence is best
        found = T_RANGE[1]
    elif slope(most) <= 0:
        found = T_RANGE[0]
    else:
        found = 1 / brentq(slope, least, most, xtol=1e-12)
    return found if _nll(values / found, anomalous) < _nll(values, anomalous) else 1.0


def probability(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """P(anomalous) in 0..1, (N,)."""
    from scipy.special import expit

    return expit(np.asarray(logits, dtype=np.float64) / temperature)


def nll(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean negative log-likelihood in nats. From logits and not from probabilities, so that certainty in the wrong is counted and not infinite."""
    return _nll(*checked_pair(logits, labels))


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared difference of probability and label, 0..1 (Brier, 1950). probabilities, labels: (N,)."""
    values, anomalous = checked_probabilities(probabilities, labels)
    return float(np.mean(np.square(values - anomalous)))


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error, 0..1: the distance of `predicted` from `observed`, a mean over records. Arguments as of `reliability`.

    It is biased upwards: of n records a bin, even a perfect model is off by about 0.4 / sqrt(n).
    """
    found = reliability(probabilities, labels, bins)
    return float(np.average(np.abs(found.predicted - found.observed), weights=found.count))


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> Reliability:
    """At most `bins` bins of equal numbers of records, to within one where no probability occurs twice. probabilities, labels: (N,)."""
    values, anomalous = checked_probabilities(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    first = np.searchsorted(np.sort(values), values)  # the rank of a value, the same for equal ones
    _, place = np.unique(first * bins // len(values), return_inverse=True)
    count = np.bincount(place)
    observed = np.bincount(place, anomalous) / count
    low, high = _wilson(observed, count)
    return Reliability(count, np.bincount(place, values) / count, observed, low, high)


def checked_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Flags]:
    """(N,) of each. Raises ValueError for a number outside 0..1, which a logit may be."""
    values, anomalous = checked_pair(probabilities, labels)
    if (outside := (values < 0) | (values > 1)).any():
        raise ValueError(f"probabilities must be in 0..1, got {values[outside][0]:g}; turn logits into probabilities with `probability`")
    return values, anomalous


def _nll(logits: Floats, anomalous: Flags) -> float:
    return float(np.mean(np.logaddexp(0, np.where(anomalous, -logits, logits))))


def _wilson(share: Floats, count: NDArray[np.int64], z: float = 1.96) -> tuple[Floats, Floats]:
    """Wilson, 1927: inside 0..1 for every share and count."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
