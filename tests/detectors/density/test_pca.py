"""Principal axes against scikit-learn and by hand."""

import pytest
import torch
from sklearn.decomposition import PCA

from stages.detectors.density.maths.pca import axes_for, principal_axes


@pytest.mark.parametrize(("images", "width"), [(6, 40), (40, 6)])
def test_axes_and_deviations_are_those_of_scikit_learn(images, width):
    rows = torch.randn(images, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, axes, deviation = principal_axes(rows)
    reference = PCA(svd_solver="full").fit(rows.numpy())
    count = min(images - 1, width)
    torch.testing.assert_close(mean, torch.from_numpy(reference.mean_))
    expected = torch.from_numpy(reference.explained_variance_).mul((images - 1) / images).sqrt()
    torch.testing.assert_close(deviation[:count], expected[:count])
    cosines = (axes[:, :count].T @ torch.from_numpy(reference.components_[:count]).T).abs()
    torch.testing.assert_close(cosines, torch.eye(count, dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_rows_are_left_as_they_are():
    rows = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = rows.clone()
    principal_axes(rows)
    assert torch.equal(rows, before)


@pytest.mark.parametrize(("images", "width"), [(4, 300), (300, 4)])
def test_the_decomposition_is_thin(images, width):
    """No more axes than images or dimensions: with 16,384 dimensions a square matrix of axes would take 2 GB."""
    assert principal_axes(torch.ones(images, width)).axes.shape == (width, 4)


def test_small_variances_beside_large_ones_keep_their_digits():
    """Deviations 1e4 and 1e-3: their squares differ by 1e14, which a covariance in float32, or a Gram matrix in it, cannot hold."""
    rows = torch.tensor([[1e4, 1e-3], [1e4, -1e-3], [-1e4, 1e-3], [-1e4, -1e-3]])
    assert principal_axes(rows).deviation.tolist() == pytest.approx([1e4, 1e-3], rel=1e-6)


@pytest.mark.parametrize(("share", "count"), [(0.5, 1), (0.8, 1), (0.801, 2), (0.95, 2), (0.951, 3), (1.0, 4)])
def test_the_count_is_the_first_that_holds_the_share(share, count):
    """Variances 16, 3, 0.5, 0.5 hold 0.8, 0.95, 0.975 and 1 of 20."""
    assert axes_for(torch.tensor([16.0, 3.0, 0.5, 0.5], dtype=torch.float64).sqrt(), share - 1e-12) == count


def test_nothing_that_varies_needs_no_axis():
    assert axes_for(torch.zeros(3), 0.97) == 0
