"""DFM against its formulas. The letters are those of the list of what implementations get wrong, in the order given there."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from stages.detectors.density.dfm import DFM
from stages.training import Run
from stages.types import Refusal
from tests.arrays import ArrayBatches, features_of, grid_features, normal_pixels, upsampled

SMALL = {"layer": "layer1", "pooling": 2}  # for the contract test


def fitted(features, **options) -> DFM:
    return DFM(**{"layer": "layer2", "pooling": 2, **options}).fit(ArrayBatches(features), None, Run(seed=0, quiet=True))


def correlated(count: int, width: int = 6, seed: int = 0):
    """A 4x4 grid whose vectors lie near three directions."""
    features = grid_features(count, width, seed=seed)
    mixing = torch.randn(3, width * 16, generator=torch.Generator().manual_seed(9))
    loading = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed + 1))
    features["layer2"] = (5 + 0.1 * features["layer2"].flatten(1) + loading @ mixing).view(count, width, 4, 4)
    return features


def vectors(features) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(features["layer2"], 2).flatten(1).double()


def test_a_vector_of_the_subspace_scores_nothing_and_its_distance_from_it_is_squared():
    """By hand: two channels on one cell, images (1, 5), (3, 5), (5, 5): the subspace is the line y = 5. (9, 5) lies on it; (2, 8) is 3 away."""
    features = {"layer2": torch.tensor([[1.0, 5], [3, 5], [5, 5]]).view(3, 2, 1, 1), "pixels": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}
    detector = fitted(features, pooling=1)
    query = {"layer2": torch.tensor([[9.0, 5], [2, 8]]).view(2, 2, 1, 1), "pixels": features["pixels"][:2]}
    assert detector.score(query).image_score.tolist() == pytest.approx([0, 9], abs=1e-5)


def test_the_error_is_that_of_scikit_learn():
    train, test = correlated(20), correlated(5, seed=7)
    reference = PCA(n_components=0.97, svd_solver="full").fit(vectors(train).numpy())
    rebuilt = torch.from_numpy(reference.inverse_transform(reference.transform(vectors(test).numpy())))
    expected = (vectors(test) - rebuilt).square().sum(dim=1).float()
    torch.testing.assert_close(fitted(train).score(test).image_score, expected, rtol=1e-4, atol=1e-5)


def test_the_cells_of_the_map_add_up_to_the_image_score():
    """The map is the error of each pooled cell, summed over channels, bilinear and without a blur."""
    train, test = correlated(20), correlated(5, seed=7)
    detector = fitted(train)
    image_score, anomaly_map = detector.score(test)
    centred = vectors(test) - detector.mean.double()
    outside = centred - centred @ detector.axes.double() @ detector.axes.T.double()
    cells = outside.square().view(5, 6, 2, 2).sum(dim=1).float()
    torch.testing.assert_close(cells.sum(dim=(1, 2)), image_score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(anomaly_map, upsampled(cells, 32), rtol=1e-4, atol=1e-5)


def test_dfm_a_the_subspace_of_fewer_images_than_dimensions_is_found_without_a_covariance():
    """12 images of 2,000 numbers: all axes rebuild the training images."""
    generator = torch.Generator().manual_seed(0)
    features = {"layer2": torch.randn(12, 2000, 1, 1, generator=generator), "pixels": torch.zeros(12, 3, 8, 8, dtype=torch.uint8)}
    detector = fitted(features, pooling=1, variance=1.0)
    assert detector.axes.shape[1] in (11, 12) and detector.score(features).image_score.max() < 1e-4


def test_dfm_a_the_decomposition_is_in_float64():
    """A mean of 1e4 with a spread of 1e-2 has three digits left in float32: the axis must be right to 1e-3 all the same."""
    offsets = torch.tensor([[2.0, 1], [-2, -1], [4, 2], [-4, -2]]) * 0.0078125  # exact beside 1e4
    features = {"layer2": (8192 + offsets).view(4, 2, 1, 1), "pixels": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}
    detector = fitted(features, pooling=1)
    assert detector.axes[:, 0].abs().tolist() == pytest.approx([2 / math.sqrt(5), 1 / math.sqrt(5)], abs=1e-6)


@pytest.mark.parametrize(("variance", "axes"), [(0.79, 1), (0.81, 2), (0.94, 2), (0.96, 3)])
def test_dfm_b_the_axes_are_the_first_that_hold_the_share_of_variance(variance, axes):
    """Three channels with variances 16, 3 and 1 hold 0.8, 0.95 and 1 of it."""
    corners = torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)]) * torch.tensor([16.0, 3, 1]).sqrt()
    features = {"layer2": corners.view(8, 3, 1, 1), "pixels": torch.zeros(8, 3, 8, 8, dtype=torch.uint8)}
    assert fitted(features, pooling=1, variance=variance).axes.shape[1] == axes


@pytest.mark.parametrize("score_type", ["fre", "nll"])
def test_dfm_c_the_mean_is_subtracted_from_a_copy(score_type):
    """Also where nothing is pooled and the vectors could be views of the stored features."""
    features = correlated(8)
    before = features["layer2"].clone()
    detector = fitted(features, pooling=1, score_type=score_type)
    first = detector.score(features).image_score
    assert torch.equal(features["layer2"], before) and torch.equal(detector.score(features).image_score, first)


def test_dfm_d_the_likelihood_is_that_of_a_gaussian_in_the_subspace_whatever_the_grid():
    """-2 log p - r log(2 pi), SciPy's density with the 1/N covariance of the projections, on 2x2 cells of 6 channels."""
    train, test = correlated(30), correlated(5, seed=7)
    detector = fitted(train, score_type="nll")
    axes, mean = detector.axes.double(), detector.mean.double()
    projected = (vectors(train) - mean) @ axes
    density = multivariate_normal(mean=projected.mean(dim=0).numpy(), cov=(projected.T @ projected / 30).numpy())
    expected = -2 * density.logpdf(((vectors(test) - mean) @ axes).numpy()) - axes.shape[1] * math.log(2 * math.pi)
    got = detector.score(test)
    assert got.anomaly_map is None and got.image_score.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_dfm_d_the_likelihood_does_not_see_what_lies_outside():
    """The reason why FRE is the default: a step at a right angle to the subspace changes the error by its square, the likelihood not at all."""
    train = correlated(20)
    nll, fre = fitted(train, score_type="nll", pooling=1), fitted(train, pooling=1)
    step = torch.linalg.qr(torch.cat([fre.axes, torch.ones(len(fre.mean), 1)], dim=1)).Q[:, -1].view(6, 4, 4)
    moved = {**train, "layer2": fre.mean.view(1, 6, 4, 4) + 3 * step[None]}
    still = {**train, "layer2": fre.mean.view(1, 6, 4, 4)}
    assert fre.score(moved).image_score.item() == pytest.approx(9, rel=1e-3)
    assert nll.score(moved).image_score.item() == pytest.approx(nll.score(still).image_score.item(), abs=1e-2)


def test_cells_cover_a_grid_that_the_kernel_does_not_divide():
    """14 cells at pooling 4 give 4 windows: a change in the last row must be seen."""
    features = {
        "layer2": torch.randn(6, 2, 14, 14, generator=torch.Generator().manual_seed(0)),
        "pixels": torch.zeros(6, 3, 56, 56, dtype=torch.uint8),
    }
    detector = fitted(features, pooling=4)
    changed = {**features, "layer2": features["layer2"].clone()}
    changed["layer2"][:, :, 13] += 50
    assert len(detector.mean) == 2 * 4 * 4
    assert (detector.score(changed).image_score > 100 * detector.score(features).image_score).all()


def test_images_that_never_differ_leave_the_whole_deviation_as_error_and_no_density():
    features = grid_features(3, 2)
    features["layer2"][:] = 1.0
    other = {**features, "layer2": features["layer2"] + 2.0}
    assert fitted(features, pooling=4).score(other).image_score.tolist() == pytest.approx([8.0] * 3)
    with pytest.raises(Refusal, match="no density: use score_type fre"):
        fitted(features, score_type="nll")


@pytest.mark.parametrize(
    ("options", "message"), [({"pooling": 0}, "pooling"), ({"variance": 1.5}, "variance"), ({"score_type": "mse"}, "fre or nll, got 'mse'")]
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DFM(**options)


def test_one_image_and_another_image_size_are_refused_and_broken_features_named(run):
    with pytest.raises(Refusal, match="at least 2 normal training images"):
        fitted(correlated(1))
    with pytest.raises(ValueError, match=r"DFM knows 24 dimensions, but these features have \(6, 1, 2\)"):
        fitted(correlated(4)).score({**correlated(2), "layer2": torch.zeros(2, 6, 2, 4)})
    broken = features_of(normal_pixels(4))
    broken["layer2"][2, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="image2.* hold NaN"):
        fitted(broken)
