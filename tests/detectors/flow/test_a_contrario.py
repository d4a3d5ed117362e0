"""The thresholds of U-Flow by hand, against SciPy's distributions and against every region of a small image."""

import math

import pytest
import torch
from scipy import ndimage, stats

from stages.detectors.flow.maths.a_contrario import (
    block_log_nfa,
    log10_chernoff,
    log10_polyominoes,
    significant_regions,
    tree_log_nfa,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_cell_by_hand():
    """z = (3, 0): 9 is above the 0.9-quantile of chi-square 2.71, 0 is not; k = 1/2, so P[Bin(1, 0.1) >= 1/2] = 0.1, and one test."""
    z = torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(block_log_nfa([z], (1, 1), 0.9, 1), torch.tensor([[[-1.0]]]))
    assert block_log_nfa([0 * z], (1, 1), 0.9, 1).item() == 0  # P[Bin >= 0] = 1


def test_two_scales_add_their_logarithms_and_their_positions_are_the_tests():
    """0.1 and 0.1 at every place, and 1 + 4 tests: log10(0.1 x 0.1 x 5)."""
    high = [torch.full((1, 3, 2, 2), 9.0), torch.full((1, 5, 1, 1), -9.0)]
    torch.testing.assert_close(block_log_nfa(high, (4, 4), 0.9, 1), torch.full((1, 4, 4), -2 + math.log10(5)))


@pytest.mark.parametrize(("probability", "window"), [(0.9, 5), (0.5, 7), (0.9, 3)])
def test_each_window_has_scipys_binomial_tail(probability, window):
    z, half = 1.5 * noise(2, 3, 6, 5), window // 2
    got = block_log_nfa([z], (6, 5), probability, window)  # as large as the grid, so that nothing is interpolated
    high = (z**2 >= stats.chi2.ppf(probability, df=1)).float().mean(dim=1)
    for image in range(2):
        for row in range(6):
            for column in range(5):
                rows, columns = slice(max(0, row - half), row + half + 1), slice(max(0, column - half), column + half + 1)
                part = high[image, rows, columns]
                k = math.ceil(part.double().sum().item() - 1e-5)
                expected = stats.binom.logsf(k - 1, part.numel(), 1 - probability) / math.log(10) + math.log10(30)
                assert got[image, row, column].item() == pytest.approx(expected, abs=1e-4)


def test_pure_noise_has_next_to_no_false_alarms_and_a_patch_of_triple_noise_is_found():
    """The meaning of the number: below 0 is less than one false alarm an image is expected, in each version."""
    calm = noise(8, 16, 14, 14, seed=1)
    loud = calm.clone()
    loud[:, :, 4:9, 6:11] *= 3
    for version in (block_log_nfa, tree_log_nfa):
        assert (version([calm], (28, 28)) < 0).flatten(1).any(dim=1).sum() <= 1
    found = block_log_nfa([loud], (28, 28)) < 0
    assert found[:, 10:16, 14:20].all() and not found[:, 22:, :8].any()


def test_the_tree_marks_a_region_that_is_strange_enough_and_not_what_is_around_it():
    z = noise(2, 64, 8, 8, seed=1)
    z[1, :, 2:5, 3:6] *= 5
    found = tree_log_nfa([z], (8, 8)) < 0
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:5, 3:6] = True
    assert not found[0].any() and torch.equal(found[1], inside)


def test_chernoffs_bound_is_above_the_chi_square_tail_and_nearly_its_logarithm():
    for channels, energy in ((4, 20.0), (16, 40.0), (256, 700.0)):
        exact, bound = stats.chi2.logsf(energy, channels) / math.log(10), log10_chernoff(energy, channels)
        assert exact < bound < 0.6 * exact
    assert log10_chernoff(3.9, 4) == 0  # below the mean it would bound the other tail
    assert log10_chernoff(8.0, 4) == pytest.approx(-2 * (2 - 1 - math.log(2)) / math.log(10))


def test_the_number_of_polyominoes_by_hand():
    """a b for one cell; two cells in two positions: 2 (a b + a b^2 / 2); grids add up."""
    a, b = 0.316915, 4.062570
    assert log10_polyominoes([1]) == pytest.approx(math.log10(a * b))
    assert log10_polyominoes([2, 1]) == pytest.approx(math.log10(2 * (a * b + a * b**2 / 2) + a * b))
    assert log10_polyominoes([784, 196]) == pytest.approx(784 * math.log10(b), rel=0.01)  # no overflow


def test_a_region_and_its_surroundings_by_hand():
    """A row of 1, 8, 6, 1, 9 with 2 channels. Alone 8 has log P of f(8); with 6 it is 2 f(6), which is more significant, so both are one
    region; 9 is one of its own, and the whole row (its least is 1, below the mean) is none."""
    f = lambda energy: -(energy / 2 - 1 - math.log(energy / 2)) / math.log(10)  # noqa: E731
    found = significant_regions(torch.tensor([[1.0, 8.0, 6.0, 1.0, 9.0]]), 2)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2 * f(6), 2 * f(6), 0.0, f(9)]], dtype=torch.float64))


def test_siblings_are_merged_when_their_parent_is_more_significant_than_each():
    """9, 8, 9: the peaks alone have f(9), all three have 3 f(8). And 9, 2.5, 9 stay two."""
    f = lambda energy: -(energy / 2 - 1 - math.log(energy / 2)) / math.log(10)  # noqa: E731
    merged, apart = (significant_regions(torch.tensor([[9.0, middle, 9.0]]), 2)[0] for middle in (8.0, 2.5))
    torch.testing.assert_close(merged, torch.full((3,), 3 * f(8), dtype=torch.float64))
    torch.testing.assert_close(apart, torch.tensor([f(9), 0.0, f(9)], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(4))
def test_the_regions_are_those_of_every_level_set(seed):
    """Brute force: all connected parts at all levels, the most significant first, each taken where nothing larger or smaller was."""
    energy = ndimage.gaussian_filter(stats.chi2.rvs(3, size=(6, 7), random_state=seed) * 4, 0.6)
    parts = []
    for level in energy.ravel():
        labels, count = ndimage.label(energy >= level)
        parts += [labels == label for label in range(1, count + 1) if energy[labels == label].min() == level]
    log_p = [part.sum() * log10_chernoff(energy[part].min(), 3) for part in parts]

    def chosen(part: int) -> list[int]:
        """Which regions inside this one (itself too) are kept: itself, where no smaller one is more significant."""
        inner = [other for other in range(len(parts)) if other != part and (parts[other] <= parts[part]).all()]
        if not inner or log_p[part] <= min(log_p[other] for other in inner):
            return [part] if log_p[part] < 0 else []
        children = [other for other in inner if not any(o != other and (parts[other] <= parts[o]).all() for o in inner)]
        return [kept for child in children for kept in chosen(child)]

    expected = torch.zeros(6, 7, dtype=torch.float64)
    root = max(range(len(parts)), key=lambda part: parts[part].sum())
    for part in chosen(root):
        expected[torch.from_numpy(parts[part])] = log_p[part]
    torch.testing.assert_close(significant_regions(torch.from_numpy(energy), 3), expected)


def test_the_tree_takes_the_least_of_the_scales_each_at_the_size_of_the_image():
    calm, loud = torch.ones(1, 8, 4, 4), torch.ones(1, 8, 2, 2)
    loud[0, :, 0, 1] = 20
    tests = log10_polyominoes([16, 4])
    found = tree_log_nfa([calm, loud], (8, 8))
    corner = torch.zeros(8, 8, dtype=torch.bool)
    corner[:4, 4:] = True
    torch.testing.assert_close(found[0][corner], torch.full((16,), log10_chernoff(8 * 400.0, 8) + tests))
    torch.testing.assert_close(found[0][~corner], torch.full((48,), tests))


def test_a_window_without_a_middle_is_refused():
    with pytest.raises(ValueError, match="odd number of cells, got 4"):
        block_log_nfa([noise(1, 2, 4, 4)], (4, 4), window=4)
