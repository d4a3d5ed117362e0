"""DFKDE against its formulas. The letters are those of the list of what implementations get wrong, in the order given there."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import gaussian_kde
from sklearn.decomposition import PCA

from stages.detectors.density.dfkde import DFKDE
from stages.training import Run
from stages.types import Refusal
from tests.arrays import ArrayBatches, features_of, grid_features, normal_pixels

SMALL = {"layers": ["layer1", "layer2"], "components": 4}  # for the contract test


def fitted(features, **options) -> DFKDE:
    return DFKDE(**{"layers": ["layer2"], "components": 3, **options}).fit(ArrayBatches(features), None, Run(seed=0, quiet=True))


def one_channel(*values: float):
    return {"layer2": torch.tensor(values).view(-1, 1, 1, 1), "pixels": torch.zeros(len(values), 3, 8, 8, dtype=torch.uint8)}


def projected(train, test) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) float64 of both, by scikit-learn."""
    seen, asked = (features["layer2"].double().mean(dim=(2, 3)).numpy() for features in (train, test))
    pca = PCA(n_components=3, svd_solver="full").fit(seen)
    return pca.transform(seen), pca.transform(asked)


def test_the_density_by_hand():
    """Images at 2 and 6 are -1 and 1 after centring and scaling: variance 2, times Scott's 2^(-2/5). In the middle, both kernels are 1 away."""
    variance = 2 * 2 ** (-2 / 5)
    expected = -0.5 / variance - 0.5 * math.log(2 * math.pi * variance)
    assert -fitted(one_channel(2, 6)).score(one_channel(4)).image_score.item() == pytest.approx(expected, rel=1e-5)


def test_the_density_is_that_of_scipy():
    train, test = grid_features(40, 8), grid_features(6, 8, seed=1)
    seen, asked = projected(train, test)
    length = np.linalg.norm(seen, axis=1).max()
    expected = gaussian_kde((seen / length).T, bw_method="scott").logpdf((asked / length).T)
    got = fitted(train).score(test)
    assert (-got.image_score).tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4) and got.anomaly_map is None


def test_with_unit_length_the_density_is_that_of_scipy_on_the_sphere():
    train, test = grid_features(40, 8), grid_features(6, 8, seed=1)
    seen, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in projected(train, test))
    expected = gaussian_kde(seen.T, bw_method="scott").logpdf(asked.T)
    assert (-fitted(train, scaling="norm").score(test).image_score).tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)


def test_the_largest_norm_shifts_every_log_density_by_the_same():
    """A kernel whose shape is the data's covariance is blind to scale: features ten times as large give the same scores."""
    train, test = grid_features(40, 8), grid_features(6, 8, seed=1)
    larger = [{**features, "layer2": 10 * features["layer2"]} for features in (train, test)]
    torch.testing.assert_close(fitted(train).score(test).image_score, fitted(larger[0]).score(larger[1]).image_score, rtol=1e-4, atol=1e-4)


def test_dfkde_a_far_images_do_not_underflow_and_stay_apart():
    """exp(-1e4) is 0 even in float64, and 1e-300 is 0 in float32: -log p must grow with the square of the distance all the same."""
    detector = fitted(one_channel(0, 1, 2, 3, 4))
    scores = detector.score(one_channel(1e3, 1e4, 1e5)).image_score
    assert scores.isfinite().all() and scores[0] > 1e4
    assert (scores[1:] / scores[:-1]).tolist() == pytest.approx([100, 100], rel=0.05)


def test_dfkde_b_the_order_is_that_of_the_probability_with_hand_set_constants_which_alone_ties():
    detector = fitted(one_channel(0, 1, 2, 3, 4))
    scores = detector.score(one_channel(2, 5, 7, 40, 100, 200)).image_score
    probability = 1 / (1 + torch.exp(0.05 * (-scores - 12)))
    assert (scores.diff() > 0).all() and (probability.diff() >= 0).all()
    assert probability[-1] == probability[-2] == 1


def test_dfkde_c_layers_are_concatenated_along_the_features_and_averaged_over_their_grids():
    features = features_of(normal_pixels(9))
    detector = fitted(features, layers=["layer1", "layer3"])
    assert len(detector.points) == 9 and len(detector.mean) == 8 + 16
    expected = torch.cat([features[layer].mean(dim=(0, 2, 3)) for layer in ("layer1", "layer3")])
    torch.testing.assert_close(detector.mean, expected, rtol=1e-4, atol=1e-6)


def test_dfkde_d_of_more_images_than_points_some_are_drawn_by_seed():
    features = grid_features(30, 8)
    one, again = fitted(features, max_points=12), fitted(features, max_points=12)
    other = DFKDE(layers=["layer2"], components=3, max_points=12).fit(ArrayBatches(features), None, Run(seed=1, quiet=True))
    assert one.points.shape == (12, 3) and torch.equal(one.points, again.points) and not torch.equal(one.points, other.points)
    assert DFKDE().max_points == 40_000


def test_fewer_images_than_axes_keep_what_they_span_and_the_same_image_twice_is_refused():
    assert fitted(grid_features(4, 8), components=16).axes.shape == (8, 3)
    assert fitted(grid_features(4, 8), components=16).score(grid_features(5, 8, seed=1)).image_score.isfinite().all()
    with pytest.raises(Refusal, match="at least 2 normal training images that differ, got 3"):
        fitted(one_channel(0.3, 0.3, 0.3))


@pytest.mark.parametrize(("options", "message"), [({"components": 0}, "components"), ({"scaling": "unit"}, "scale or norm, got 'unit'")])
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DFKDE(**options)


def test_another_encoder_is_refused_and_broken_features_named():
    with pytest.raises(ValueError, match="DFKDE knows 8 channels, these features have 5"):
        fitted(grid_features(9, 8)).score(grid_features(1, 5))
    broken = grid_features(4, 8)
    broken["layer2"][2, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="image2.* hold NaN"):
        fitted(broken)
