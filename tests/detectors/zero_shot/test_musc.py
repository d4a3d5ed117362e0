"""MuSc against its formulas by brute force, and what a set of images means to it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from scipy.spatial.distance import cdist

from stages.detectors.prediction import predictions
from stages.detectors.zero_shot.musc import MuSc, among_neighbours, dealt
from stages.training import Run
from stages.types import Refusal
from tests.arrays import ArrayBatches, features_of, grid_features, normal_pixels, plant_defect

SMALL = {"layers": ("layer2",), "whole": None, "sides": (1, 3)}  # for the contract test


def musc(**options) -> MuSc:
    return MuSc(**{"layers": ("layer2",), "whole": None, "sides": (1,), "neighbours": (), **options})


def brute_force(layer: torch.Tensor, side: int, lowest: float) -> torch.Tensor:
    """(n, N): every distance of every patch to every other image, one by one."""
    values = layer.double().numpy()
    patches = []
    for image in values:
        image = (image - image.mean()) / image.std()
        image = uniform_filter(image, (0, side, side), mode="constant") if side > 1 else image
        rows = image.reshape(len(image), -1).T
        patches.append(rows / (rows**2).sum(axis=1, keepdims=True) ** 0.5)
    scores = []
    for place, own in enumerate(patches):
        others = [cdist(own, other).min(axis=1) for number, other in enumerate(patches) if number != place]
        nearest = torch.tensor(np.stack(others)).sort(dim=0).values
        scores.append(nearest[: max(1, int(lowest * len(nearest)))].mean(dim=0))
    return torch.stack(scores).float()


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize(("count", "lowest"), [(7, 0.3), (7, 1.0), (3, 0.3)])
def test_scores_are_those_of_brute_force(side, count, lowest, monkeypatch):
    monkeypatch.setattr("stages.detectors.zero_shot.musc.CELLS", 3 * 20**2)  # three images at a time, the last time fewer
    features = grid_features(count, 6, (4, 5))
    found = musc(sides=(side,), lowest=lowest).score(features).image_score
    torch.testing.assert_close(found, brute_force(features["layer2"], side, lowest).amax(dim=1), atol=1e-4, rtol=1e-4)


def test_layers_of_their_own_grids_and_neighbourhoods_are_averaged():
    features = grid_features(6, 6, (8, 8)) | {"layer3": grid_features(6, 4, (4, 4), seed=1)["layer2"]}
    parts = []
    for layer, grid in (("layer2", 8), ("layer3", 4)):
        for side in (1, 3):
            scores = brute_force(features[layer], side, 0.3).view(6, 1, grid, grid)
            parts.append(torch.nn.functional.interpolate(scores, (8, 8), mode="bilinear"))
    wanted = torch.stack(parts).mean(dim=0)
    found = musc(layers=("layer2", "layer3"), sides=(1, 3)).score(features)
    torch.testing.assert_close(found.image_score, wanted.flatten(1).amax(dim=1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        found.anomaly_map, torch.nn.functional.interpolate(wanted, (32, 32), mode="bilinear")[:, 0], atol=1e-4, rtol=1e-4
    )


def test_what_few_images_show_is_anomalous_and_what_most_show_is_not():
    """The same defect stands out in 2 of 20 images, and in 16 of 20 it is what is normal."""
    good, bad = normal_pixels(20, seed=3), plant_defect(normal_pixels(20, seed=3))
    few = musc().score(features_of(torch.cat([good[:18], bad[18:]]))).image_score
    assert few[18:].min() > few[:18].max()
    most = musc().score(features_of(torch.cat([good[:4], bad[4:]]))).image_score
    assert most[4:].max() < few[18:].min() and most[4:].min() < most[:4].max()


def test_a_large_set_is_compared_in_groups_that_the_order_of_rows_does_not_change():
    features = grid_features(11, 6)
    detector = musc(group=4, neighbours=(1, 2))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    shuffled = detector.score({name: values[order] for name, values in features.items()})
    torch.testing.assert_close(shuffled.image_score, detector.score(features).image_score[order])
    assert not torch.allclose(detector.score(features).image_score, musc(group=11, neighbours=(1, 2)).score(features).image_score)


@pytest.mark.parametrize(("count", "group", "sizes"), [(11, 4, [4, 4, 3]), (8, 8, [8]), (4, 3, [2, 2]), (2, 200, [2])])
def test_groups_are_alike_and_none_is_of_one_image(count, group, sizes):
    means = torch.arange(count).flip(0)
    groups = dealt(means, group)
    assert [len(one) for one in groups] == sizes and sorted(torch.cat(groups).tolist()) == list(range(count))
    assert all(means[one].min() < len(groups) and means[one].max() >= count - len(groups) for one in groups)


def test_scores_are_averaged_with_those_of_like_images_by_hand():
    """Cosines .8 of the first two, .6 of the last two, 0 of the others; what points away counts as nothing."""
    scores, whole = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([[1.0, 0.0], [1.6, 1.2], [0.0, 1.0]])
    two = torch.tensor([(1 + 0.8 * 3) / 1.8, (3 + 0.8 * 1) / 1.8, (10 + 0.6 * 3) / 1.6])
    every = torch.tensor([two[0], (3 + 0.8 * 1 + 0.6 * 10) / 2.4, two[2]])
    for neighbours, wanted in (((), scores), ((1,), scores), ((2,), two), ((9,), every), ((1, 9), (scores + every) / 2)):
        torch.testing.assert_close(among_neighbours(scores, whole, neighbours), wanted)
    away = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])
    torch.testing.assert_close(among_neighbours(scores, away, (3,)), torch.tensor([two[0], two[1], 10.0]))


def test_images_are_alike_by_their_class_token_where_there_is_one():
    """Registers behind it say nothing; of a map the mean does."""
    features = grid_features(5, 6)
    token = torch.randn(5, 6, 1, 3, generator=torch.Generator().manual_seed(1))
    features |= {"block3_extra": token, "class": token[..., :1], "all": token}
    first, wanted, mean = (musc(whole=name, neighbours=(2,)).score(features).image_score for name in ("block3_extra", "class", "all"))
    torch.testing.assert_close(first, wanted)
    assert not torch.allclose(first, mean)
    assert musc(whole="block3_extra").needs.layers == ("layer2", "block3_extra") and musc().needs.layers == ("layer2",)


def test_one_image_is_refused_and_so_are_features_that_are_no_numbers():
    with pytest.raises(Refusal, match="got 1: give it more, or use a detector that judges one image"):
        musc().score(grid_features(1, 6))
    features = grid_features(3, 6)
    features["layer2"][1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        musc().score(features)


def test_fit_looks_at_no_image():
    class Unseen:
        samples = 3

        def __iter__(self):
            raise AssertionError("a training image was read")

    detector = musc().fit(Unseen(), Unseen(), Run(seed=0, quiet=True))
    assert not detector.state_dict() and detector.transductive


def test_all_batches_of_a_split_are_one_set():
    features = features_of(torch.cat([normal_pixels(9), plant_defect(normal_pixels(2, seed=4))]))
    batches = ArrayBatches({name: features[name] for name in ("layer2", "pixels")}, batch_size=4)
    [(batch, found)] = predictions(musc(), batches)
    assert batch.sample_id == [f"image{place}" for place in range(11)] and batch.label.shape == (11,)
    assert torch.equal(found.image_score, musc().score(features).image_score)
    nothing = {name: values[:0] for name, values in batches.features.items()}
    assert not list(predictions(musc(), ArrayBatches(nothing)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sides": (2,)}, "odd"),
        ({"layers": ()}, "one layer"),
        ({"lowest": 0.0}, "lowest"),
        ({"group": 2}, "group"),
        ({"neighbours": (0,)}, "neighbours"),
    ],
)
def test_options_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        MuSc(**options)
