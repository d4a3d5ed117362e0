import numpy as np
import pytest
import torch

from stages.timeseries.masked.scoring import MAD, Calibration, Multiscale, liveliness, moving_mean


def noise(steps: int, variables: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(steps, variables, generator=torch.Generator().manual_seed(seed))


def test_the_weights_of_each_mode_by_hand():
    components = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 60.0]])
    calibration = Calibration().fit(components)
    given = torch.tensor([[5.0, 40.0]])
    assert calibration.combined(given, "fixed", 0.5).item() == 25.0
    assert calibration.combined(given, "adaptive", 0.5).item() == pytest.approx(5 + 2 / 30 * 40)
    assert calibration.combined(given, "normalised", 0.5).item() == pytest.approx((5 - 2) / MAD + (40 - 20) / (10 * MAD), rel=1e-6)


def test_one_large_score_of_the_calibration_data_hardly_moves_the_normalised_mode():
    components = noise(1001, 2).abs()
    spoilt = components.clone()
    spoilt[0] = 1e6
    given = torch.tensor([[3.0, 3.0]])
    first, second = (Calibration().fit(one).combined(given, "normalised", 0.5) for one in (components, spoilt))
    assert first.item() == pytest.approx(second.item(), rel=0.02)


@pytest.mark.parametrize("length", [1, 2, 5, 8, 30])
def test_moving_means_against_plain_loops(length):
    series = noise(21, 2)
    for step, found in enumerate(moving_mean(series, length)):
        first = step - length // 2
        torch.testing.assert_close(found, series[max(first, 0) : max(first + length, 0)].mean(0))


def test_a_sensor_that_stands_still_changes_less_than_noise_even_where_more_was_expected_of_it():
    series = noise(300, 2)
    series[100:160, 0] = 0.3
    series[100:160, 1] = torch.linspace(0, 12, 60).sin()  # what was expected moves; the sensor does not
    variance, change = liveliness(series, 20).split(2, dim=1)
    normal = torch.cat([change[:85], change[175:]])
    assert (change[115:145] < normal.min(0).values - 1).all()
    assert (variance[115:145, 0] < variance[:85, 0].min() - 2).all()


def test_a_shift_is_no_change_of_liveliness_but_at_its_edges():
    series = noise(300, 1)
    shifted = series.clone()
    shifted[100:160] += 0.5
    torch.testing.assert_close(liveliness(shifted, 20)[115:145], liveliness(series, 20)[115:145], rtol=0.2, atol=0.2)


def test_on_normal_data_the_squared_length_has_the_median_one_at_each_length():
    normal = [noise(2000, 4, seed) for seed in range(2)]
    for length in (1, 10, 40):
        parts = Multiscale((length,), 0.0).fit(normal)(torch.cat(normal))
        assert parts.sum(1).median().item() == pytest.approx(1.0, abs=0.1)


def test_whitening_makes_the_level_score_blind_to_scale_and_mixing():
    """A squared Mahalanobis length is the same after any invertible linear map of the variables (up to the ridge on the covariance)."""
    normal, test = noise(4000), noise(300, seed=1)
    test[100:140, 1] += 1.0
    mix = torch.tensor([[2.0, 0.3, 0.0], [0.0, 1.0, -0.4], [0.0, 0.0, 0.5]])
    plain, mixed = (Multiscale((20,), 0.0).fit([normal @ by])(test @ by).sum(1) for by in (torch.eye(3), mix))
    torch.testing.assert_close(plain, mixed, rtol=0.05, atol=0.05)


def test_a_shift_too_small_for_a_step_is_plain_in_the_mean_of_many():
    normal, test = noise(4000, 1), noise(600, 1, seed=2)
    test[300:340] += 1.2
    single, many = (Multiscale((length,), 0.0).fit([normal])(test).sum(1) for length in (1, 40))
    assert many[320] > 2 * many[:250].max() and single[310:330].mean() < single[:250].max()


def test_the_parts_of_variables_are_not_negative_and_name_the_one_that_moved():
    normal, test = noise(4000), noise(300, seed=1)
    test[100:140, 2] += 2.0
    parts = Multiscale((5, 20), 0.5).fit([normal])(test)
    assert (parts >= 0).all() and (parts[110:130].argmax(1) == 2).all()


def test_the_state_is_the_whole_of_it():
    scorer = Multiscale((5, 20), 0.5).fit([noise(500)])
    fresh = Multiscale((5, 20), 0.5)
    fresh.load_state_dict(scorer.state_dict())
    assert torch.equal(scorer(noise(50, seed=3)), fresh(noise(50, seed=3)))


def test_a_variable_that_never_errs_and_a_short_stretch_give_finite_scores():
    normal = noise(60)
    normal[:, 1] = 0
    assert np.isfinite(Multiscale((1, 80), 0.5).fit([normal])(noise(5)).numpy()).all()


def test_lengths_must_be_windows():
    with pytest.raises(ValueError, match="at least one window"):
        Multiscale((0, 5), 0.5)
