"""Temperature and vector scaling of several classes, against scikit-learn, a fine grid and numeric gradients."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.metrics import log_loss

from stages.metrics import class_calibration
from stages.metrics.calibration import temperature
from stages.metrics.class_calibration import class_ece, class_nll, class_probabilities, class_temperature, vector_scaling
from stages.metrics.inputs import Undefined


def drawn(count: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn from what they say."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (count, classes))
    place = (random.random((count, 1)) > class_probabilities(logits).cumsum(1)).sum(1)
    return logits, place.clip(max=classes - 1)


def test_the_likelihood_is_that_of_scikit_learn():
    logits, place = drawn(300)
    assert class_nll(logits, place) == pytest.approx(log_loss(place, class_probabilities(logits), labels=range(4)), abs=1e-9)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_logits_too_sharp_and_moves_no_decision(sharpness):
    logits, place = drawn(8000)
    found = class_temperature(sharpness * logits, place)
    assert found == pytest.approx(sharpness, rel=0.06)
    assert (class_probabilities(logits, found).argmax(1) == logits.argmax(1)).all()


def test_of_two_classes_the_temperature_is_that_of_their_difference():
    logits, place = drawn(500, 2)
    assert class_temperature(logits, place) == pytest.approx(temperature(logits[:, 1] - logits[:, 0], place), rel=1e-3)


def test_vector_scaling_finds_the_scales_and_offsets_that_were_put_in():
    logits, place = drawn(20_000)
    scale, offset = np.array([0.5, 1.0, 2.0, 3.0]), np.array([1.0, -1.0, 0.5, -0.5])
    found = vector_scaling((logits - offset) / scale, place)
    assert found.scale == pytest.approx(scale, rel=0.1)
    assert found.offset == pytest.approx(offset, abs=0.12)


def test_it_is_better_than_one_temperature_where_one_class_is_believed_in_too_readily():
    logits, place = drawn(1000)
    held_out = drawn(1000, seed=1)
    biased = np.array([0.0, 3.0, 0.0, 0.0])
    found = vector_scaling(logits + biased, place)
    t = class_temperature(logits + biased, place)
    after, one = class_nll(found.logits(held_out[0] + biased), held_out[1]), class_nll((held_out[0] + biased) / t, held_out[1])
    assert after < one - 0.1
    assert class_ece(class_probabilities(found.logits(held_out[0] + biased)), held_out[1]) < 0.05


def test_no_parameter_can_be_moved_to_a_lower_cost():
    logits, place = drawn(60, 3)
    found = vector_scaling(logits, place)

    def cost(parameters: np.ndarray) -> float:
        scale, offset = parameters[:3], parameters[3:]
        away = np.square(scale - 1).sum() + np.square(offset).sum()
        return class_nll(logits * scale + offset, place) + class_calibration.PRIOR * away / 2 / 60

    assert np.abs(approx_fprime(np.concatenate(found), cost, 1e-6)).max() < 1e-4


def test_a_class_without_records_is_left_as_it_is_and_few_records_move_little():
    logits, place = drawn(400)
    without = place != 3
    found = vector_scaling(logits[without], place[without])
    assert (found.scale[3], found.offset[3]) == (1, 0) and (found.scale[:3] != 1).all()
    few = vector_scaling(logits[:4], place[:4])
    assert np.abs(few.scale - 1).max() < 1 and np.abs(few.offset).max() < 1


def test_the_calibration_error_is_the_gap_of_confidence_and_accuracy():
    sure = np.tile([0.9, 0.1, 0.0], (100, 1))
    place = np.repeat([0, 1], [60, 40])
    assert class_ece(sure, place) == pytest.approx(0.3, abs=1e-9)


def test_no_record_and_a_class_without_a_column_are_refused():
    with pytest.raises(Undefined):
        class_nll(np.empty((0, 3)), [])
    with pytest.raises(ValueError, match="0..2"):
        class_nll(np.zeros((2, 3)), [0, 3])
