"""Perlin noise against a plain loop, its bounds and its lattice; masks and rotation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.detectors.perlin import noise_of, perlin_masks, perlin_noise, random_cells, rotated


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain(angles: list[list[float]], cells: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """One image, one pixel at a time."""
    out = torch.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            row, column = y * cells[0] / size[0], x * cells[1] / size[1]
            i, j = math.floor(row + 1e-9), math.floor(column + 1e-9)
            v, u = row - i, column - j
            value = 0.0
            for a in (0, 1):
                for b in (0, 1):
                    weight = 1.0
                    for place, end in ((v, a), (u, b)):
                        fade = 6 * place**5 - 15 * place**4 + 10 * place**3
                        weight *= fade if end else 1 - fade
                    angle = angles[i + a][j + b]
                    value += weight * (math.cos(angle) * (v - a) + math.sin(angle) * (u - b))
            out[y, x] = math.sqrt(2) * value
    return out


def test_the_batch_equals_a_plain_loop_for_each_image_whatever_its_cells_and_size():
    cells, size = torch.tensor([[1, 1], [4, 2], [3, 5]]), (12, 17)
    angles = 2 * math.pi * torch.rand(3, 5, 6, generator=generator())
    expected = torch.stack([plain(angles[image].tolist(), tuple(cells[image].tolist()), size) for image in range(3)])
    torch.testing.assert_close(noise_of(angles, cells, size), expected, rtol=1e-4, atol=1e-5)


def test_the_centre_of_a_cell_by_hand():
    """One cell, all gradients pointing down. At its centre the four corners say 1/2, -1/2, 1/2, -1/2 with equal weight: 0. A quarter down
    fade is 53/512: sqrt(2) (459/512 * 1/4 - 53/512 * 3/4) = 0.2072."""
    noise = noise_of(torch.zeros(1, 2, 2), torch.tensor([[1, 1]]), (4, 4))[0]
    assert noise[2, 2].item() == pytest.approx(0, abs=1e-6)
    assert noise[1, 2].item() == pytest.approx(math.sqrt(2) * (459 / 512 / 4 - 53 / 512 * 3 / 4), abs=1e-6)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(2, 40), st.integers(2, 40), st.integers(0, 99))
def test_noise_stays_between_minus_one_and_one(rows, columns, height, width, seed):
    noise = perlin_noise(torch.tensor([[rows, columns]]), (height, width), generator(seed))
    assert noise.shape == (1, height, width) and noise.abs().max() <= 1 + 1e-6


def test_noise_is_zero_at_every_corner_of_a_cell_and_only_rarely_elsewhere():
    noise = perlin_noise(torch.tensor([[4, 8]]), (32, 32), generator())[0]
    assert noise[::8, ::4].abs().max() == 0
    assert (noise != 0).float().mean() > 0.9


def test_noise_is_continuous_from_cell_to_cell():
    noise = perlin_noise(torch.tensor([[4, 4]]), (256, 256), generator(3))[0]
    steps = noise.diff(dim=0).abs()
    assert steps[63::64].max() < 1.2 * steps.max() and steps.max() < 0.1  # 64 pixels a cell: no jump at its border


def test_the_same_generator_gives_the_same_and_another_seed_other_noise():
    cells = torch.tensor([[4, 4]])
    assert torch.equal(perlin_noise(cells, (20, 20), generator(1)), perlin_noise(cells, (20, 20), generator(1)))
    assert not torch.equal(perlin_noise(cells, (20, 20), generator(1)), perlin_noise(cells, (20, 20), generator(2)))


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    perlin_masks(4, (32, 32), generator(), rotation=90)
    assert torch.equal(before, torch.random.get_rng_state())


def test_cells_are_powers_of_two_of_both_ends_and_never_more_than_half_the_pixels():
    drawn = random_cells(600, (64, 20), generator())
    assert set(drawn[:, 0].tolist()) == {1, 2, 4, 8, 16, 32}
    assert set(drawn[:, 1].tolist()) == {1, 2, 4, 8, 10}  # 16 and 32 become 10
    assert set(random_cells(50, (64, 64), generator(), (2, 2)).flatten().tolist()) == {4}


def test_a_higher_threshold_cuts_a_part_of_the_mask():
    masks = [perlin_masks(16, (64, 48), generator(5), threshold=threshold) for threshold in (0.2, 0.5, 0.6)]
    shares = [mask.float().mean().item() for mask in masks]
    assert masks[0].shape == (16, 64, 48) and masks[0].dtype == torch.bool
    assert shares[0] > shares[1] > shares[2] > 0
    assert not (masks[1] & ~masks[0]).any() and not (masks[2] & ~masks[1]).any()


def test_a_quarter_turn_is_rot90_and_a_half_turn_flips_a_narrow_image_too():
    square, narrow = torch.rand(2, 3, 9, 9, generator=generator()), torch.rand(1, 2, 6, 10, generator=generator())
    turned = rotated(square, torch.tensor([90.0, -90.0]))
    torch.testing.assert_close(turned[0], square[0].rot90(1, (1, 2)), rtol=0, atol=1e-4)
    torch.testing.assert_close(turned[1], square[1].rot90(-1, (1, 2)), rtol=0, atol=1e-4)
    torch.testing.assert_close(rotated(narrow, torch.tensor([180.0])), narrow.flip(2, 3), rtol=0, atol=1e-4)
    torch.testing.assert_close(rotated(narrow, torch.tensor([0.0])), narrow, rtol=0, atol=1e-5)


def test_what_turns_in_from_outside_is_zero_and_angles_are_of_the_pixels_not_of_the_frame():
    assert rotated(torch.ones(1, 1, 8, 8), torch.tensor([45.0]))[0, 0, 0, 0] == 0
    line = torch.zeros(1, 1, 9, 21)
    line[0, 0, 4, 10:13] = 1  # from the centre to the right
    up = rotated(line, torch.tensor([90.0]))[0, 0]
    assert up[2:5, 10].min() > 0.99 and up[:, 11:].abs().max() < 1e-3


def test_no_cell_is_refused():
    with pytest.raises(ValueError, match="at least one cell along each side, got 0"):
        perlin_noise(torch.tensor([[0, 1]]), (8, 8), generator())
