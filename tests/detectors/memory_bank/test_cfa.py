"""CFA against its formulas. The letters are those of the list of what implementations get wrong, in the order given there."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from stages.detectors.maps import gaussian_blur
from stages.detectors.memory_bank.cfa import CFA, k_means
from stages.training import Run
from tests.arrays import ArrayBatches, features_of, grid_features, normal_pixels, upsampled

SMALL = {"steps": 20, "batch_size": 4, "blur_sigma": 1.0}  # for the contract test


def make(**options) -> CFA:
    return CFA(**{**SMALL, "steps": 4, **options})


def fitted(features, **options) -> CFA:
    return make(**options).fit(ArrayBatches(features), None, Run(seed=0, quiet=True))


def squared(detector: CFA, features) -> torch.Tensor:
    """(B, h*w, M) to every centre, in float64, the plain way."""
    described = detector.descriptor(detector._join(features)).double()
    return (described[:, :, None] - detector.memory_bank.double()).square().sum(dim=3)


def test_the_descriptor_sees_the_features_and_where_it_is():
    """Weights 0 on the features and (1, 10) on row and column, in 3 x 2 cells: rows -1, 0, 1 and columns -1, 1."""
    descriptor = fitted(grid_features(2, 4, (3, 2)), layers=["layer2"]).descriptor
    convolution = descriptor.convolution
    convolution.weight.data.zero_()
    convolution.bias.data.zero_()
    convolution.weight.data[0, -2:, 0, 0] = torch.tensor([1.0, 10.0])
    described = descriptor(torch.randn(1, 4, 3, 2))
    assert described[0, :, 0].tolist() == [-11, 9, -10, 10, -9, 11] and described.shape == (1, 6, 4)


def test_layers_are_pooled_before_they_are_brought_to_the_finest_grid():
    features = features_of(normal_pixels(2))
    joined = make()._join(features)
    pooled = F.avg_pool2d(features["layer3"], 3, 1, 1)
    assert joined.shape == (2, 8 + 12 + 16, 16, 16)
    torch.testing.assert_close(joined[:, 20:], F.interpolate(pooled, (16, 16), mode="bilinear", align_corners=False))


def test_the_loss_by_hand():
    """K = J = 1, r^2 = 0.5, margin 0.1, softness 0.01: distances (0.7, 0.9) and (0.1, 0.2) cost 0.2 and 0, then 0 and 0.2; halved, times 100."""
    detector = fitted(features_of(normal_pixels(4)), attracted=1, repelled=1, softness=0.01)
    detector.descriptor.radius.data = torch.tensor(0.5).sqrt()
    loss = detector._hinges(torch.tensor([[0.7, 0.9], [0.1, 0.2]]))
    assert loss.item() == pytest.approx((0.2 / 2 + 0.2 / 2) / 0.01, rel=1e-5)


def test_with_the_first_radius_only_attraction_is_felt_and_the_radius_grows():
    detector = fitted(features_of(normal_pixels(8)), steps=1, learning_rate=1e-12)
    far = torch.tensor([[0.0, 0, 0, 0, 0, 0]])
    assert detector._hinges(far).item() == 0  # the spheres are too small for any patch to be repelled
    assert fitted(features_of(normal_pixels(8)), steps=30).descriptor.radius > 0.01


def test_cfa_a_training_uses_squared_distances_and_scoring_their_roots():
    detector, features = fitted(features_of(normal_pixels(6))), features_of(normal_pixels(3, seed=5))
    every = squared(detector, features).sort(dim=2).values
    reach = detector.descriptor.radius.item() ** 2
    attraction = (every[:, :, :3] - reach).clamp(min=0).mean()
    repulsion = (reach - every[:, :, 3:6] - 0.1).clamp(min=0).mean()
    loss = detector._loss(ArrayBatches(features).take([0, 1, 2]), torch.Generator())
    assert loss.item() == pytest.approx((attraction + repulsion).item() * 1000, rel=1e-3)
    roots = every[:, :, :3].sqrt()
    cells = (roots[:, :, 0] * torch.exp(-roots[:, :, 0]) / torch.exp(-roots).sum(dim=2)).float().view(3, 16, 16)
    image_score, anomaly_map = detector.score(features)
    torch.testing.assert_close(anomaly_map, gaussian_blur(upsampled(cells, 32), 1.0), rtol=1e-3, atol=1e-5)
    assert torch.equal(image_score, anomaly_map.amax(dim=(1, 2)))


def test_cfa_b_the_centres_are_the_means_of_what_the_untrained_descriptor_gives():
    """However long the training, and before it: the same bank after 1 step and after 40, the mean over images at each position."""
    features = features_of(normal_pixels(10))
    short, long = fitted(features, steps=1, learning_rate=1e-12), fitted(features, steps=40)
    assert torch.equal(short.memory_bank, long.memory_bank) and len(short.memory_bank) == 256
    described = short.descriptor(short._join(features))  # after one step too small to be seen
    torch.testing.assert_close(short.memory_bank, described.mean(dim=0), rtol=1e-4, atol=1e-4)


def test_cfa_c_only_the_convolution_and_the_radius_are_trained(run):
    features = features_of(normal_pixels(8))
    detector = make(steps=30).fit(ArrayBatches(features), None, run)
    assert {name for name, _ in detector.named_parameters()} == {
        "descriptor.convolution.weight",
        "descriptor.convolution.bias",
        "descriptor.radius",
    }
    start = fitted(features, steps=1, learning_rate=1e-12)
    assert all(not torch.allclose(value, start.get_parameter(name), atol=1e-4) for name, value in detector.named_parameters())


def test_cfa_d_features_are_taken_as_they_are_whatever_the_network():
    """Not divided by the number of channels: the centres grow with the features."""
    features, larger = grid_features(6, 8), grid_features(6, 8)
    larger["layer2"] *= 100
    one, other = (fitted(part, layers=["layer2"], steps=1, learning_rate=1e-12) for part in (features, larger))
    offset = one.descriptor(torch.zeros(1, 8, 4, 4))[0]
    torch.testing.assert_close(other.memory_bank - offset, 100 * (one.memory_bank - offset), rtol=1e-3, atol=1e-3)


def test_cfa_e_a_patch_that_is_its_own_centre_scores_zero_and_not_a_root_of_less():
    """Far from the origin a product rounds |x|^2 - 2xc + |c|^2 below 0, whose root is not a number. One training image is its own mean."""
    features = grid_features(1, 8)
    features["layer2"] = 1000 + features["layer2"]
    detector = fitted(features, layers=["layer2"], steps=1, learning_rate=1e-12)
    detector.memory_bank = detector.descriptor(detector._join(features))[0].detach()
    detector._index = None
    score = detector.score(features)
    assert score.image_score.item() == 0 and score.anomaly_map.abs().max() == 0


def test_fewer_centres_are_those_of_k_means():
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[30:] += 6
    start = points[torch.randperm(60, generator=torch.Generator().manual_seed(4))[:5]]
    reference = KMeans(5, init=start.numpy(), n_init=1, algorithm="lloyd", tol=0.0).fit(points.numpy())
    torch.testing.assert_close(k_means(points, 5, torch.Generator().manual_seed(4)), torch.from_numpy(reference.cluster_centers_))
    assert fitted(features_of(normal_pixels(4)), centre_ratio=4, width_ratio=3).memory_bank.shape == (64, 12)


def test_more_neighbours_than_centres_are_all_centres():
    detector = fitted(grid_features(4, 6), layers=["layer2"], centre_ratio=8)  # 2 centres
    assert len(detector.memory_bank) == 2 and detector.score(grid_features(2, 6)).image_score.isfinite().all()


def test_training_brings_normal_patches_nearer_to_their_centres(run):
    held_out = ArrayBatches(features_of(normal_pixels(4, seed=3)))
    detector = make(steps=40).fit(ArrayBatches(features_of(normal_pixels(12))), held_out, run)
    rows = [row for row in run.history if "val_loss" in row]
    assert min(row["val_loss"] for row in rows) < 0.7 * rows[0]["val_loss"]
    assert detector._val_loss(held_out, run) == pytest.approx(min(row["val_loss"] for row in rows), rel=1e-5)


@pytest.mark.parametrize("name", ["width_ratio", "centre_ratio", "attracted", "repelled"])
def test_options_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        CFA(**{name: 0})


def test_broken_features_are_named(run):
    broken = grid_features(4, 8)
    broken["layer2"][2, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="image2.* hold NaN"):
        make(layers=["layer2"]).fit(ArrayBatches(broken), None, run)
