"""A threshold from good parts alone, with a promise: at most a chosen share of future good parts will raise an alarm.

Held-out good parts and a future good part are exchangeable, so the future one is equally likely to take each of the n + 1 ranks among
them. If the threshold is the j-th largest held-out score, it exceeds the threshold with probability at most j / (n + 1), whatever the
distribution and also with ties. Split conformal prediction: Vovk, Gammerman & Shafer, "Algorithmic Learning in a Random World", 2005; the
finite-sample correction over the plain quantile is the + 1. With n scores no rate below 1 / (n + 1) can be promised.

That probability averages over the luck of the held-out draw. For one fixed threshold, the share of false alarms among continuous scores
is Beta(j, n + 1 - j), which gives the interval on the expected false alarms. With out-of-fold scores, whose models differ from fold to
fold, the promise is approximate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.inputs import Floats, checked_scores


class AlarmPromise(NamedTuple):
    """Expected false alarms per 1,000 good parts with a 95 % interval, and what n good parts allow."""

    value: float
    target_false_alarm_rate: float
    promised_false_alarm_rate: float
    false_alarms_per_1000: float
    false_alarms_low: float
    false_alarms_high: float
    smallest_reachable_rate: float
    n_normal: int

    @property
    def reached(self) -> bool:
        return self.smallest_reachable_rate <= self.target_false_alarm_rate * (1 + 1e-9)


def conformal_quantile(normal_score: ArrayLike, target_false_alarm_rate: float = 0.01) -> AlarmPromise:
    """Lowest threshold whose promised rate P(score > threshold) is within the target; the largest score where no threshold is.

    normal_score: (n,) held-out scores of good parts, any order. target_false_alarm_rate: in (0, 1). Raises Undefined for n = 0.
    """
    from scipy.special import betaincinv  # quantiles of the beta distribution, without the second that scipy.stats takes to import

    scores = np.sort(checked_scores(normal_score, "held-out normal score"))
    if not 0 < target_false_alarm_rate < 1:
        raise ValueError(f"target false-alarm rate must be in (0, 1), got {target_false_alarm_rate}")
    n = len(scores)
    # 0.07 * 100 is 7.000000000000001 in floats and 0.29 * 100 is 28.999999999999996: both are meant to be whole.
    j = min(max(math.floor(target_false_alarm_rate * (n + 1) + 1e-9), 1), n)
    low, high = betaincinv(j, n + 1 - j, (0.025, 0.975))
    return AlarmPromise(
        value=float(scores[n - j]),
        target_false_alarm_rate=target_false_alarm_rate,
        promised_false_alarm_rate=j / (n + 1),
        false_alarms_per_1000=1000 * j / (n + 1),
        false_alarms_low=1000 * float(low),
        false_alarms_high=1000 * float(high),
        smallest_reachable_rate=1 / (n + 1),
        n_normal=n,
    )


def conformal_p_value(normal_score: ArrayLike, score: ArrayLike) -> Floats:
    """Chance that a good part scores at least this high, (B,) in [1 / (n + 1), 1]; small means anomalous. score: (B,)."""
    normal, values = np.sort(checked_scores(normal_score, "held-out normal score")), checked_scores(score)
    at_least = len(normal) - np.searchsorted(normal, values, side="left")
    return (1 + at_least) / (len(normal) + 1)


def percentile_among(normal_score: ArrayLike, score: ArrayLike) -> Floats:
    """Percent of good parts that score lower, (B,) in 0..100: where a raw score stands. normal_score: (n,); score: (B,)."""
    normal, values = np.sort(checked_scores(normal_score, "held-out normal score")), checked_scores(score)
    return 100 * np.searchsorted(normal, values, side="left") / len(normal)
