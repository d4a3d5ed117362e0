"""The principal component score, against scikit-learn and against its two parts written out."""

import numpy as np
import torch
from sklearn.decomposition import PCA as Reference

from stages.timeseries import build
from stages.timeseries.classical.whitening import components, covariance, whitening
from stages.training import Run
from tests.timeseries.series import segment, values

ROWS = torch.from_numpy(values(200, 5, seed=3)) @ torch.randn(5, 5, generator=torch.Generator().manual_seed(0))


def parts(reference: Reference, rows: np.ndarray, rest: float) -> np.ndarray:
    """Q / s2 + T2 as the textbook has them; s2 is the mean variance `rest` of the directions left out."""
    placed = reference.transform(rows)
    residual = rows - reference.inverse_transform(placed)
    return (residual**2).sum(axis=1) / rest + (placed**2 / reference.explained_variance_).sum(axis=1)


def test_the_covariance_in_chunks_is_that_of_all_rows():
    torch.testing.assert_close(covariance(ROWS.split(33)), torch.from_numpy(np.cov(ROWS.double().numpy().T)), rtol=1e-9, atol=1e-9)


def test_the_squared_length_is_the_residual_and_t2_of_scikit_learn():
    rows = ROWS.double() - ROWS.double().mean(dim=0)
    full = Reference().fit(rows.numpy())
    reference = Reference(n_components=0.9, svd_solver="full").fit(rows.numpy())
    kept = reference.n_components_
    assert 1 <= kept < 5
    got = (rows @ whitening(covariance([rows]), 0.9)).square().sum(dim=1)
    np.testing.assert_allclose(got, parts(reference, rows.numpy(), full.explained_variance_[kept:].mean()), rtol=1e-6)


def test_with_all_components_it_is_the_mahalanobis_distance():
    rows = ROWS.double() - ROWS.double().mean(dim=0)
    got = (rows @ whitening(covariance([rows]), 1.0)).square().sum(dim=1)
    expected = (rows @ torch.linalg.inv(covariance([rows])) * rows).sum(dim=1)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_components_are_the_fewest_that_reach_the_share():
    variance = torch.tensor([5.0, 3.0, 1.0, 1.0])
    assert [components(variance, share) for share in (0.1, 0.5, 0.51, 0.8, 0.9, 1.0)] == [1, 1, 2, 2, 3, 4]
    assert components(torch.zeros(3), 0.9) == 3


def test_what_the_variables_add_is_the_score():
    detector = build("classical.pca", {}, at=()).fit([segment(values(300, 4))], [], Run(seed=0, quiet=True))
    test = torch.from_numpy(values(50, 4, seed=1))
    torch.testing.assert_close(detector.attribution(test).sum(dim=1), detector.score(test), rtol=1e-5, atol=1e-6)


def test_sub_pca_scores_a_window_as_pca_scores_a_step_whose_variables_are_its_steps():
    """On a series of exactly one window, every step has the score of that window."""
    train, window = values(120, 2), 4
    sub = build("classical.sub_pca", {"window": window, "explained": 0.8}, at=()).fit([segment(train)], [], Run(seed=0, quiet=True))
    rows = sub.standardised(torch.from_numpy(train)).unfold(0, window, 1).flatten(1).double()
    expected = (
        (sub.standardised(torch.from_numpy(train[:window])).T.reshape(1, -1).double() @ whitening(covariance([rows]), 0.8)).square().sum()
    )
    torch.testing.assert_close(sub.score(torch.from_numpy(train[:window])), expected.float().expand(window))
