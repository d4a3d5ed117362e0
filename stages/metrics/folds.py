"""One figure over several folds, with an interval over what is independent: sessions and training seeds.

The figure is the mean over folds of a metric of each fold's own test records; scores of two folds come from two models and are not ranked against each
other. A draw takes as many sessions as there are, with replacement and apart for sessions with normal records and with anomalous ones, and weighs their
records in every fold that tests them; a fold left without one of the labels has no say in that draw. Then it draws seeds. Two rows are compared in the
same draws of sessions, seeds drawn apart.

F folds, S seeds, N test records of a fold, R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stages.metrics.bootstrap import Draws, resample, seed_shares
from stages.metrics.classes import class_counts, macro_f1
from stages.metrics.counts import Metric
from stages.metrics.inputs import Flags, Floats
from stages.metrics.ranking import descending

DRAWS = 2000


class FoldScores(NamedTuple):
    """One row on the test records of one fold."""

    fold: str
    score: Floats  # (S, N)
    label: np.ndarray  # (N,) 0 or 1
    session: np.ndarray  # (N,) of str


def fold_draws(folds: Sequence[FoldScores], metric: Metric, draws: int = DRAWS, seed: int = 0) -> Draws:
    """Value and draws of one row. The whole range where too few sessions leave the spread unknown."""
    sessions = _Sessions(folds, draws, seed)
    value, samples = sessions.judged(folds, metric)
    return Draws(value, samples if sessions.resolved else np.resize([0.0, 1.0], draws))


def paired_folds(first: Sequence[FoldScores], second: Sequence[FoldScores], metric: Metric, draws: int = DRAWS, seed: int = 0) -> Draws:
    """The first row minus the second, over the folds that both have. Raises ValueError where they tested other records in one of them."""
    names = [one.fold for one in first if one.fold in {other.fold for other in second}]
    both = [[{one.fold: one for one in row}[name] for name in names] for row in (first, second)]
    for one, other in zip(*both, strict=True):
        if not np.array_equal(one.session, other.session) or not np.array_equal(one.label, other.label):
            raise ValueError(f"the two rows tested other records in fold {one.fold}; compare rows of one study")
    sessions = _Sessions(both[0], draws, seed)
    (value_a, samples_a), (value_b, samples_b) = (sessions.judged(row, metric) for row in both)
    return Draws(value_a - value_b, samples_a - samples_b if sessions.resolved else np.resize([-1.0, 1.0], draws))


def paired_classes(
    folds: Sequence[FoldScores],
    truth: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    classes: int,
    metric: Callable[[Floats], Floats] = macro_f1,
    draws: int = DRAWS,
    seed: int = 0,
) -> Draws:
    """A figure of the confusion of the first row minus that of the second, over the N records of all folds together, a mean over seeds.

    truth: (N,) positions of classes, in the order of the folds. first, second: (S, N) what each seed told. metric: of (..., C, C) counts.
    """
    sessions = _Sessions(folds, draws, seed)
    place = np.searchsorted(sessions.names, np.concatenate([one.session for one in folds]))
    weight = np.vstack([np.ones(len(place)), sessions.weight[:, place]])  # the records themselves, then the draws
    told = np.stack([[metric(class_counts(truth, one, classes, weight)) for one in row] for row in (first, second)])
    gap = told[0] - told[1]  # (S, 1 + R)
    samples = (gap[:, 1:].T * seed_shares(len(gap), draws, sessions.random)).sum(1)
    return Draws(float(gap[:, 0].mean()), samples if sessions.resolved else np.resize([-1.0, 1.0], draws))


class _Sessions:
    """How often each session is in each draw, and the seeds' generator after it."""

    def __init__(self, folds: Sequence[FoldScores], draws: int, seed: int) -> None:
        if not folds:
            raise ValueError("there is no fold to judge")
        self.draws, self.random = draws, np.random.default_rng(seed)
        session = np.concatenate([one.session for one in folds])
        anomalous = np.concatenate([one.label for one in folds]) == 1
        self.names, place = np.unique(session, return_inverse=True)
        has = [np.bincount(place[flags], minlength=len(self.names)) > 0 for flags in (anomalous, ~anomalous)]
        self.weight, self.resolved = resample(has[0], has[1], self.names, draws, self.random)

    def judged(self, folds: Sequence[FoldScores], metric: Metric) -> tuple[float, Floats]:
        """The mean over folds and seeds, and (R,) of the draws."""
        values = np.array([[metric(*_tallies(np.ones((1, len(row)), np.int64), one.label == 1, row))[0] for row in one.score] for one in folds])
        samples = np.stack([self._samples(one, metric) for one in folds])  # (F, R, S)
        with np.errstate(invalid="ignore"):
            shares = seed_shares(samples.shape[2], self.draws, self.random)
            by_fold = (np.nan_to_num(samples) * shares).sum(2)  # a draw lacks a label for all seeds of a fold or for none
            there = np.isfinite(samples).all(2)
            mean = (by_fold * there).sum(0) / there.sum(0)
        return float(values.mean()), np.where(np.isfinite(mean), mean, values.mean())

    def _samples(self, one: FoldScores, metric: Metric) -> Floats:
        """(R, S), NaN where a draw has one label only."""
        weight = self.weight[:, np.searchsorted(self.names, one.session)]
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.stack([metric(*_tallies(weight, one.label == 1, row)) for row in one.score], 1)
        both = (weight[:, one.label == 1].sum(1) > 0) & (weight[:, one.label == 0].sum(1) > 0)
        return np.where(both[:, None], found, np.nan)


def _tallies(weight: np.ndarray, anomalous: Flags, score: Floats) -> tuple[np.ndarray, np.ndarray]:
    """(R, K) anomalous and normal records by distinct score, in descending order. weight: (R, N)."""
    order, first = descending(score)
    ranked = weight[:, order]
    positive = np.add.reduceat(ranked * anomalous[order], first, axis=1)
    return positive, np.add.reduceat(ranked, first, axis=1) - positive
