"""Held-out scores of every training image: fit on K-1 folds, score the one left out.

A model scores the images that it has seen too low to set a threshold from. With K folds every normal training image gets a score from a model that
never saw it, so all of them can speak for the false-alarm rate. The models behind these scores have seen (K-1)/K of the data: they are a little
worse than the final one, which makes the threshold a little too careful, never too bold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stages.detectors.prediction import predictions
from stages.seed import numpy_generator
from stages.training import Run
from stages.types import Batches, Detector, Refusal


def folds_of(groups: Sequence[str], count: int, seed: int) -> list[list[int]]:
    """Positions of the samples in each of at most `count` folds; a group is never split. Fewer groups than folds give fewer folds."""
    names = sorted(set(groups))
    shuffled = numpy_generator(seed, "folds").permutation(len(names))
    fold_of = {names[name]: place % count for place, name in enumerate(shuffled)}
    folds = [[position for position, group in enumerate(groups) if fold_of[group] == fold] for fold in range(count)]
    return [fold for fold in folds if fold]


def out_of_fold_scores(
    make: Callable[[], Detector], select: Callable[[list[int]], Batches], groups: Sequence[str], folds: int, run: Run
) -> np.ndarray:
    """(N,) float32 image scores, each from a model that was fitted without that image's fold.

    make: a fresh detector. select: batches of the training samples at these positions.
    Raises Refusal where there are fewer than two groups, since nothing could be held out.
    """
    held_out = folds_of(groups, folds, run.seed)
    if len(held_out) < 2:
        raise Refusal(f"out-of-fold scores need at least 2 groups of training images, got {len(held_out)}")
    scores = np.full(len(groups), np.nan, dtype=np.float32)
    for fold in held_out:
        outside = sorted(set(range(len(groups))) - set(fold))
        detector = make().fit(select(outside), None, run)
        scores[fold] = np.concatenate([found.image_score.cpu().numpy() for _, found in predictions(detector, select(fold))])
    return scores
