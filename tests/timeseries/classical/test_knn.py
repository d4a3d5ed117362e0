"""Neighbours, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from stages.timeseries import build
from stages.training import Run
from tests.timeseries.series import segment, values

TRAIN, TEST = values(400), torch.from_numpy(values(300, seed=1))


def fit(**options):
    return build("classical.knn", options, at=()).fit([segment(TRAIN)], [], Run(seed=0, quiet=True))


@pytest.mark.parametrize("neighbours", [1, 5])
def test_a_step_scores_the_distance_that_scikit_learn_measures_to_its_kth_neighbour(neighbours):
    detector = fit(neighbours=neighbours)
    bank = detector.standardised(torch.from_numpy(TRAIN)).numpy()
    distance, _ = NearestNeighbors(n_neighbors=neighbours).fit(bank).kneighbors(detector.standardised(TEST).numpy())
    np.testing.assert_allclose(detector.score(TEST), distance[:, -1], rtol=1e-5, atol=1e-6)


def test_a_step_that_is_in_the_bank_is_at_no_distance():
    assert fit(neighbours=1).score(torch.from_numpy(TRAIN)).max() == 0


def test_the_bank_is_a_sample_of_training_steps_where_there_are_too_many():
    detector = fit(bank=50)
    rows = detector.standardised(torch.from_numpy(TRAIN))
    assert len(detector.memory_bank) == 50 and all((rows == row).all(dim=1).any() for row in detector.memory_bank)


def test_fewer_training_steps_than_neighbours_take_the_farthest_there_is():
    detector = build("classical.knn", {}, at=()).fit([segment(TRAIN[:3])], [], Run(seed=0, quiet=True))
    rows, queries = detector.standardised(torch.from_numpy(TRAIN[:3])), detector.standardised(TEST)
    torch.testing.assert_close(detector.score(TEST), torch.cdist(queries, rows).amax(dim=1), rtol=1e-4, atol=1e-4)
