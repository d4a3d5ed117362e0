import numpy as np
import pytest

from stages.timeseries.search.grid import GRIDS, points
from stages.timeseries.search.selection import DISTURBING, QUALITY, select, union


def _table(grid="seed", seed=0):
    draws = np.random.default_rng(seed).random((432, 2))
    return [{"number": point.number, **point.levels, QUALITY: a, DISTURBING: b} for point, (a, b) in zip(points(grid), draws)]


def _row(number, factor, quality, disturbing=0.0):
    return {"number": number, "factor": factor, QUALITY: quality, DISTURBING: disturbing}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(5))
def test_between_50_and_70_of_432_remain_and_n_is_the_smallest_that_does_it(grid, seed):
    rows, factors = _table(grid, seed), list(GRIDS[grid])
    chosen = select(rows, factors)
    assert 50 <= len(chosen.criterion) <= 70 and not chosen.trimmed
    assert chosen.criterion == union(rows, factors, chosen.per_level)
    assert chosen.per_level == 5 or len(union(rows, factors, chosen.per_level - 1)) < 50


def test_a_level_counts_its_best_whether_or_not_another_level_has_them():
    """Strictly best by one factor wins everywhere: the union is as small as can be, and says every level that speaks for a number."""
    rows = [{"number": n, "a": n % 2, "b": 0, QUALITY: 1 - n / 100, DISTURBING: 0.0} for n in range(40)]
    chosen = union(rows, ["a", "b"], 3)
    by_level = {number: why for number, why in chosen.items() if "=" in why}
    assert by_level == {0: "a=0; b=0", 2: "a=0; b=0", 4: "a=0", 1: "a=1; b=0", 3: "a=1", 5: "a=1"}
    assert [number for number, why in chosen.items() if why == "overall"] == list(range(6, 16))


def test_the_last_five_are_the_best_of_the_rest_against_disturbing_windows():
    rows = [_row(n, 0, 1 - n / 100, disturbing=n / 100) for n in range(40)]
    chosen = union(rows, ["factor"], 5)
    assert [number for number, why in chosen.items() if why == "disturbing"] == [39, 38, 37, 36, 35]


def test_n_grows_until_there_are_enough():
    rows = [_row(n, n % 2, 1 - n / 1000) for n in range(200)]  # n of each of two levels, then 10 and 5: 2 n + 15 >= 50 from n = 18 on
    chosen = select(rows, ["factor"])
    assert (chosen.per_level, len(chosen.criterion)) == (18, 51)


def test_all_remain_where_there_are_no_more_than_the_fewest():
    rows = [_row(n, 0, n / 100) for n in range(36)]
    assert set(select(rows, ["factor"]).criterion) == set(range(36))


def test_a_union_above_the_most_keeps_its_best_and_says_so():
    chosen = select([_row(n, n % 2, n / 100) for n in range(12)], ["factor"], keep=(2, 4))
    assert set(chosen.criterion) == {8, 9, 10, 11} and chosen.trimmed


def test_top_k_keeps_the_best_and_equals_go_by_number():
    chosen = select([_row(n, 0, 0.5) for n in reversed(range(100))], ["factor"], "top-k")
    assert list(chosen.criterion) == list(range(60)) and chosen.per_level is None


def test_the_order_of_the_rows_changes_nothing():
    rows = _table()
    assert select(rows, list(GRIDS["seed"])) == select(rows[::-1], list(GRIDS["seed"]))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="fewest"):
        select([], [], keep=(5, 4))
    with pytest.raises(ValueError, match="diverse, top-k"):
        select([], [], "best")
