import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis as scipy_mahalanobis

from stages.detectors.density.maths.gaussian import Moments, mahalanobis, pack_lower, unpack_lower

CPU = torch.device("cpu")


def streamed(embeddings: torch.Tensor, batch: int) -> Moments:
    moments = Moments(embeddings.shape[1], embeddings.shape[2], CPU)
    for part in embeddings.split(batch):
        moments.add(part)
    return moments


@settings(deadline=None, max_examples=25)
@given(images=st.integers(2, 30), batch=st.integers(1, 8), offset=st.sampled_from([0.0, 1e3]), seed=st.integers(0, 99))
def test_streamed_moments_equal_numpy_whatever_the_batches(images, batch, offset, seed):
    """Also far from the origin, where sums in float32 would leave nothing of the covariance."""
    embeddings = torch.randn(images, 3, 5, generator=torch.Generator().manual_seed(seed)) + offset
    mean, factor = streamed(embeddings, batch).gaussian(epsilon=0.01)
    for position in range(3):
        values = embeddings[:, position].double().numpy()
        np.testing.assert_allclose(mean[position], values.mean(axis=0), rtol=1e-12, atol=1e-12)
        covariance = np.cov(values, rowvar=False) + 0.01 * np.eye(5)
        np.testing.assert_allclose(factor[position] @ factor[position].T, covariance, atol=1e-7)


def test_the_distance_equals_scipy_with_an_explicit_inverse():
    embeddings = torch.randn(50, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, factor = streamed(embeddings, 7).gaussian(epsilon=0.01)
    got = mahalanobis(embeddings[3] - mean, factor)
    for position in range(2):
        inverse = np.linalg.inv(np.cov(embeddings[:, position].numpy(), rowvar=False) + 0.01 * np.eye(4))
        assert got[position].item() == pytest.approx(scipy_mahalanobis(embeddings[3, position], mean[position], inverse), rel=1e-9)


@settings(deadline=None, max_examples=20)
@given(width=st.integers(1, 12), positions=st.integers(1, 4))
def test_packing_undoes_and_halves(width, positions):
    factor = torch.rand(positions, width, width).tril()
    packed = pack_lower(factor)
    assert packed.shape == (positions, width * (width + 1) // 2)
    assert torch.equal(unpack_lower(packed), factor)


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        streamed(torch.rand(1, 2, 3), 1).gaussian(epsilon=0.01)
