"""Distances to centres, against scikit-learn; the definition, against a plain loop."""

import numpy as np
import torch
from sklearn.cluster import KMeans

from stages.timeseries import build
from stages.training import Run
from tests.timeseries.series import segment, values

TRAIN, TEST = values(200), torch.from_numpy(values(60, seed=1))


def fit(**options):
    return build("classical.kmeans_ad", options, at=()).fit([segment(TRAIN)], [], Run(seed=0, quiet=True))


def test_a_window_scores_the_distance_that_scikit_learn_measures_to_its_nearest_centre_and_a_step_the_mean():
    detector = fit(window=6, clusters=7)
    rows = detector.standardised(TEST).unfold(0, 6, 1).flatten(1).numpy()
    means = KMeans(7, init=detector.centres.numpy(), n_init=1, max_iter=1).fit(detector.centres.numpy())
    nearest = means.transform(rows).min(axis=1)
    expected = [np.mean([nearest[start] for start in range(len(rows)) if start <= step < start + 6]) for step in range(60)]
    np.testing.assert_allclose(detector.score(TEST), expected, rtol=1e-4)


def test_the_centres_are_the_means_of_the_windows_that_are_nearest_to_them():
    """A fixed point of Lloyd's iteration, up to the tolerance at which it stops."""
    detector = fit(window=6, clusters=7)
    rows = detector.standardised(torch.from_numpy(TRAIN)).unfold(0, 6, 1).flatten(1)
    nearest = torch.cdist(rows, detector.centres).argmin(dim=1)
    for centre in range(7):
        torch.testing.assert_close(rows[nearest == centre].mean(dim=0), detector.centres[centre], rtol=0, atol=0.05)


def test_fewer_windows_than_clusters_are_their_own_centres():
    detector = build("classical.kmeans_ad", {"window": 6}, at=()).fit([segment(TRAIN[:10])], [], Run(seed=0, quiet=True))
    assert len(detector.centres) == 5 and detector.score(torch.from_numpy(TRAIN[:10])).max() < 1e-5


def test_a_sample_is_drawn_where_there_are_too_many_windows():
    assert not torch.equal(fit(window=6, clusters=3, sample=50).centres, fit(window=6, clusters=3).centres)
