"""AnomalyDINO against its formulas, by hand and by scikit-learn."""

import math

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_distances

from stages.detectors.few_shot.anomalydino import AnomalyDINO
from stages.training import Run
from stages.types import Refusal
from tests.arrays import ArrayBatches, features_of, grid_features, normal_pixels, plant_defect

SMALL = {"layers": ("layer2",)}  # for the contract test


def fitted(features, **options) -> AnomalyDINO:
    return AnomalyDINO(**{"layers": ("layer2",), "blur_sigma": 0.0, **options}).fit(ArrayBatches(features), None, Run(seed=0, quiet=True))


def rows(features) -> torch.Tensor:
    return features["layer2"].flatten(2).transpose(1, 2)  # (B, N, C)


@pytest.mark.parametrize("head", ["nearest", "subspace"])
def test_a_reference_image_has_no_distance_from_itself(head):
    features = grid_features(3, 6)
    found = fitted(features, head=head, variance=1.0).score(features)
    assert found.image_score.abs().max() < 1e-5 and found.anomaly_map.abs().max() < 1e-5


def test_distances_are_cosine_distances_to_the_nearest_reference():
    known, query = grid_features(3, 6), grid_features(2, 6, seed=1)
    detector = fitted(known, top=1 / 16)
    wanted = torch.from_numpy(cosine_distances(rows(query).flatten(0, 1), rows(known).flatten(0, 1))).amin(dim=1).view(2, 16)
    torch.testing.assert_close(detector.score(query).image_score, wanted.amax(dim=1).float(), atol=1e-6, rtol=1e-5)


def test_lengths_of_features_do_not_matter_to_the_nearest():
    known, query = grid_features(3, 6), grid_features(2, 6, seed=1)
    longer = {**query, "layer2": query["layer2"] * 7.0}
    detector = fitted(known)
    torch.testing.assert_close(detector.score(longer).image_score, detector.score(query).image_score)


def test_the_image_score_is_the_mean_of_the_highest_share_rounded_up():
    known, query = grid_features(3, 6), grid_features(2, 6, seed=1)
    each = fitted(known, top=1 / 16).score(query).anomaly_map  # 4 x 4 cells, enlarged
    distances = 1 - torch.nn.functional.normalize(rows(query), dim=2) @ torch.nn.functional.normalize(rows(known).flatten(0, 1), dim=1).T
    distances = distances.amin(dim=2)
    for top, count in ((0.01, 1), (0.1, 2), (0.5, 8), (1.0, 16)):
        assert count == math.ceil(top * 16)
        wanted = distances.sort(dim=1, descending=True).values[:, :count].mean(dim=1)
        torch.testing.assert_close(fitted(known, top=top).score(query).image_score, wanted)
    assert each.shape == (2, 32, 32)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_the_subspace_is_that_of_pca(share):
    known, query = grid_features(5, 6), grid_features(2, 6, seed=1)
    for features in (known, query):
        features["layer2"] = features["layer2"] * torch.tensor([9.0, 5.0, 3.0, 1.0, 0.5, 0.1])[:, None, None]
    detector = fitted(known, head="subspace", variance=share, top=1.0)
    pca = PCA(share if share < 1 else 6, svd_solver="full").fit(rows(known).flatten(0, 1).double().numpy())
    tokens = rows(query).flatten(0, 1).double().numpy()
    outside = torch.from_numpy(((tokens - pca.inverse_transform(pca.transform(tokens))) ** 2).sum(axis=1)).view(2, 16)
    assert len(detector.references) == 1 + pca.n_components_
    torch.testing.assert_close(detector.score(query).image_score, outside.mean(dim=1).float(), atol=1e-4, rtol=1e-4)


def test_layers_of_one_width_are_averaged_on_the_finest_grid_and_others_refused():
    features = features_of(normal_pixels(4))
    both, one = (fitted(features, layers=layers).score(features).anomaly_map for layers in (("group1", "group2"), ("group1",)))
    assert both.shape == one.shape and not torch.equal(both, one)
    with pytest.raises(Refusal, match="name layers of one width"):
        fitted(features, layers=("layer1", "layer2"))


def test_no_image_is_a_refusal_and_one_is_enough():
    nothing = {name: values[:0] for name, values in features_of(normal_pixels(1)).items()}
    with pytest.raises(Refusal, match="at least 1 normal image"):
        fitted(nothing)
    good = normal_pixels(9, seed=3)
    detector = fitted(features_of(good[:1]))
    scores = detector.score(features_of(torch.cat([good[1:], plant_defect(good[1:])]))).image_score
    assert scores[8:].min() > scores[:8].max()


@pytest.mark.parametrize("options", [{"top": 0.0}, {"top": 1.1}, {"variance": 0.0}, {"variance": 1.5}])
def test_shares_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="at most 1"):
        AnomalyDINO(**options)


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="width 6, these have 5"):
        fitted(grid_features(2, 6)).score(grid_features(1, 5))
