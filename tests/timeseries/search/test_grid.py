import math

import pytest

from stages.timeseries.search.grid import GRIDS, NEEDS_LABELS, points, searched


@pytest.mark.parametrize("grid", GRIDS)
def test_the_levels_multiply_to_432(grid):
    assert math.prod(len(levels) for levels in GRIDS[grid].values()) == 432
    found = points(grid)
    assert len({tuple(point.levels.items()) for point in found}) == 432
    assert [point.number for point in found] == list(range(432))


def test_the_grid_of_the_seed_has_these_levels():
    assert [len(levels) for levels in GRIDS["seed"].values()] == [2, 2, 3, 3, 2, 2, 3]
    assert GRIDS["seed"]["masking_strategy"] == ("patch", "feature_wise") and GRIDS["seed"]["num_patches"] == (10, 25, 50)


@pytest.mark.parametrize(("grid", "count"), [("seed", 36), ("improved", 144)])
@pytest.mark.parametrize("regime", ["unsup-contaminated", "unsup-clean", "synth-erase"])
def test_without_labels_what_only_labels_can_tell_apart_is_run_once(grid, count, regime):
    found, every = points(grid, regime), points(grid)
    assert len(found) == count and all(every[point.number] == point for point in found)
    assert not set(searched(grid, regime)) & set(NEEDS_LABELS)
    assert len({tuple(point.levels[name] for name in searched(grid, regime)) for point in found}) == count


def test_an_unknown_grid_is_refused_with_the_known_ones():
    with pytest.raises(KeyError, match="seed, improved"):
        points("best")
