"""Simulated defects: the blend, the mask, and each of the ten changes of a texture."""

import colorsys
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.detectors.reconstruction.maths import smudges
from stages.detectors.reconstruction.maths.smudges import CHANGES, changed_texture, laid_over, smudged


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texture(seed: int = 0, size: int = 24) -> torch.Tensor:
    return (255 * torch.rand(3, size, size, generator=generator(seed))).round() / 255


def test_the_blend_by_hand():
    """Under the mask 0.25 of the image (0.8) and 0.75 of the texture (0.4) make 0.5; beside it the image stays."""
    normal, textures = torch.full((1, 3, 2, 2), 0.8), torch.full((1, 3, 2, 2), 0.4)
    mask = torch.tensor([[[True, False], [False, False]]])
    blended = laid_over(normal, textures, mask, torch.tensor([0.25]))
    torch.testing.assert_close(blended[0, 0], torch.tensor([[0.5, 0.8], [0.8, 0.8]]))


def test_the_image_changes_where_the_mask_is_and_nowhere_else():
    normal, textures = torch.zeros(40, 3, 32, 32), torch.ones(40, 3, 32, 32)
    blended, masks = smudged(normal, textures, generator(), opacity=0.0, clean=0.0)
    assert masks.dtype == torch.bool and masks.shape == (40, 32, 32)
    assert blended[~masks[:, None].expand_as(blended)].abs().max() == 0
    assert 0.02 < masks.float().mean() < 0.5


def test_the_share_of_clean_images_is_the_one_that_was_asked_for():
    normal = torch.zeros(300, 3, 16, 16)
    shares = [smudged(normal, normal + 1, generator(), clean=clean)[1].flatten(1).any(dim=1).float().mean() for clean in (0.0, 0.5, 1.0)]
    assert shares[2] == 0 and 0.4 < shares[1] / shares[0] < 0.6  # some masks are empty by themselves


def test_a_generator_with_the_same_seed_gives_the_same_defects_and_the_global_one_is_left_alone():
    before = torch.random.get_rng_state()
    normal, textures = torch.rand(6, 3, 32, 32, generator=generator(1)), torch.rand(6, 3, 32, 32, generator=generator(2))
    one, again, other = (smudged(normal, textures, generator(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(0, 9))
def test_every_change_keeps_the_shape_and_is_finite_and_three_of_them_stay_in_0_to_1(seed, index):
    value = CHANGES[index](texture(seed), generator(seed))
    assert value.shape == (3, 24, 24) and value.isfinite().all()
    changed = changed_texture(texture(seed), generator(seed))
    assert changed.min() >= 0 and changed.max() <= 1


def test_there_are_ten_changes_of_which_three_different_ones_are_made(monkeypatch):
    made = []
    spies = tuple(lambda value, draws, index=index: made.append(index) or value for index in range(10))
    monkeypatch.setattr(smudges, "CHANGES", spies)
    for seed in range(60):
        changed_texture(texture(), generator(seed))
    triples = [made[first : first + 3] for first in range(0, 180, 3)]
    assert len(CHANGES) == 10 and set(made) == set(range(10)) and all(len(set(triple)) == 3 for triple in triples)


@pytest.mark.parametrize("name", [change.__name__ for change in CHANGES])
def test_every_change_changes_a_texture_and_leaves_its_input_alone(name):
    before, change = texture(), getattr(smudges, name)
    given = before.clone()
    assert any((change(given, generator(seed)) - before).abs().max() > 1 / 255 for seed in range(5))
    assert torch.equal(given, before)


def test_equalised_levels_are_the_share_of_pixels_that_are_not_brighter():
    levels = torch.tensor([[0.0, 0.0], [1.0, 51 / 255]]).expand(3, 2, 2)
    torch.testing.assert_close(smudges.equalise(levels, generator())[0], torch.tensor([[0.5, 0.5], [1.0, 0.75]]))


def test_posterised_levels_keep_their_highest_bits():
    for seed in range(20):
        step = 2 ** torch.randint(8, (1,), generator=generator(seed)).item()
        levels = (smudges.posterise(texture(), generator(seed)) * 255).round().long()
        assert (levels % step == 0).all() and ((texture() * 255).round().long() - levels < step).all()


def test_contrast_is_stretched_to_the_whole_range():
    stretched = smudges.autocontrast(0.4 + 0.2 * texture(), generator()).clamp(0, 1)
    assert stretched.amin(dim=(1, 2)).max() == 0 and stretched.amax(dim=(1, 2)).min() == 1
    flat = torch.full((3, 8, 8), 0.3)
    assert torch.equal(smudges.autocontrast(flat, generator()), flat)


def test_hue_turns_a_saturated_colour_as_colorsys_says_and_leaves_grey_alone():
    """A turn about the grey axis keeps the sum; its angle is read in the plane at right angles to grey."""
    grey = torch.full((3, 4, 4), 0.5)
    torch.testing.assert_close(smudges.hue_and_saturation(grey, generator()), grey)
    red = torch.tensor([0.6, 0.4, 0.4])[:, None, None].expand(3, 4, 4)
    hues = []
    for seed in range(40):
        turned = smudges.hue_and_saturation(red, generator(seed))[:, 0, 0]
        assert turned.sum().item() == pytest.approx(1.4, abs=1e-5)
        angle = 2 * math.pi * (-50 / 255 + 100 / 255 * torch.rand(1, generator=generator(seed)).item())
        got = colorsys.rgb_to_hsv(*turned.tolist())[0]
        assert abs((got - angle / (2 * math.pi) + 0.5) % 1 - 0.5) < 0.02  # hue and angle differ by at most 1 degree in 60
        hues.append(angle)
    assert min(hues) < -0.8 and max(hues) > 0.8
