"""Held-out scores: every training image once, each from a model that never saw it or its group."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.detectors.out_of_fold import folds_of, out_of_fold_scores
from stages.training import Run
from stages.types import Detector, Prediction, Refusal
from tests.arrays import ArrayBatches


class Witness(Detector):
    """Scores 1 for an image that it was fitted on, 0 for others: images carry their number in their first pixel."""

    def fit(self, train, val, run):
        self.seen = {int(number) for batch in train for number in batch.features["pixels"][:, 0, 0, 0]}
        return self

    def score(self, features):
        numbers = features["pixels"][:, 0, 0, 0].tolist()
        return Prediction(torch.tensor([float(number in self.seen) for number in numbers]), None)


def numbered(positions):
    pixels = torch.zeros(len(positions), 3, 4, 4, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor(positions)
    return ArrayBatches({"pixels": pixels})


def test_no_image_is_scored_by_a_model_that_saw_it_or_its_group():
    groups = [f"part{number // 3}" for number in range(30)]
    scores = out_of_fold_scores(Witness, numbered, groups, folds=4, run=Run(seed=0, quiet=True))
    assert scores.tolist() == [0.0] * 30
    fold_of = {position: number for number, fold in enumerate(folds_of(groups, 4, 0)) for position in fold}
    assert all(len({fold_of[position] for position in range(30) if groups[position] == group}) == 1 for group in groups)


@given(groups=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), count=st.integers(2, 6), seed=st.integers(0, 5))
def test_folds_hold_every_position_once(groups, count, seed):
    folds = folds_of(groups, count, seed)
    assert sorted(position for fold in folds for position in fold) == list(range(len(groups)))
    assert len(folds) == min(count, len(set(groups)))


def test_one_group_cannot_be_held_out(run):
    with pytest.raises(Refusal, match="at least 2 groups of training images, got 1"):
        out_of_fold_scores(Witness, numbered, ["a", "a"], 5, run)


def test_the_threshold_from_out_of_fold_scores_keeps_its_promise_where_training_scores_do_not():
    """A nearest-neighbour model gives its own training images 0; held out they score as new images do."""

    class Nearest(Detector):
        def fit(self, train, val, run):
            self.bank = torch.cat([batch.features["x"] for batch in train])
            return self

        def score(self, features):
            return Prediction(torch.cdist(features["x"], self.bank).amin(dim=1), None)

    generator = torch.Generator().manual_seed(0)
    train, new = torch.randn(300, 8, generator=generator), torch.randn(2000, 8, generator=generator)
    scores = out_of_fold_scores(
        Nearest, lambda chosen: ArrayBatches({"x": train[list(chosen)]}), [str(n) for n in range(300)], 5, Run(seed=0, quiet=True)
    )
    model = Nearest().fit(ArrayBatches({"x": train}), None, None)
    fresh = model.score({"x": new}).image_score.numpy()
    assert model.score({"x": train}).image_score.max() < 1e-2
    assert abs((fresh > np.quantile(scores, 0.9)).mean() - 0.1) < 0.04
