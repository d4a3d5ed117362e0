"""PatchCore against its equations. The letters are those of the list of what implementations get wrong."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from sklearn.neighbors import NearestNeighbors

from stages.detectors.memory_bank.maths import neighbours
from stages.detectors.memory_bank.patchcore import PatchCore
from stages.training import Run
from stages.types import Refusal
from tests.arrays import ArrayBatches, features_of, grid_features, normal_pixels, upsampled

SMALL = {"layers": ["layer1", "layer2"], "coreset_ratio": 0.2, "blur_sigma": 1.0}  # for the contract test


def with_bank(bank: torch.Tensor, neighbours: torch.Tensor, **options) -> PatchCore:
    """A detector whose bank was written by hand, on 1x1 patches of one layer."""
    detector = PatchCore(layers=["layer2"], blur_sigma=0.0, **options)
    detector.load_state_dict({"memory_bank": bank, "neighbours": neighbours, "search_error": torch.empty(0)})
    detector._patches = lambda features: (features["layer2"].flatten(2).transpose(1, 2), tuple(features["layer2"].shape[2:]))
    return detector


def fitted(features, **options) -> PatchCore:
    return PatchCore(**options).fit(ArrayBatches(features), None, Run(seed=0, quiet=True))


def test_patchcore_a_pooling_comes_before_resizing():
    """Both orders by hand: they differ, and the embedding is the one that pools on the layer's own grid. Padding zeros count in the
    mean."""
    features = {"layer2": torch.rand(2, 3, 8, 8), "layer3": torch.rand(2, 5, 4, 4)}
    patches, grid = PatchCore()._patches(features)
    assert grid == (8, 8) and patches.shape == (2, 64, 8)
    pooled_first = F.interpolate(F.avg_pool2d(features["layer3"], 3, 1, 1), (8, 8), mode="bilinear")
    resized_first = F.avg_pool2d(F.interpolate(features["layer3"], (8, 8), mode="bilinear"), 3, 1, 1)
    got = patches[:, :, 3:].transpose(1, 2).unflatten(2, (8, 8))
    assert torch.equal(got, pooled_first) and not torch.allclose(got, resized_first, atol=1e-3)
    corner = features["layer2"][0, :, :2, :2].sum(dim=(1, 2)) / 9
    torch.testing.assert_close(patches[0, 0, :3], corner)


def test_patchcore_b_neighbours_are_those_of_the_nearest_row_and_distances_are_from_the_patch():
    """On a line: bank at 0, 1, 10, 11; the patch at 4. m* = 1, whose 2 nearest are 1 and 0 (around the patch they would be 1 and 10).

    Distances from the patch are 3 and 4: s = (1 - e^3 / (e^3 + e^4)) * 3. Distances from m* (0 and 1) or the hood of the patch (3 and 6)
    give others.
    """
    bank = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    detector = with_bank(bank, torch.tensor([[0, 1], [1, 0], [2, 3], [3, 2]]), reweighting=2)
    features = {"layer2": torch.full((1, 1, 1, 1), 4.0), "pixels": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}
    expected = (1 - math.exp(3) / (math.exp(3) + math.exp(4))) * 3
    assert detector.score(features).image_score.item() == pytest.approx(expected, rel=1e-6)


def test_patchcore_b_the_neighbours_kept_by_fit_are_those_of_the_bank():
    detector = fitted(grid_features(6, 5), layers=["layer2"], coreset_ratio=0.5, reweighting=4)
    bank = detector.memory_bank.double()
    assert torch.equal(detector.neighbours, torch.cdist(bank, bank).topk(4, largest=False).indices)


def test_patchcore_c_scores_are_distances_not_their_squares():
    """A patch 3 and 4 away along two axes is 5 away; with b = 1 the image score is the plain maximum of that."""
    detector = with_bank(torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.int64), reweighting=1)
    features = {"layer2": torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), "pixels": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}
    image_score, anomaly_map = detector.score(features)
    assert image_score.item() == 5 and torch.equal(anomaly_map, torch.full((1, 8, 8), 5.0))


def test_patchcore_c_reweighting_is_there():
    features = grid_features(6, 5)
    query = grid_features(3, 5, seed=9)
    plain = fitted(features, layers=["layer2"], coreset_ratio=0.5, reweighting=1).score(query).image_score
    weighted = fitted(features, layers=["layer2"], coreset_ratio=0.5, reweighting=9).score(query).image_score
    assert ((weighted < plain) & (weighted > 0)).all()


@pytest.mark.parametrize("distance", [20.0, 40.0, 500.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_patchcore_d_large_distances_do_not_overflow_the_softmax(distance, dtype):
    """e^40 overflows in half precision, e^500 in single; two rows equally far give weight 1/2 whatever the distance."""
    bank = torch.tensor([[0.0, 0.0], [2 * distance, 0.0]])
    detector = with_bank(bank, torch.tensor([[0, 1], [1, 0]]), reweighting=2)
    patch = torch.tensor([distance, 0.0], dtype=dtype).view(1, 2, 1, 1)
    image_score = detector.score({"layer2": patch, "pixels": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}).image_score
    assert image_score.dtype == torch.float32 and image_score.item() == pytest.approx(distance / 2, rel=1e-5)


def test_patchcore_e_maps_are_bilinear_and_blurred_by_sigma_4():
    """Against scipy and plain interpolation of the patch scores of a brute-force search."""
    detector = fitted(features_of(normal_pixels(6)), layers=["layer1", "layer2"])
    query = features_of(normal_pixels(2, seed=8))
    patches, grid = detector._patches(query)
    scores = torch.cdist(patches.double(), detector.memory_bank.double()[None], compute_mode="donot_use_mm_for_euclid_dist").amin(dim=2)
    smooth = [gaussian_filter(one, 4.0, truncate=4.0) for one in upsampled(scores.unflatten(1, grid), 32).numpy()]
    np.testing.assert_allclose(detector.score(query).anomaly_map.numpy(), np.stack(smooth), rtol=1e-4)


def test_patchcore_f_the_image_score_does_not_see_the_blur():
    query = features_of(normal_pixels(4, seed=8))
    results = [fitted(features_of(normal_pixels(6)), layers=["layer1"], blur_sigma=sigma).score(query) for sigma in (0.0, 4.0)]
    assert torch.equal(results[0].image_score, results[1].image_score)
    assert not torch.allclose(results[0].anomaly_map, results[1].anomaly_map, rtol=1e-2)


def test_with_every_patch_kept_scores_are_those_of_scikit_learn():
    features = grid_features(5, 6)
    detector = fitted(features, layers=["layer2"], coreset_ratio=1.0, reweighting=1, blur_sigma=0.0)
    query = grid_features(3, 6, seed=4)
    everything, wanted = (detector._patches(one)[0].flatten(0, 1).numpy() for one in (features, query))
    expected = NearestNeighbors(n_neighbors=1).fit(everything).kneighbors(wanted)[0].reshape(3, 16).max(axis=1)
    np.testing.assert_allclose(detector.score(query).image_score.numpy(), expected, rtol=1e-5)


def test_a_training_image_scores_zero_when_every_patch_is_kept():
    features = grid_features(5, 6)
    image_score, anomaly_map = fitted(features, layers=["layer2"], coreset_ratio=1.0).score(features)
    assert image_score.max() == 0 and anomaly_map.max() == 0


def test_the_bank_has_the_share_of_patches_asked_for_and_all_of_them_are_patches():
    features = grid_features(10, 6)
    detector = fitted(features, layers=["layer2"], coreset_ratio=0.3)
    everything = {tuple(row) for row in detector._patches(features)[0].flatten(0, 1).tolist()}
    assert len(detector.memory_bank) == 48 and {tuple(row) for row in detector.memory_bank.tolist()} <= everything


def test_the_projection_chooses_rows_but_does_not_enter_the_bank():
    """Where it does not halve the width it is left out; where it does, the rows kept are still whole patches."""
    detector = PatchCore(projection=128)
    assert detector._projects(256) and not detector._projects(255)
    wide = fitted(grid_features(6, 40), layers=["layer2"], projection=8, coreset_ratio=0.2)
    assert wide.memory_bank.shape == (19, 40)
    other = fitted(grid_features(6, 40), layers=["layer2"], projection=128, coreset_ratio=0.2)
    assert not torch.equal(wide.memory_bank, other.memory_bank), "the projection of 40 to 8 must have had a say"


# 20 images of 4x4 patches and 6 channels: a bank of 0.3 x 320 rows, twice (the rows and faiss's index), takes 4,608 bytes; an image 512.
TIGHT = {"layers": ["layer2"], "coreset_ratio": 0.3}


def test_above_the_cap_images_come_in_chunks_and_the_radius_is_kept(run):
    features = grid_features(20, 6)
    whole = fitted(features, **TIGHT)
    run.history.clear()
    capped = PatchCore(**TIGHT, bank_gb=(4608 + 7 * 512 + 10) * 1e-9).fit(ArrayBatches(features), None, run)
    assert run.history[0] == {"memory_bank_rows": len(capped.memory_bank), "patches": 320, "chunks": 3}
    assert len(capped.memory_bank) == pytest.approx(len(whole.memory_bank), abs=3)
    everything = capped._patches(features)[0].flatten(0, 1)
    radii = [torch.cdist(everything, one.memory_bank).amin(dim=1).max() for one in (whole, capped)]
    assert radii[1] <= 1.5 * radii[0]


def test_chunks_never_hold_more_images_than_the_cap_allows(run):
    detector = PatchCore(**TIGHT, bank_gb=(4608 + 3 * 512 + 10) * 1e-9)
    images = detector._images_at_once(20, 16, 6)
    chunks = [len(chunk) for chunk in detector._chunks(ArrayBatches(grid_features(20, 6), batch_size=8), images, run)]
    assert images == 3 and chunks == [48] * 6 + [32]


def test_chunks_are_the_patches_in_order_whatever_the_batch_size(run):
    features = grid_features(10, 6)
    detector = PatchCore(**TIGHT)
    expected = detector._patches(features)[0].flatten(0, 1)
    got = torch.cat([chunk.clone() for chunk in detector._chunks(ArrayBatches(features, batch_size=3), 4, run)])
    assert torch.equal(got, expected)


def test_a_bank_that_fits_in_no_way_is_refused_with_what_would_fit(run):
    features = grid_features(20, 6)
    expected = r"E501 bank too large.*bank_gb is 3e-06.*Lower coreset_ratio to 0.16 or less.*raise bank_gb"
    with pytest.raises(Refusal, match=expected) as refusal:
        PatchCore(**TIGHT, bank_gb=3e-6).fit(ArrayBatches(features), None, run)
    ratio = float(str(refusal.value).split("coreset_ratio to ")[1].split()[0])
    PatchCore(layers=["layer2"], coreset_ratio=ratio, bank_gb=3e-6).fit(ArrayBatches(features), None, run)


def test_features_that_are_not_finite_are_refused_by_the_name_of_the_image(run):
    features = grid_features(6, 4)
    features["layer2"][5, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"features of image4, image5 hold NaN or infinity"):
        PatchCore(layers=["layer2"]).fit(ArrayBatches(features), None, run)


def test_both_exact_searches_give_the_same_scores():
    features, query = features_of(normal_pixels(8)), features_of(normal_pixels(5, seed=4))
    scores = [fitted(features, layers=["layer1"], search=search).score(query) for search in ("flat", "torch")]
    assert torch.equal(scores[0].image_score, scores[1].image_score) and torch.equal(scores[0].anomaly_map, scores[1].anomaly_map)


@pytest.mark.parametrize("search", ["hnsw", "ivf"])
def test_an_approximate_search_records_the_error_it_makes(search, run, monkeypatch):
    """Made to look at little, so that it errs."""
    monkeypatch.setattr(neighbours, "IVF_PROBES", 1)
    monkeypatch.setattr(neighbours, "HNSW_LINKS", 2)
    monkeypatch.setattr(neighbours, "HNSW_BUILD", 2)
    monkeypatch.setattr(neighbours, "HNSW_SEARCH", 1)
    features, held_out = grid_features(40, 6), grid_features(10, 6, seed=3)
    detector = PatchCore(layers=["layer2"], coreset_ratio=1.0, search=search).fit(ArrayBatches(features), ArrayBatches(held_out), run)
    exact = PatchCore(layers=["layer2"], coreset_ratio=1.0).fit(ArrayBatches(features), None, Run(seed=0, quiet=True))
    truth, got = exact.score(held_out).image_score, detector.score(held_out).image_score
    error = (got - truth).abs() / truth
    torch.testing.assert_close(detector.search_error, torch.stack([error.mean(), error.max()]))
    row = run.history[-1]
    assert error.max() > 0.01
    assert row["search"] == search and row["images"] == 10 and row["score_error_max"] == pytest.approx(error.max().item())


@pytest.mark.parametrize("options", [{"coreset_ratio": 0.0}, {"coreset_ratio": 1.1}, {"reweighting": 0}, {"projection": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}.* must be"):
        PatchCore(**options)
