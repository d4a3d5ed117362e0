"""Conformal sets of classes and the verdicts from them, by simulation and by hand."""

import math

import numpy as np
import pytest

from stages.metrics.class_calibration import class_probabilities
from stages.metrics.class_sets import conformal_bound, fit_class_sets, judge_sets
from stages.metrics.verdicts import (
    ACCEPT,
    REJECT,
    REVIEW,
    VerdictRule,
    counts,
    fit_verdicts,
    two_classes,
    verdicts_of_sets,
)


def welds(count: int, seed: int, classes: int = 5, clear: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sure of themselves, and the true class: half of the records normal, which is 0."""
    random = np.random.default_rng(seed)
    place = np.where(random.random(count) < 0.5, 0, random.integers(1, classes, count))
    return class_probabilities(3 * (random.normal(0, 1, (count, classes)) + clear * np.eye(classes)[place])), place


def test_nine_in_ten_sets_hold_the_true_class():
    """The mean over 200 draws of 200 held-out records, as the promise is one over such draws; .90 + 1 / 201 at most."""
    found = [judge_sets(fit_class_sets(*welds(200, seed)).sets((test := welds(500, 10_000 + seed))[0]), test[1]).coverage for seed in range(200)]
    assert 0.895 < np.mean(found) < 0.915
    assert abs(np.median(found) - 0.9) < 0.02


def test_by_class_every_class_is_covered_and_without_it_the_rare_are_not():
    fit, (values, place) = welds(2000, 0, clear=1.0), welds(20_000, 1, clear=1.0)
    each = judge_sets(fit_class_sets(*fit, by_class=True).sets(values), place)
    both = judge_sets(fit_class_sets(*fit).sets(values), place)
    assert min(each.by_class) > 0.86 and max(each.by_class) - min(each.by_class) < 0.07
    assert both.coverage == pytest.approx(0.9, abs=0.02) and each.coverage == pytest.approx(0.9, abs=0.02)


def test_a_better_model_has_smaller_sets():
    sizes = []
    for clear in (0.5, 1.5, 3.0):
        values, place = welds(1000, 2, clear=clear)
        sizes.append(judge_sets(fit_class_sets(*welds(1000, 3, clear=clear)).sets(values), place).size)
    assert sizes[0] > sizes[1] + 0.5 and sizes[1] > sizes[2] + 0.2 and sizes[2] >= 1


def test_the_bound_is_the_rank_that_the_promise_asks_for():
    score = np.arange(1, 10) / 10  # nine records: the ceil(10 * .9) = 9th
    assert conformal_bound(score, 0.9) == 0.9
    assert conformal_bound(score, 0.8) == 0.8
    assert conformal_bound(score[:8], 0.9) == math.inf  # eight cannot promise it


def test_too_few_records_of_a_class_put_it_in_every_set_and_no_set_is_empty():
    values, place = welds(400, 4)
    few = np.flatnonzero(place != 4)[:300]
    kept = np.r_[few, np.flatnonzero(place == 4)[:3]]
    found = fit_class_sets(values[kept], place[kept], by_class=True)
    assert np.isinf(found.bound).nonzero()[0].tolist() == [4] and found.sets(values)[:, 4].all()
    strict = fit_class_sets(values, place, coverage=0.3)
    assert strict.sets(values).any(1).all() and not (1 - values <= strict.bound).any(1).all()


def test_a_set_of_normal_alone_is_accepted_one_without_is_rejected_and_the_rest_goes_to_a_person():
    sets = np.array([[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=bool)
    assert verdicts_of_sets(sets).tolist() == [ACCEPT, REVIEW, REJECT, REJECT, REVIEW]
    assert verdicts_of_sets(sets, normal=1).tolist() == [REJECT, REJECT, ACCEPT, REVIEW, REVIEW]


def test_at_most_a_tenth_of_good_parts_is_rejected_and_of_bad_ones_accepted():
    good, bad = [], []
    for seed in range(40):
        rule, (values, place) = fit_verdicts(*welds(600, seed)), welds(2000, 500 + seed)
        told = rule.verdicts(values)
        good.append((told[place == 0] == REJECT).mean())
        bad.append((told[place > 0] == ACCEPT).mean())
    assert np.mean(good) < 0.105 and np.mean(bad) < 0.105


def test_rare_kinds_of_fault_share_the_promise_of_all_faults_so_that_good_parts_can_still_be_accepted():
    values, place = welds(70, 8)
    assert min(np.bincount(place, minlength=5)[1:]) < 9 <= np.bincount(place)[0]  # of some kind too few for 90 %
    rule = fit_verdicts(values, place)
    rare = np.flatnonzero(np.bincount(place, minlength=5) < 9)
    bad = np.flatnonzero(place > 0)
    assert {rule.bound[one] for one in rare} == {conformal_bound(1 - values[bad, place[bad]], 0.9)}
    later = welds(4000, 9)
    told = rule.verdicts(later[0])
    assert (told == ACCEPT).mean() > 0.1 and (told[later[1] > 0] == ACCEPT).mean() < 0.15
    few = np.r_[np.flatnonzero(place == 0), bad[:5]]
    assert (fit_verdicts(values[few], place[few]).verdicts(later[0]) != ACCEPT).all()


def test_a_probability_is_two_classes_and_a_rule_survives_a_file():
    random = np.random.default_rng(6)
    label = random.integers(0, 2, 500)
    chance = 1 / (1 + np.exp(-random.normal(3 * label - 1.5, 1.5)))
    rule = fit_verdicts(two_classes(chance), label)
    told = rule.verdicts(two_classes(chance))
    assert told[chance.argmax()] == REJECT and told[chance.argmin()] == ACCEPT
    assert np.all(np.diff([{ACCEPT: 0, REVIEW: 1, REJECT: 2}[one] for one in told[np.argsort(chance)]]) >= 0)
    again = VerdictRule.from_dict(rule.to_dict())
    assert (again.verdicts(two_classes(chance)) == told).all()
    unpromised = fit_verdicts(two_classes(chance[:6]), np.array([0, 0, 0, 0, 1, 1]))
    assert unpromised.to_dict()["bound"] == [None, None] and (unpromised.verdicts(two_classes(chance)) == REVIEW).all()


def test_counts_by_verdict():
    told = np.array([ACCEPT, ACCEPT, REVIEW, REJECT])
    assert counts(told, [0, 1, 0, 1]) == {
        ACCEPT: {"normal": 1, "anomalous": 1},
        REVIEW: {"normal": 1, "anomalous": 0},
        REJECT: {"normal": 0, "anomalous": 1},
    }
