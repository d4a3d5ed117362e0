"""PaDiM against its equations. The letters are those of the list of what implementations get wrong."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.covariance import EmpiricalCovariance

from stages.detectors.density.padim import PaDiM
from stages.training import Run
from stages.types import Refusal
from tests.arrays import ArrayBatches, features_of, grid_features, normal_pixels, upsampled

SMALL = {"channels": 20, "blur_sigma": 1.0}  # for the contract test


def fitted(features, seed: int = 0, **options) -> PaDiM:
    return PaDiM(**options).fit(ArrayBatches(features), None, Run(seed=seed, quiet=True))


def test_padim_a_fewer_images_than_channels_still_give_finite_scores():
    """The covariance of 3 images in 20 dimensions has rank 2; epsilon alone makes it invertible."""
    detector = fitted(grid_features(3, 20), layers=["layer2"], channels=None)
    scores = detector.score(grid_features(4, 20, seed=1)).image_score
    assert scores.isfinite().all() and scores.min() > 1


def test_padim_a_epsilon_alone_decides_where_images_never_differ():
    """Constant training images: the covariance is epsilon I, so a step of 0.3 in one channel is 0.3 / sqrt(0.01) = 3 away."""
    features = grid_features(4, 2)
    features["layer2"][:] = 5.0
    query = {**features, "layer2": features["layer2"].clone()}
    query["layer2"][:, 0] += 0.3
    scores = fitted(features, layers=["layer2"], channels=None, epsilon=0.01, blur_sigma=0.0).score(query).image_score
    assert scores.tolist() == pytest.approx([3.0] * 4, rel=1e-5)


def test_padim_a_without_epsilon_is_refused():
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        PaDiM(epsilon=0.0)


def test_padim_b_the_channels_are_drawn_once_by_seed_and_saved():
    features = features_of(normal_pixels(5))
    one, again, other = (fitted(features, seed=seed, channels=12) for seed in (0, 0, 1))
    assert torch.equal(one.kept, again.kept) and not torch.equal(one.kept, other.kept)
    assert "kept" in one.state_dict() and len(one.kept.unique()) == 12 and one.kept.max() < 36
    kept = one.kept.clone()
    one.score(features)
    assert torch.equal(one.kept, kept)


@pytest.mark.parametrize(("channels", "expected"), [(None, 36), (10, 10), (36, 36), (100, 36)])
def test_padim_b_more_channels_than_there_are_keeps_all(channels, expected):
    assert len(fitted(features_of(normal_pixels(5)), channels=channels).kept) == expected


def test_padim_c_the_factor_is_a_cholesky_factor_of_float64_and_no_inverse_is_kept():
    """Ill-conditioned on purpose: two channels that differ by 1e-3 of their spread. The distance must be right to 1e-3."""
    generator = torch.Generator().manual_seed(0)
    features = grid_features(200, 2)
    features["layer2"] = 30 * torch.randn(200, 1, 4, 4, generator=generator).repeat(1, 2, 1, 1)
    features["layer2"][:, 1] += 0.03 * torch.randn(200, 4, 4, generator=generator)
    detector = fitted(features, layers=["layer2"], channels=None, epsilon=1e-4, blur_sigma=0.0)
    values = features["layer2"].flatten(2).double().numpy()
    worst = []
    for position in range(16):
        covariance = EmpiricalCovariance().fit(values[:, :, position]).covariance_ * 200 / 199 + 1e-4 * np.eye(2)
        centred = values[:5, :, position] - values[:, :, position].mean(axis=0)
        worst.append(np.sqrt(np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)))
    got = detector.score({key: value[:5] for key, value in features.items()}).anomaly_map
    expected = upsampled(torch.tensor(np.array(worst).T).view(5, 4, 4), 32)
    np.testing.assert_allclose(got.flatten(1).amax(dim=1), expected.flatten(1).amax(dim=1), rtol=1e-3)
    assert detector.factor.shape == (16, 3) and set(detector.state_dict()) == {"kept", "mean", "factor"}


@pytest.mark.parametrize("memory_gb", [1e-9, 16 * 36 * 36 * 24e-9 / 3, 1.0])
def test_padim_d_positions_in_passes_give_the_same_model(memory_gb, run):
    features = features_of(normal_pixels(7))
    batches = ArrayBatches(features)
    detector = PaDiM(layers=["layer2", "layer3"], channels=None, memory_gb=memory_gb).fit(batches, None, run)
    whole = fitted(features, layers=["layer2", "layer3"], channels=None)
    torch.testing.assert_close(detector.factor, whole.factor, rtol=1e-6, atol=1e-7)
    assert torch.equal(detector.mean, whole.mean)
    passes = run.history[0]["passes"]
    assert batches.reads == 1 + 2 * passes, "two batches a pass, and one look at the shapes"
    assert passes == {1e-9: 64, 1.0: 1}.get(memory_gb, passes) and (memory_gb in (1e-9, 1.0) or 1 < passes < 64)


def test_padim_e_scores_are_not_rescaled_over_the_images_that_are_scored():
    detector = fitted(features_of(normal_pixels(8)))
    few, many = normal_pixels(3, seed=5), torch.cat([normal_pixels(3, seed=5), 255 - normal_pixels(2, seed=6)])
    assert torch.equal(detector.score(features_of(few)).image_score, detector.score(features_of(many)).image_score[:3])
    assert 0 < detector.score(features_of(few)).image_score.min(), "the lowest of a set that was rescaled would be 0"


def test_padim_f_coarse_layers_are_repeated_not_interpolated():
    features = {"layer1": torch.rand(3, 2, 4, 4), "layer2": torch.rand(3, 3, 2, 2), "pixels": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}
    detector = fitted(features, layers=["layer1", "layer2"], channels=None)
    embedded = detector._embed(features).transpose(1, 2).unflatten(2, (4, 4))
    repeated = features["layer2"].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(embedded, torch.cat([features["layer1"], repeated], dim=1))


def test_the_kept_channels_are_those_of_the_concatenated_layers():
    features = features_of(normal_pixels(5))
    some, every = fitted(features, channels=9), fitted(features, channels=None)
    assert torch.equal(some._embed(features), every._embed(features)[:, :, some.kept])


def test_a_layer_of_which_no_channel_is_drawn_is_no_obstacle():
    """With one channel of 36 two of the three layers give none."""
    features = features_of(normal_pixels(5))
    one, every = fitted(features, channels=1), fitted(features, channels=None)
    assert torch.equal(one._embed(features), every._embed(features)[:, :, one.kept])


def test_the_map_is_bilinear_then_blurred_and_its_maximum_is_the_score():
    features = grid_features(30, 3)
    detector = fitted(features, layers=["layer2"], channels=None)
    query = grid_features(2, 3, seed=7)
    values, wanted = (one["layer2"].flatten(2).double().numpy() for one in (features, query))
    scores = np.zeros((2, 16))
    for position in range(16):
        inverse = np.linalg.inv(np.cov(values[:, :, position], rowvar=False) + 0.01 * np.eye(3))
        centred = wanted[:, :, position] - values[:, :, position].mean(axis=0)
        scores[:, position] = np.sqrt(np.einsum("ni,ij,nj->n", centred, inverse, centred))
    expected = np.stack([gaussian_filter(one, 4.0) for one in upsampled(torch.tensor(scores).view(2, 4, 4), 32).numpy()])
    image_score, anomaly_map = detector.score(query)
    np.testing.assert_allclose(anomaly_map, expected, rtol=1e-4)
    np.testing.assert_allclose(image_score, expected.max(axis=(1, 2)), rtol=1e-4)


def test_one_training_image_is_refused(run):
    with pytest.raises(Refusal, match="at least 2 normal training images for a covariance, got 1"):
        PaDiM(layers=["layer2"]).fit(ArrayBatches(grid_features(1, 3)), None, run)


def test_another_grid_than_the_one_learnt_is_refused():
    detector = fitted(grid_features(5, 3), layers=["layer2"])
    with pytest.raises(ValueError, match="knows 16 positions, but these features have 25"):
        detector.score(grid_features(2, 3, grid=(5, 5)))


def test_features_that_are_not_finite_are_refused_by_the_name_of_the_image(run):
    features = grid_features(6, 4)
    features["layer2"][2, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"features of image0, image1, image2, image3 hold NaN or infinity"):
        PaDiM(layers=["layer2"]).fit(ArrayBatches(features), None, run)
