import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stages.metrics.inputs import Undefined
from stages.timeseries.search.effects import agreement, eta_squared, kendall_tau, main_effects

RANKS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40)


@given(RANKS)
def test_tau_is_that_of_scipy_with_ties_and_without(pairs):
    first, second = np.array(pairs).T
    expected = stats.kendalltau(first, second).statistic
    if np.isnan(expected):
        with pytest.raises(Undefined):
            kendall_tau(first, second)
    else:
        assert kendall_tau(first, second) == pytest.approx(expected, abs=1e-12)


def test_agreement_of_equal_orders_is_certain_and_of_unrelated_ones_holds_zero():
    order = np.arange(60)
    assert agreement(order, order * 2.0).value == 1
    unrelated = agreement(order, np.random.default_rng(0).permutation(60))
    assert unrelated.low <= unrelated.value <= unrelated.high and unrelated.holds_zero


def test_eta_squared_by_hand():
    """Means 1 and 4, of all 2.5: between 4 x 1.5^2 = 9; around 1.5^2 + 1.5^2 + .5^2 + 2.5^2 = 11 where the values are 1, 1, 3, 5."""
    assert eta_squared(["a", "a", "b", "b"], [1, 1, 3, 5]) == pytest.approx(9 / 11)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-100, 100)), min_size=3, max_size=30))
def test_eta_squared_is_a_share_and_does_not_care_for_the_unit(pairs):
    levels, values = zip(*pairs)
    if np.ptp(values) < 1e-3:
        return
    value = eta_squared(levels, values)
    assert -1e-9 <= value <= 1 + 1e-9
    assert eta_squared(levels, np.array(values) * 3 - 1) == pytest.approx(value, abs=1e-6)


def test_main_effects_of_a_full_factorial_add_up_to_what_is_additive():
    rows = [{"a": a, "b": b, "c": c, "figure": 3 * a + b} for a in range(3) for b in range(3) for c in range(2)]
    effects = main_effects(rows, ["a", "b", "c"], "figure")
    assert effects["a"]["eta_squared"]["value"] + effects["b"]["eta_squared"]["value"] == pytest.approx(1)
    assert effects["a"]["eta_squared"]["value"] == pytest.approx(9 * effects["b"]["eta_squared"]["value"])
    assert effects["c"]["eta_squared"]["value"] == pytest.approx(0)
    assert effects["a"]["levels"] == {"0": 1, "1": 4, "2": 7} and effects["a"]["luck"] == pytest.approx(2 / 17)


def test_the_interval_of_an_effect_holds_it():
    draws = np.random.default_rng(1)
    rows = [{"a": n % 3, "figure": n % 3 + draws.normal()} for n in range(120)]
    effect = main_effects(rows, ["a"], "figure")["a"]["eta_squared"]
    assert 0 < effect["low"] < effect["value"] < effect["high"] < 1


def test_nothing_that_varies_has_no_effect_to_measure():
    with pytest.raises(Undefined):
        eta_squared([0, 1], [2.0, 2.0])
