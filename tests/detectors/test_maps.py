import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from stages.detectors.maps import gaussian_blur, to_pixels


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 70), width=st.integers(1, 70), sigma=st.sampled_from([0.5, 1.0, 4.0]), seed=st.integers(0, 99))
def test_the_blur_equals_scipy_also_where_the_map_is_smaller_than_the_kernel(height, width, sigma, seed):
    maps = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed))
    expected = np.stack([gaussian_filter(one.double().numpy(), sigma) for one in maps])
    np.testing.assert_allclose(gaussian_blur(maps, sigma).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_sigma_4_uses_33_taps():
    """A single bright pixel spreads 16 pixels to each side, no further."""
    maps = torch.zeros(1, 1, 99)
    maps[0, 0, 49] = 1
    assert gaussian_blur(maps, 4.0)[0, 0].nonzero().flatten().tolist() == list(range(33, 66))


def test_a_blur_of_sigma_0_changes_nothing():
    maps = torch.rand(2, 5, 6)
    assert torch.equal(gaussian_blur(maps, 0.0), maps)


def test_the_blur_keeps_its_input_and_the_mean_of_a_map():
    maps = torch.rand(3, 40, 50)
    before = maps.clone()
    blurred = gaussian_blur(maps, 4.0)
    assert torch.equal(maps, before)
    torch.testing.assert_close(blurred.mean(dim=(1, 2)), maps.mean(dim=(1, 2)))


def test_upsampling_is_bilinear_between_cell_centres():
    """[0, 1] over 4 pixels: the centres of the cells lie at 0.5 and 2.5, so pixels 0..3 are 0, 1/4, 3/4, 1."""
    assert to_pixels(torch.tensor([[[0.0, 1.0]]]), (1, 4)).flatten().tolist() == pytest.approx([0, 0.25, 0.75, 1])
