"""Calibration, against scikit-learn, a fine grid of temperatures and values by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from stages.metrics.calibration import T_RANGE, brier, ece, nll, probability, reliability, temperature
from stages.metrics.inputs import Undefined


def drawn(count: int = 400, sharpness: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `sharpness` times those that the labels were drawn from."""
    random = np.random.default_rng(seed)
    truth = random.normal(0, 2, count)
    return sharpness * truth, (random.random(count) < probability(truth)).astype(int)


row = st.tuples(st.integers(-240, 240).map(lambda number: number / 8), st.integers(0, 1))  # so coarse that a quotient ties no two logits
sets = st.lists(row, min_size=2, max_size=40).filter(lambda rows: len({label for _, label in rows}) == 2)


def test_brier_and_likelihood_are_those_of_scikit_learn():
    logits, labels = drawn()
    assert brier(probability(logits), labels) == pytest.approx(brier_score_loss(labels, probability(logits)), abs=1e-12)
    assert nll(logits, labels) == pytest.approx(log_loss(labels, probability(logits)), abs=1e-9)


def test_certainty_in_the_wrong_costs_its_logit():
    assert nll([1000.0, -1000.0], [0, 0]) == pytest.approx(500)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_what_made_the_logits_too_sharp(sharpness):
    logits, labels = drawn(20_000, sharpness)
    assert temperature(logits, labels) == pytest.approx(sharpness, rel=0.05)


def test_the_temperature_is_the_best_of_a_fine_grid():
    logits, labels = drawn(60, 3.0, seed=4)
    grid = np.geomspace(*T_RANGE, 5000)
    best = grid[np.argmin([nll(logits / one, labels) for one in grid])]
    assert temperature(logits, labels) == pytest.approx(best, rel=2e-3)


def test_classes_that_part_or_are_mixed_up_end_at_a_limit():
    assert temperature([-1.0, -2.0, 3.0], [0, 0, 1]) == T_RANGE[0]
    assert temperature([1.0, 2.0, -3.0], [0, 0, 1]) == T_RANGE[1]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_temperature(label):
    with pytest.raises(Undefined, match="record"):
        temperature([0.5, -0.5], [label, label])


@settings(max_examples=40, deadline=None)
@given(sets)
def test_scaling_is_never_worse_and_moves_no_decision_and_no_rank(rows):
    logits, labels = (np.array(column) for column in zip(*rows, strict=True))
    found = temperature(logits, labels)
    scaled = probability(logits, found)
    assert T_RANGE[0] <= found <= T_RANGE[1] and nll(logits / found, labels) <= nll(logits, labels)
    assert ((scaled > 0.5) == (probability(logits) > 0.5)).all()
    assert roc_auc_score(labels, logits / found) == pytest.approx(roc_auc_score(labels, logits))


@settings(max_examples=40, deadline=None)
@given(sets, st.integers(1, 20), st.randoms())
def test_the_error_is_a_share_that_no_order_changes(rows, bins, random):
    shuffled = random.sample(rows, len(rows))
    one, other = (ece(probability(np.array(logits)), labels, bins) for logits, labels in (zip(*rows), zip(*shuffled)))
    assert 0 <= one <= 1 and one == pytest.approx(other, abs=1e-12)


def test_the_error_by_hand():
    """Two bins of two: 0.1 and 0.2 with no anomaly are 0.15 off; 0.6 and 0.9 with one are 0.75 against 0.5, 0.25 off; the mean is 0.2."""
    assert ece([0.9, 0.1, 0.6, 0.2], [1, 0, 0, 0], bins=2) == pytest.approx(0.2)


def test_bins_hold_equal_numbers_and_never_part_equal_probabilities():
    values = np.linspace(0, 1, 47)
    assert set(reliability(values, np.arange(47) % 2).count) == {3, 4}  # 47 = 13 * 3 + 2 * 4
    tied = reliability([0.5] * 30 + [0.7], [0] * 15 + [1] * 16)
    np.testing.assert_array_equal(tied.count, [30, 1])
    np.testing.assert_allclose(tied.observed, [0.5, 1.0])
    assert ece([0.5] * 30 + [0.7], [0] * 15 + [1] * 16) == pytest.approx(0.3 / 31)  # a bin counts as many times as it holds records


def test_true_probabilities_have_little_error_and_sharp_ones_more():
    logits, labels = drawn(20_000)
    assert ece(probability(logits), labels) < 0.02 < 0.08 < ece(probability(4 * logits), labels)


def test_the_interval_of_a_bin_is_that_of_wilson():
    """8 of 10, by the textbook: 0.490 to 0.943."""
    found = reliability([0.7] * 10, [1] * 8 + [0] * 2)
    assert (found.low[0], found.high[0]) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))


def test_logits_are_no_probabilities():
    with pytest.raises(ValueError, match=r"0\.\.1, got 3"):
        brier([0.2, 3.0], [0, 1])
