import pytest
import torch

from stages.timeseries.masked.scoring import MAD, Calibration, Errors, Multiscale, changes, moving_mean


def noise(steps: int, variables: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(steps, variables, generator=torch.Generator().manual_seed(seed))


def found(signed: torch.Tensor) -> Errors:
    """Where nothing was expected, errors are the values."""
    return Errors(signed, signed.square(), signed.square(), signed.clone())


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


def test_on_normal_data_the_squared_length_has_the_median_one_at_each_length():
    normal = [found(noise(2000, 4, seed)) for seed in range(2)]
    for length in (1, 10, 40):
        scorer = Multiscale((length,), 0.0).fit(normal)
        assert torch.cat([scorer(one) for one in normal]).sum(1).median().item() == pytest.approx(1.0, abs=0.1)


def test_whitening_makes_the_level_score_blind_to_scale_and_mixing():
    """A squared Mahalanobis length is the same after any invertible linear map of the variables (up to the ridge on the covariance)."""
    normal, test = noise(4000), noise(300, seed=1)
    test[100:140, 1] += 1.0
    mix = torch.tensor([[2.0, 0.3, 0.0], [0.0, 1.0, -0.4], [0.0, 0.0, 0.5]])
    plain, mixed = (Multiscale((20,), 0.0).fit([found(normal @ by)])(found(test @ by)).sum(1) for by in (torch.eye(3), mix))
    torch.testing.assert_close(plain, mixed, rtol=0.05, atol=0.05)


def test_a_shift_too_small_for_a_step_is_plain_in_the_mean_of_many():
    normal, test = noise(4000, 1), noise(600, 1, seed=2)
    test[300:340] += 1.2
    single, many = (Multiscale((length,), 0.0).fit([found(normal)])(found(test)).sum(1) for length in (1, 40))
    assert many[320] > 2 * many[:250].max() and single[310:330].mean() < single[:250].max()


def test_a_sensor_that_stands_still_is_found_by_its_liveliness_even_where_what_was_expected_of_it_moves():
    normal, test = found(noise(4000)), found(noise(300, seed=1))
    test.values[100:140, 2] = test.values[99, 2]
    test.signed[100:140, 2] = torch.linspace(0, 9, 40).sin()
    blind, lively = (Multiscale((10, 20), weight).fit([normal])(test) for weight in (0.0, 1.0))
    assert lively.sum(1)[110:130].min() > 3 * lively.sum(1)[:80].max() and (lively[110:130].argmax(1) == 2).all()
    assert blind.sum(1)[110:130].min() < blind.sum(1)[:80].max()


def test_a_change_is_from_the_step_before():
    assert changes(torch.tensor([[1.0], [4.0], [2.0]])).tolist() == [[3.0], [3.0], [-2.0]]
    assert changes(torch.tensor([[5.0]])).tolist() == [[0.0]]


def test_the_parts_of_variables_are_not_negative_and_name_the_one_that_moved():
    normal, test = noise(4000), noise(300, seed=1)
    test[100:140, 2] += 2.0
    parts = Multiscale((5, 20), 0.5).fit([found(normal)])(found(test))
    assert (parts >= 0).all() and (parts[110:130].argmax(1) == 2).all()


def test_the_state_is_the_whole_of_it():
    scorer = Multiscale((5, 20), 0.5).fit([found(noise(500))])
    fresh = Multiscale((5, 20), 0.5)
    fresh.load_state_dict(scorer.state_dict())
    assert torch.equal(scorer(found(noise(50, seed=3))), fresh(found(noise(50, seed=3))))


def test_a_variable_that_never_errs_and_a_short_stretch_give_finite_scores():
    normal = noise(60)
    normal[:, 1] = 0
    scorer = Multiscale((1, 80), 0.5).fit([found(normal)])
    assert scorer(found(noise(5))).isfinite().all() and scorer(found(noise(1))).isfinite().all()


def test_lengths_must_be_windows():
    with pytest.raises(ValueError, match="at least one window"):
        Multiscale((0, 5), 0.5)
