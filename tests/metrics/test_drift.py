"""Drift: PSI by hand and by plain loops, Kolmogorov-Smirnov as SciPy has it, and alarms that hold their level where records of a session are alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from stages.metrics import drift

NUMBERS = st.lists(st.integers(-30, 30), min_size=1, max_size=60)


def test_psi_by_hand():
    """Reference 1..10, two bins: five at or below 5, five above. New: two of ten below. (0.2 - 0.5) ln(0.4) + (0.8 - 0.5) ln(1.6) = 0.4159."""
    new = [1, 2, 6, 7, 8, 9, 10, 11, 12, 13]
    assert drift.psi(range(1, 11), new, bins=2) == pytest.approx(-0.3 * np.log(0.4) + 0.3 * np.log(1.6))
    assert drift.psi(range(1, 11), new, bins=2) == pytest.approx(0.41589, abs=1e-5)


def test_an_empty_bin_counts_as_half_a_record():
    """All ten new ones lie above: 0 of 10 is 0.5 of 10. (0.05 - 0.5) ln(0.1) + (1 - 0.5) ln(2)."""
    assert drift.psi(range(1, 11), range(20, 30), bins=2) == pytest.approx(-0.45 * np.log(0.1) + 0.5 * np.log(2))


def test_a_share_and_a_constant_are_seen():
    """5 % missing to 30 %: every quantile of the reference is 0, so 0 is a bin of its own, and what is above another."""
    before, after = [0] * 95 + [1] * 5, [0] * 70 + [1] * 30
    assert drift.psi(before, after) == pytest.approx((0.3 - 0.05) * np.log(0.3 / 0.05) + (0.7 - 0.95) * np.log(0.7 / 0.95))
    assert drift.psi([3] * 20, [2] * 20) > 1 and drift.psi([3] * 20, [4] * 20) > 1 and drift.psi([3] * 20, [3] * 7) == 0


def plain_psi(reference, new, bins):
    """The formula in loops: cuts after order statistics, a value that is several of them a bin of its own."""
    ordered = sorted(reference)
    edges = [ordered[max(int(np.ceil(len(ordered) * k / bins)), 1) - 1] for k in range(1, bins)]

    def place(value):
        return tuple([value > edge for edge in edges] + [value >= edge for edge in edges if edges.count(edge) > 1])

    places = {place(value) for value in [*reference, *new]}
    total = 0.0
    for one in places:
        p, q = (max(sum(place(value) == one for value in side), 0.5) / len(side) for side in (reference, new))
        total += (q - p) * np.log(q / p)
    return total


def ks(reference, new):
    both, is_new = np.array([*reference, *new], float), np.arange(len(reference) + len(new)) >= len(reference)
    return drift.compare([both], is_new, np.arange(len(both)), permutations=1)[0].ks


@given(NUMBERS, NUMBERS, st.integers(2, 12))
@settings(max_examples=150, deadline=None)
def test_psi_is_that_of_plain_loops_and_ks_that_of_scipy(reference, new, bins):
    assert drift.psi(reference, new, bins) == pytest.approx(plain_psi(reference, new, bins), abs=1e-12)
    assert ks(reference, new) == pytest.approx(ks_2samp(reference, new).statistic, abs=1e-12)


@given(NUMBERS, NUMBERS)
@settings(max_examples=100, deadline=None)
def test_the_same_sample_has_none_and_a_monotone_map_changes_nothing(reference, new):
    assert drift.psi(reference, reference) == 0 and ks(new, new) == 0
    assert drift.psi(reference, new) >= 0
    mapped = [np.exp(np.array(side) / 7) for side in (reference, new)]
    assert drift.psi(*mapped) == drift.psi(reference, new)
    assert ks(*mapped) == ks(reference, new)


def test_whole_groups_change_sides_and_as_many_are_new():
    group = np.repeat([f"s{number}" for number in range(8)], 3)
    new = np.arange(24) >= 15
    for row in drift.permuted_sides(new, group, 50):
        sides = [set(row[group == name].tolist()) for name in set(group)]
        assert all(len(side) == 1 for side in sides) and row.sum() == new.sum()
    same_name = drift.permuted_sides(np.array([False, False, True, True]), ["a", "b", "a", "b"], 200)
    assert (same_name.sum(1) == 2).all() and len(np.unique(same_name, axis=0)) == 6
    assert drift.fewest_p(new, group) == pytest.approx(1 / 56)


def sessions(draw, groups, size, statistics, effect):
    """(statistics, groups * size) of one distribution; records of a session share a part."""
    shared = draw.standard_normal((statistics, groups)).repeat(size, 1)
    return effect * shared + draw.standard_normal((statistics, groups * size))


def test_false_alarms_hold_their_level_with_session_effects_and_the_naive_test_does_not():
    """200 draws of 8 statistics, 20 + 10 sessions of 5 from one distribution: any alarm in at most 5 %, give or take what 200 draws allow."""
    group, new = np.arange(150) // 5, np.arange(150) >= 100
    by_session, naive, above = 0, 0, 0
    for seed in range(200):
        found = drift.compare(sessions(np.random.default_rng(seed), 30, 5, 8, 1.5), new, group, permutations=99, seed=seed)
        by_session += min(one.p_adjusted for one in found) <= 0.05
        naive += len(found) * min(one.ks_p_naive for one in found) <= 0.05  # the least that Holm adjusts to
        above += sum(one.psi > one.psi_by_chance for one in found)
    assert by_session <= 20 < 100 < naive  # 20 of 200 is past the 99.8 % point of a binomial of 5 %
    assert 0.02 < above / (200 * 8) < 0.09  # the bound by chance of one statistic


def test_a_planted_shift_of_sessions_is_found_and_the_others_are_let_be():
    values = sessions(np.random.default_rng(3), 60, 5, 12, 1.0)
    new = np.arange(300) >= 200
    values[7, new] += 2.5
    found = drift.compare(values, new, np.arange(300) // 5)
    assert [one.verdict for one in found].count(drift.MOVED) == 1 and found[7].verdict == drift.MOVED
    assert found[7].excess == max(one.excess for one in found) and found[7].psi > found[7].psi_by_chance


def test_what_one_side_lacks_is_no_number_and_no_alarm():
    half = np.where(np.arange(40) < 30, np.arange(40.0), np.nan)
    found = drift.compare([half, np.arange(40.0) % 7], np.arange(40) >= 30, np.arange(40), permutations=99)
    assert np.isnan(found[0].psi) and found[0].verdict == drift.STEADY and found[1].psi > 0


def test_with_independent_records_the_law_of_the_index_is_about_what_the_permutations_say():
    """Chi-squared of nine degrees: its 95 % point 16.92 times (1/n + 1/m); bins are drawn from the reference, which makes it a little larger."""
    draw = np.random.default_rng(0)
    (found,) = drift.compare([draw.standard_normal(600)], np.arange(600) >= 300, np.arange(600))
    assert found.psi_by_chance == pytest.approx(16.92 * 2 / 300, rel=0.25)
