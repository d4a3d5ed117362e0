"""Pixel metrics and AUPRO against scikit-learn and the slow definition; histograms against the exact values."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import label as label_regions
from sklearn import metrics as sk

from stages.metrics.bins import PixelBins, quantile_edges
from stages.metrics.inputs import Undefined
from stages.metrics.pixels import pixel_metrics
from stages.metrics.regions import region_shares

QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def brute_force_aupro(maps, masks, fpr_limit):
    """The definition: overlap of every region and false positive rate at every threshold, trapezoid, straight line to the limit."""
    regions = []
    for index, mask in enumerate(masks):
        region, count = label_regions(mask, structure=np.ones((3, 3)))
        regions += [(index, region == one) for one in range(1, count + 1)]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([one.ravel() for one in maps]))[::-1]:
        false = np.concatenate([(one >= threshold)[~mask] for one, mask in zip(maps, masks, strict=True)]).mean()
        curve.append((false, np.mean([(maps[index] >= threshold)[region].mean() for index, region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x1 <= fpr_limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < fpr_limit:
            at_limit = y0 + (y1 - y0) * (fpr_limit - x0) / (x1 - x0)
            area += (fpr_limit - x0) * (y0 + at_limit) / 2
    return area / fpr_limit


def brute_force_f1_max(score, truth):
    """2 tp / (2 tp + fp + fn), the highest of all thresholds."""
    return max(2 * (truth & flagged).sum() / (truth.sum() + flagged.sum()) for flagged in (score >= one for one in np.unique(score)))


@st.composite
def mapped(draw):
    """One to three small maps with masks that hold both kinds of pixel; scores of few values (ties) or of many."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(2, 7)))
    masks = draw(hnp.arrays(bool, shape).filter(lambda mask: mask.any() and not mask.all()))
    values = draw(st.sampled_from([st.integers(0, 3).map(float), st.integers(0, 10**6).map(float), st.just(1.0)]))
    return draw(hnp.arrays(draw(st.sampled_from([np.float32, np.float64])), shape, elements=values)), masks


@QUICK
@given(mapped(), st.sampled_from([0.05, 0.3, 1.0, 0.123]))
def test_aupro_equals_the_slow_definition(data, fpr_limit):
    maps, masks = data
    assert pixel_metrics(maps, masks, (fpr_limit,))["aupro"] == pytest.approx(brute_force_aupro(maps, masks, fpr_limit), abs=1e-9)


@QUICK
@given(mapped())
def test_pixel_metrics_equal_scikit_learn(data):
    maps, masks = data
    values, truth, flat = pixel_metrics(maps, masks), masks.ravel(), maps.ravel()
    assert values["pixel_auroc"] == pytest.approx(sk.roc_auc_score(truth, flat), abs=1e-12)
    assert values["pixel_ap"] == pytest.approx(sk.average_precision_score(truth, flat), abs=1e-12)
    assert values["pixel_f1_max"] == pytest.approx(brute_force_f1_max(flat, truth), abs=1e-12)
    assert all(0 <= value <= 1 for value in values.values())


def test_aupro_by_hand_on_a_4_by_4_map():
    """
    map            mask (regions a and b)      descending: 9 a, 8 normal, 7 b, 6 a, then 5..1 normal, 0 normal x 7
    9 6 1 2        a a . .
    8 3 4 5        . . . .                     14 - 1 = 13 pixels are normal but for one: 16 - 3 = 13 normal pixels
    0 0 0 7        . . . b                     regions: a has 2 pixels, b has 1
    0 0 0 0        . . . .

    threshold   FPR     overlap a, b    PRO
    9           0       1/2, 0          1/4
    8           1/13    1/2, 0          1/4
    7           1/13    1/2, 1          3/4
    6           1/13    1,   1          1      and 1 from there on
    Limit 0.3: (1/13 * 1/4 + (0.3 - 1/13) * 1) / 0.3 = 1 - 0.75 / 3.9
    Limit 0.05 lies before 1/13, where PRO is 1/4 throughout.
    """
    maps = np.array([[[9, 6, 1, 2], [8, 3, 4, 5], [0, 0, 0, 7], [0, 0, 0, 0]]], dtype=np.float32)
    masks = np.zeros((1, 4, 4), dtype=bool)
    masks[0, 0, :2] = masks[0, 2, 3] = True
    values = pixel_metrics(maps, masks)
    assert values["aupro"] == pytest.approx(1 - 0.75 / 3.9, abs=1e-12)
    assert values["aupro_005"] == pytest.approx(0.25, abs=1e-12)
    assert list(values) == ["pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_005"]


def test_regions_that_touch_at_a_corner_are_one():
    shares, count = region_shares(np.array([[1, 0, 0, 0], [0, 1, 0, 1]], dtype=bool))
    assert count == 2 and shares.tolist() == [0.5, 0.5, 1.0]


@QUICK
@given(hnp.arrays(bool, (6, 7)))
def test_region_shares_sum_to_one_for_each_region(mask):
    """Against a labelling of the whole mask, not of its bounding box."""
    region, count = label_regions(mask, structure=np.ones((3, 3)))
    shares = region_shares(mask)
    assert shares.count == count
    for one in range(1, count + 1):
        assert shares.share[region[mask] == one].sum() == pytest.approx(1)


def test_a_small_region_weighs_as_much_as_a_large_one():
    """A map that finds the large defect only has an AUPRO of one half, though it finds 96 % of the defect pixels."""
    masks = np.zeros((1, 20, 20), dtype=bool)
    masks[0, :5, :5] = masks[0, 10, 10] = True
    maps = np.zeros((1, 20, 20), dtype=np.float32)
    maps[0, :5, :5], maps[0, 10, 10] = 1, -1
    assert pixel_metrics(maps, masks)["aupro"] == pytest.approx(0.5, abs=1e-12)


@QUICK
@given(mapped())
def test_maps_of_different_sizes_and_in_any_order_count_the_same(data):
    """Good images come as a list of other sizes; metrics see one bag of pixels."""
    maps, masks = list(data[0]), list(data[1])
    maps.append(np.full((3, 9), 2.0, dtype=data[0].dtype))
    masks.append(np.zeros((3, 9), dtype=bool))
    assert pixel_metrics(maps, masks) == pytest.approx(pixel_metrics(maps[::-1], masks[::-1]), abs=1e-12)
    assert pixel_metrics(maps, masks)["pixel_auroc"] == pytest.approx(
        sk.roc_auc_score(np.concatenate([one.ravel() for one in masks]), np.concatenate([one.ravel() for one in maps])), abs=1e-12
    )


@QUICK
@given(mapped())
def test_inputs_stay_as_they_were(data):
    maps, masks = data
    before = maps.copy(), masks.copy()
    pixel_metrics(maps, masks)
    PixelBins.from_maps(maps, masks)
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(masks, before[1])


def test_a_perfect_map_scores_exactly_1():
    rng = np.random.default_rng(0)
    masks = rng.random((4, 30, 30)) < 0.1
    assert set(pixel_metrics(masks + rng.random(masks.shape, dtype=np.float32) / 2, masks).values()) == {1.0}


@pytest.mark.parametrize(
    ("maps", "masks", "error", "message"),
    [
        (np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool), Undefined, "no defect pixel in 2 masks"),
        (np.zeros((2, 3, 3)), np.ones((2, 3, 3), bool), Undefined, "no normal pixel in 2 masks"),
        ([], [], Undefined, "no image with a known mask"),
        (np.zeros((2, 3, 3)), np.ones((2, 3, 4), bool), ValueError, "map and mask 0 must share one shape"),
        (np.zeros((2, 3, 3)), np.ones((1, 3, 3), bool), ValueError, "one mask per map"),
        (np.zeros((1, 3, 3)), np.full((1, 3, 3), 255, np.uint8), ValueError, "mask 0 must be boolean, got uint8"),
        (np.full((1, 2, 2), np.nan), np.eye(2, dtype=bool)[None], ValueError, "anomaly map 0 must be finite"),
    ],
)
def test_pixel_metrics_refuse_what_they_cannot_measure(maps, masks, error, message):
    for measure in (pixel_metrics, PixelBins.from_maps):
        with pytest.raises(error, match=message) as caught:
            measure(maps, masks)
        assert isinstance(caught.value, Undefined) == (error is Undefined)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.5])
def test_fpr_limit_outside_0_and_1_is_refused(limit):
    with pytest.raises(ValueError, match="fpr_limit"):
        pixel_metrics(np.eye(2)[None], np.eye(2, dtype=bool)[None], (limit,))


@QUICK
@given(mapped(), st.integers(4, 12))
def test_exact_values_lie_within_the_bounds_of_the_bins(data, n_bins):
    """Few bins, so that most scores share one: the stated bounds must hold, and so must the stated error."""
    maps, masks = data
    exact, bins = pixel_metrics(maps, masks), PixelBins.from_maps(maps, masks, n_bins)
    values, error = bins.metrics(), bins.error()
    for name, (low, high) in bins.bounds().items():
        assert low - 1e-12 <= exact[name] <= high + 1e-12
        assert abs(values[name] - exact[name]) <= error[name] + 1e-12


@QUICK
@given(mapped())
def test_bins_that_hold_one_score_each_are_exact(data):
    maps, masks = data
    bins = PixelBins(np.unique(maps))
    for one, mask in zip(maps, masks, strict=True):
        bins.add(one, mask)
    assert bins.metrics() == pytest.approx(pixel_metrics(maps, masks), abs=1e-12)


def blobs(n_maps=12, side=96, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((n_maps, side, side), dtype=bool)
    for mask in masks[: n_maps // 2]:
        for y, x in rng.integers(0, side - 12, size=(2, 2)):
            mask[y : y + 9, x : x + 12] = True
    return (rng.standard_normal(masks.shape) + 1.5 * masks).astype(np.float32), masks


def test_4096_bins_are_within_a_thousandth_of_every_metric_and_say_so():
    maps, masks = blobs()
    bins, exact = PixelBins.from_maps(maps, masks), pixel_metrics(maps, masks)
    assert all(abs(value - exact[name]) <= bins.error()[name] for name, value in bins.metrics().items())
    assert max(bins.error().values()) < 2e-3
    assert abs(bins.metrics()["pixel_auroc"] - exact["pixel_auroc"]) < 1e-4


def test_resampled_counts_are_the_metrics_of_the_repeated_images():
    """Weights 0, 1, 2 on images against the binned metrics of a set that really holds them that often."""
    maps, masks = blobs(6, 40)
    bins = PixelBins.from_maps(maps, masks)
    weight = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 1, 0, 2, 1]])
    drawn = bins.resampled(weight)
    for row, times in enumerate(weight):
        repeated = PixelBins(bins.edges)
        for index in np.repeat(np.arange(6), times):
            repeated.add(maps[index], masks[index])
        assert {name: values[row] for name, values in drawn.items()} == pytest.approx(repeated.metrics(), abs=1e-6)


def test_streamed_bins_without_defects_are_undefined_until_one_comes():
    bins = PixelBins(quantile_edges(np.arange(100.0), np.zeros(0)))
    bins.add(np.arange(4.0).reshape(2, 2), np.zeros((2, 2), dtype=bool))
    with pytest.raises(Undefined, match="1 images without defect pixels"):
        bins.metrics()
    bins.add(np.full((2, 2), 200.0), np.eye(2, dtype=bool))
    assert bins.metrics()["pixel_auroc"] == pytest.approx((4 + 2 / 2) / 6)


def test_edges_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="strictly ascending"):
        PixelBins(np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="at least 4"):
        quantile_edges(np.arange(3.0), np.arange(3.0), 2)
    with pytest.raises(Undefined, match="no sample"):
        quantile_edges(np.zeros(0), np.zeros(0))
