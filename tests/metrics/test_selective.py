"""Risk over coverage, against the mean over all orders and values by hand."""

import itertools

import numpy as np
import pytest

from stages.metrics.inputs import Undefined
from stages.metrics.selective import aurc, class_confidence, least_aurc


def test_by_hand_the_surest_is_right_and_the_next_is_wrong():
    assert aurc([0.9, 0.6, 0.7, 0.5], [0, 0, 1, 1]) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equal_confidences_count_with_the_mean_over_all_their_orders():
    confidence, wrong = np.array([0.9, 0.7, 0.7, 0.7, 0.7, 0.2]), np.array([1, 0, 1, 1, 0, 0])
    areas = []
    for order in itertools.permutations(range(1, 5)):
        loss = wrong[[0, *order, 5]]
        areas.append(float((np.cumsum(loss) / np.arange(1, 7)).mean()))
    assert aurc(confidence, wrong) == pytest.approx(np.mean(areas), abs=1e-12)


def test_it_depends_on_the_order_of_confidence_alone_and_not_on_how_records_stand():
    random = np.random.default_rng(0)
    confidence, wrong = random.random(200).round(1), random.integers(0, 2, 200)
    turned = random.permutation(200)
    assert aurc(np.exp(3 * confidence), wrong) == pytest.approx(aurc(confidence, wrong), abs=1e-12)
    assert aurc(confidence[turned], wrong[turned]) == pytest.approx(aurc(confidence, wrong), abs=1e-12)


def test_no_confidence_is_as_good_as_knowing_and_none_as_bad_as_chance():
    random = np.random.default_rng(1)
    wrong = (random.random(2000) < 0.2).astype(int)
    share = wrong.mean()
    assert aurc(np.ones(2000), wrong) == pytest.approx(share)
    assert least_aurc(wrong) < share**2 < aurc(1 - wrong + random.normal(0, 1, 2000), wrong) < share
    assert aurc(wrong, wrong) > share  # surer of what is wrong


def test_a_loss_outside_0_to_1_and_nothing_at_all_are_refused():
    with pytest.raises(ValueError, match="0..1"):
        aurc([0.5], [2])
    with pytest.raises(ValueError, match="one loss for each"):
        aurc([0.5, 0.4], [1])
    with pytest.raises(Undefined):
        aurc([], [])


def test_confidence_is_that_of_what_is_told():
    assert class_confidence([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]]).tolist() == [0.5, 0.9]


def test_a_record_that_weighs_twice_counts_as_two_and_nothing_has_no_area():
    random = np.random.default_rng(5)
    sure, wrong, weight = random.random(40), random.integers(0, 2, 40), random.integers(0, 3, 40)
    found = aurc(sure, wrong, np.stack([weight, np.ones(40), np.zeros(40)]))
    # by hand: a record's two halves are one step of coverage, so its risk counts twice
    order = np.argsort(-sure)
    risk = np.cumsum((weight * wrong)[order]) / np.maximum(np.cumsum(weight[order]), 1)
    assert found[0] == pytest.approx((risk * weight[order]).sum() / weight.sum())
    assert found[1] == pytest.approx(aurc(sure, wrong)) and np.isnan(found[2])
