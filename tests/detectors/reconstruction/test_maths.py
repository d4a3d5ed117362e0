"""Padding, structural similarity and the networks that this family shares."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import nn

from stages.detectors.reconstruction.maths.padding import cropped, next_multiple, next_square, padded
from stages.detectors.reconstruction.maths.similarity import structural_similarity
from stages.detectors.reconstruction.maths.unet import Marking, Redrawing, doubled, initialised, restart


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([2, 8, 32]))
def test_cropping_undoes_padding_and_padding_is_the_least_that_fits(height, width, multiple):
    images = torch.rand(1, 2, height, width)
    size = next_multiple((height, width), multiple)
    assert torch.equal(cropped(padded(images, size), (height, width)), images)
    assert all(side % multiple == 0 and 0 <= side - length < multiple for side, length in zip(size, (height, width), strict=True))


def test_padding_repeats_the_border_on_all_sides():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    expected = [[1, 1, 2, 2, 2], [1, 1, 2, 2, 2], [3, 3, 4, 4, 4], [3, 3, 4, 4, 4]]
    assert padded(image, (4, 5))[0, 0].tolist() == expected


def test_the_square_of_an_image_by_hand():
    assert [next_square(size) for size in ((32, 28), (33, 1), (224, 200), (3, 5), (16, 17))] == [32, 64, 256, 16, 32]
    assert next_multiple((33, 64), 32, least=64) == (64, 64)
    with pytest.raises(ValueError, match=r"cannot pad \(4, 4\) pixels to the smaller \(2, 4\)"):
        padded(torch.zeros(1, 1, 4, 4), (2, 4))


def test_similarity_equals_its_formula_with_scipys_gaussian_filter():
    """An oracle for window and border: sigma 1.5 cut at 5 pixels, mirrored without repeating the edge."""
    one, other = (torch.rand(1, 1, 24, 20, generator=generator(seed), dtype=torch.float64) for seed in (0, 1))

    def mean(values):
        return gaussian_filter(values, 1.5, mode="mirror", truncate=5 / 1.5)

    x, y = one[0, 0].numpy(), other[0, 0].numpy()
    squares, covariance = mean(x) ** 2 + mean(y) ** 2, mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) + mean(y * y) - squares
    expected = (2 * mean(x) * mean(y) + 1e-4) * (2 * covariance + 9e-4) / ((squares + 1e-4) * (variances + 9e-4))
    np.testing.assert_allclose(structural_similarity(one, other)[0, 0].numpy(), expected, atol=1e-6)


def test_similarity_of_constant_images_by_hand():
    """No structure: the second factor is 1; the first is (2ab + c) / (a^2 + b^2 + c), with a = .2, b = .6: .2401 / .4001."""
    got = structural_similarity(torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6))
    torch.testing.assert_close(got, torch.full_like(got, 0.2401 / 0.4001), rtol=0, atol=1e-3)


def test_similarity_is_one_for_equal_images_symmetric_and_negative_for_a_negative():
    one, other = torch.rand(2, 3, 16, 16, generator=generator(0)), torch.rand(2, 3, 16, 16, generator=generator(1))
    torch.testing.assert_close(structural_similarity(one, one), torch.ones_like(one), rtol=0, atol=1e-5)
    torch.testing.assert_close(structural_similarity(one, other), structural_similarity(other, one), rtol=1e-4, atol=1e-5)
    assert structural_similarity(one, 1 - one).mean() < -0.5


def test_the_networks_have_the_papers_channels():
    """Levels of 1, 2, 4, 8, 8 times the width and back 4, 2, 1, 1; with skips 1, 2, 4, 8, 8, 8 and back 8, 4, 2, 1, 1."""

    def leaving(blocks):
        return [block[-1][0].out_channels for block in blocks]

    redrawing, marking = Redrawing(3, 3, 2), Marking(6, 2, 3)
    assert leaving(redrawing.encoder.blocks) == [2, 4, 8, 16, 16] and leaving(redrawing.blocks) == [8, 4, 2, 2]
    assert leaving(marking.encoder.blocks) == [3, 6, 12, 24, 24, 24] and leaving(marking.blocks) == [24, 12, 6, 3, 3]
    assert [block[0][0].in_channels for block in marking.blocks] == [48, 36, 18, 9, 6]


def test_without_skips_everything_passes_through_the_coarsest_level_and_with_skips_it_does_not():
    """Silenced at the bottom, the first draws the same for every image; the second still sees the image."""
    images = torch.rand(2, 3, 32, 32, generator=generator())
    for build, sees in ((lambda: Redrawing(3, 3, 2), False), (lambda: Marking(3, 2, 2), True)):
        network = initialised(build, seed=0, scale=0.3).eval()
        network.encoder.blocks[-1].register_forward_hook(lambda module, given, value: torch.zeros_like(value))
        one, other = network(images)
        assert torch.allclose(one, other) is not sees


def test_the_way_up_keeps_corners_on_corners():
    grid = torch.tensor([[0.0, 3.0]])[None, None].expand(1, 1, 2, 2)
    torch.testing.assert_close(doubled(grid)[0, 0, 0], torch.tensor([0.0, 1.0, 2.0, 3.0]))


def test_weights_start_from_the_papers_distributions_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    network = initialised(lambda: Redrawing(3, 3, 16), seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    convolutions = torch.cat([part.weight.flatten() for part in network.modules() if isinstance(part, nn.Conv2d)])
    norms = torch.cat([part.weight for part in network.modules() if isinstance(part, nn.BatchNorm2d)])
    assert abs(convolutions.mean()) < 2e-4 and convolutions.std().item() == pytest.approx(0.02, rel=0.02)
    assert norms.mean().item() == pytest.approx(1, abs=0.005) and norms.std().item() == pytest.approx(0.02, rel=0.2)
    assert all(part.bias.abs().max() == 0 for part in network.modules() if isinstance(part, nn.BatchNorm2d))
    restart(network, generator(3))
    again = torch.cat([part.weight.flatten() for part in network.modules() if isinstance(part, nn.Conv2d)])
    assert not torch.allclose(again, convolutions)
