"""Ensembles: one scale for all detectors, members by validation images alone, errors counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.metrics.ensemble import LEAST, MOST, Held, calibrated, choose, errors_together
from stages.metrics.inputs import Undefined
from stages.metrics.ranking import auroc


def test_a_scale_by_hand():
    good = [1.0, 2.0, 3.0, 4.0, 100.0]  # median 3, median absolute deviation 1: the outlier counts for nothing
    assert calibrated([3.0, 3.0 + 1.4826, 3.0 - 2 * 1.4826], good) == pytest.approx([0.0, np.arcsinh(1), -np.arcsinh(2)])


@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3), seed=st.integers(0, 99))
def test_units_and_origin_of_a_detector_do_not_matter(scale, shift, seed):
    rng = np.random.default_rng(seed)
    score, good = rng.normal(size=20), rng.normal(size=15)
    assert calibrated(scale * score + shift, scale * good + shift) == pytest.approx(calibrated(score, good), abs=1e-6)


def test_the_order_of_images_is_kept_so_one_detectors_auroc_is_too():
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=50), rng.random(50) < 0.4
    assert auroc(calibrated(score, rng.normal(size=9)), label) == auroc(score, label)


def test_what_cannot_be_calibrated_is_said():
    with pytest.raises(Undefined, match="no held-out good images"):
        calibrated([1.0], [])
    with pytest.raises(Undefined, match="one score"):
        calibrated([1.0], [2.0, 2.0, 2.0])
    assert np.isfinite(calibrated([5.0], [2.0, 2.0, 2.0, 3.0])).all()  # no median deviation, but a standard deviation


def held(scores, label):
    return {"c": Held(np.asarray(scores, dtype=float), np.asarray(label))}


def test_with_bad_images_held_out_the_best_stay_and_as_many_as_are_best_together():
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1], 60)
    noisy = {f"good{number}": held(label * 1.2 + rng.normal(size=120), label) for number in range(4)}
    useless = {f"bad{number}": held(rng.normal(size=120) * 3, label) for number in range(3)}
    choice = choose(useless | noisy)
    assert choice.members == ["good0", "good1", "good2", "good3"] and "AUROC" in choice.by


def test_without_bad_images_those_that_agree_stay():
    rng = np.random.default_rng(2)
    truth, label = rng.normal(size=80), np.zeros(80, dtype=int)
    models = {f"near{number}": held(truth + 0.3 * rng.normal(size=80), label) for number in range(5)}
    choice = choose({"odd": held(rng.normal(size=80), label), **models})
    assert choice.members == list(models) and "no bad ones" in choice.by


def test_the_number_of_members_is_bounded():
    label = np.zeros(10, dtype=int)
    models = {f"m{number}": held(np.arange(10) + number, label) for number in range(9)}
    assert len(choose(models).members) == MOST
    with pytest.raises(Undefined, match=f"at least {LEAST} detectors, here are 2"):
        choose({"a": held([1, 2], [0, 0]), "b": held([1, 2], [0, 0])})


def test_errors_together_by_hand():
    wrong = {
        "a": np.array([1, 1, 0, 0, 0, 0, 0, 0], bool),
        "b": np.array([1, 1, 0, 0, 0, 0, 0, 0], bool),
        "c": np.array([0, 0, 1, 1, 0, 0, 0, 0], bool),
    }
    assert errors_together(wrong) == [
        {"models": ["a", "b"], "both": 2, "by_chance": 0.5},
        {"models": ["a", "c"], "both": 0, "by_chance": 0.5},
        {"models": ["b", "c"], "both": 0, "by_chance": 0.5},
    ]
