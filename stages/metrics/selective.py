"""What is gained by leaving the doubtful to a person: the risk of what is still judged, as a function of how much is judged.

Records are taken in the order of confidence. Coverage is the share that is judged so far, risk the share of those that is judged wrong; the area under
risk over coverage (AURC; Geifman, Uziel and El-Yaniv, ICLR 2019, arXiv:1805.08206) is the mean of the risks at 1/N, 2/N .. 1. It is small where a model
is right, and where it knows when it is not. Records of equal confidence have no order: each counts with the mean of all orders, so that nothing depends
on how the records stand.

N records, C classes, K distinct confidences.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.inputs import Floats, checked_scores


class RiskCoverage(NamedTuple):
    """One point after each record, the most confident first; all (N,)."""

    coverage: Floats  # 1/N .. 1
    risk: Floats  # mean loss of what is judged
    confidence: Floats  # of the last that is judged


def risk_coverage(confidence: ArrayLike, wrong: ArrayLike) -> RiskCoverage:
    """confidence: (N,) any finite number, larger is surer. wrong: (N,) the loss of each judgement in 0..1, say 1 where it is false."""
    sure, loss = checked_scores(confidence, "confidence"), checked_scores(wrong, "loss")
    if loss.shape != sure.shape:
        raise ValueError(f"one loss for each confidence is needed, got {len(loss)} losses for {len(sure)}")
    if ((loss < 0) | (loss > 1)).any():
        raise ValueError(f"losses must be in 0..1, got {loss[(loss < 0) | (loss > 1)][0]:g}")
    value, place, count = np.unique(-sure, return_inverse=True, return_counts=True)
    mean = np.bincount(place, loss) / count  # of each set of equals: in the mean of all their orders every one of them costs this
    judged = np.arange(1, len(sure) + 1)
    return RiskCoverage(judged / len(sure), np.cumsum(np.repeat(mean, count)) / judged, -np.repeat(value, count))


def aurc(confidence: ArrayLike, wrong: ArrayLike) -> float:
    """Area under risk over coverage, 0..1; arguments as of `risk_coverage`. Raises Undefined where there is no record."""
    return float(risk_coverage(confidence, wrong).risk.mean())


def least_aurc(wrong: ArrayLike) -> float:
    """The area of a model with the same errors that is less sure of every one of them than of anything it has right."""
    loss = checked_scores(wrong, "loss")
    return aurc(-loss, loss)


def class_confidence(probabilities: ArrayLike) -> Floats:
    """(N,): the probability of the likeliest class. probabilities: (N, C)."""
    return np.asarray(probabilities, dtype=np.float64).max(axis=1)


def verdict_confidence(probability: ArrayLike) -> Floats:
    """(N,) in 0.5..1: that of the likelier of normal and anomalous. probability: (N,) of being anomalous."""
    values = np.asarray(probability, dtype=np.float64)
    return np.maximum(values, 1 - values)
