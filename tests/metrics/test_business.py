"""Thresholds by what a plant can bear, against a sweep over every score and values by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from stages.metrics.business import at_most_false, at_most_missed, highest_share, least_cost, per_shift
from stages.metrics.inputs import Undefined

row = st.tuples(st.integers(0, 12), st.integers(0, 1))
sets = st.lists(row, min_size=2, max_size=30).filter(lambda rows: len({label for _, label in rows}) == 2)


def sweep(score: np.ndarray, label: np.ndarray):
    """(missed, false) at every threshold that makes a difference."""
    for threshold in [-1, *np.unique(score)]:
        alarm = score > threshold
        yield float((~alarm)[label == 1].mean()), float(alarm[label == 0].mean())


@settings(max_examples=60, deadline=None)
@given(sets, st.sampled_from([0.0, 0.05, 0.3, 0.5]))
def test_within_a_limit_the_other_error_is_as_small_as_any_threshold_makes_it(rows, limit):
    score, label = np.array(rows).T
    missed = at_most_missed(score, label, limit).achieved
    assert missed["missed_rate"] <= limit + 1e-9
    assert missed["false_alarm_rate"] == pytest.approx(min(false for miss, false in sweep(score, label) if miss <= limit + 1e-9))
    false = at_most_false(score, label, limit).achieved
    assert false["false_alarm_rate"] <= limit + 1e-9
    assert false["missed_rate"] == pytest.approx(min(miss for miss, false in sweep(score, label) if false <= limit + 1e-9))


@settings(max_examples=60, deadline=None)
@given(sets, st.sampled_from([0.5, 10.0, 200.0]), st.sampled_from([0.01, 0.5]))
def test_no_threshold_costs_less(rows, missed_cost, prevalence):
    score, label = np.array(rows).T
    found = least_cost(score, label, missed_cost, 1.0, prevalence)
    best = min(prevalence * missed_cost * miss + (1 - prevalence) * false for miss, false in sweep(score, label))
    assert found.target == pytest.approx(best)
    got = prevalence * missed_cost * found.achieved["missed_rate"] + (1 - prevalence) * found.achieved["false_alarm_rate"]
    assert got == pytest.approx(best)


def test_the_dearer_a_missed_fault_the_lower_the_threshold():
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 400)
    score = random.normal(2 * label, 1)
    values = [least_cost(score, label, cost, 1.0, 0.05).value for cost in (1.0, 20.0, 500.0)]
    assert values[0] > values[1] + 0.5 and values[1] > values[2] + 0.5


def test_by_hand_what_a_shift_sees():
    score, label = np.array([0.1, 0.2, 0.3, 0.9, 0.4, 0.8, 0.85, 0.95]), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = per_shift(0.5, score, label, parts=400, prevalence=0.1)  # a quarter of each kind is on the wrong side
    assert (found.missed, found.found, found.false_alarms, found.alarms) == pytest.approx((10, 30, 90, 120))
    assert found.false_alarms_high == pytest.approx(360 * highest_share(1, 4)) and found.missed_high > 20


def test_the_highest_share_is_that_under_which_so_few_hits_have_a_chance_of_one_in_twenty():
    for hits, of in ((0, 30), (1, 4), (7, 120)):
        assert binom.cdf(hits, of, highest_share(hits, of)) == pytest.approx(0.05, abs=1e-9)
    assert highest_share(0, 59) < 0.05 < highest_share(0, 57)  # the rule of three
    assert highest_share(3, 3) == 1


def test_one_kind_alone_and_what_is_no_share_are_refused():
    with pytest.raises(Undefined, match="record"):
        at_most_missed([1.0, 2.0], [0, 0])
    with pytest.raises(ValueError, match="share"):
        at_most_false([1.0, 2.0], [0, 1], 1.5)
    with pytest.raises(ValueError, match="costs"):
        least_cost([1.0, 2.0], [0, 1], -1, 1, 0.5)
