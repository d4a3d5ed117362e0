"""What is gained by leaving the doubtful to a person: the risk of what is still judged, as a function of how much is judged.

Records are taken in the order of confidence. Coverage is the share that is judged so far, risk the share of those that is judged wrong; the area under
risk over coverage (AURC; Geifman, Uziel and El-Yaniv, ICLR 2019, arXiv:1805.08206) is the mean of the risks at 1/N, 2/N .. 1. It is small where a model
is right, and where it knows when it is not. Records of equal confidence have no order: each counts with the mean of all orders, so that nothing depends
on how the records stand.

N records, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.inputs import Floats, checked_scores


def aurc(confidence: ArrayLike, wrong: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Area under risk over coverage, 0..1, of shape (...); NaN where nothing weighs anything. Raises Undefined where there is no record.

    confidence: (N,) any finite number, larger is surer. wrong: (N,) the loss of each judgement in 0..1, say 1 where it is false. weight: (..., N) of the
    records, as of the draws of a bootstrap; one each by default.
    """
    sure, loss = checked_scores(confidence, "confidence"), checked_scores(wrong, "loss")
    if loss.shape != sure.shape:
        raise ValueError(f"one loss for each confidence is needed, got {len(loss)} losses for {len(sure)}")
    if ((loss < 0) | (loss > 1)).any():
        raise ValueError(f"losses must be in 0..1, got {loss[(loss < 0) | (loss > 1)][0]:g}")
    order = np.argsort(-sure, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(sure[order]) != 0])
    own = (np.ones(len(sure)) if weight is None else np.asarray(weight, dtype=np.float64))[..., order]
    mean = _share(np.add.reduceat(own * loss[order], first, axis=-1), np.add.reduceat(own, first, axis=-1))  # of each set of equals
    spent = own * np.repeat(np.nan_to_num(mean), np.diff(np.r_[first, len(sure)]), axis=-1)
    risk = _share(np.cumsum(spent, -1), np.cumsum(own, -1))
    return _share((np.nan_to_num(risk) * own).sum(-1), own.sum(-1))


def least_aurc(wrong: ArrayLike) -> float:
    """The area of a model with the same errors that is less sure of every one of them than of anything it has right."""
    loss = checked_scores(wrong, "loss")
    return float(aurc(-loss, loss))


def class_confidence(probabilities: ArrayLike) -> Floats:
    """(N,): the probability of the likeliest class. probabilities: (N, C)."""
    return np.asarray(probabilities, dtype=np.float64).max(axis=1)


def _share(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
