"""Intervals: what they resample, what they promise, and that the fast way equals the slow one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.metrics.bins import PixelBins
from stages.metrics.bootstrap import (
    Draws,
    bootstrap_draws,
    bootstrap_interval,
    image_intervals,
    mean_interval,
    paired_difference,
    pixel_intervals,
    resample,
)
from stages.metrics.counts import auroc_of_counts
from stages.metrics.inputs import Undefined
from stages.metrics.pixels import pixel_metrics
from stages.metrics.ranking import IMAGE_METRICS, image_metrics

QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def scored(n=60, seeds=3, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 3 == 0
    return rng.standard_normal((seeds, n)) + shift * label, label


def test_weighted_draws_equal_the_metrics_of_images_really_repeated():
    """The vectorised draw against np.repeat and the plain metric, ties included, one seed so that no seeds are drawn."""
    score, label = scored(24, seeds=1)
    score = np.round(score, 1)
    draws = bootstrap_draws(score, label, None, IMAGE_METRICS, n_resamples=20, seed=5)
    weight = resample(label, ~label, None, 20, np.random.default_rng(5)).weight
    for row, times in enumerate(weight):
        slow = image_metrics(np.repeat(score[0], times), np.repeat(label, times))
        assert {name: one.samples[row] for name, one in draws.items()} == pytest.approx(slow, abs=1e-12)


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=25).filter(lambda rows: len({flag for _, flag in rows}) == 2)
)
def test_resamples_keep_groups_whole_and_never_lose_a_class(rows):
    group, label = np.array([name for name, _ in rows]), np.array([flag for _, flag in rows])
    weight = resample(label, ~label, group, 50, np.random.default_rng(0)).weight
    assert all(np.ptp(weight[:, group == one], axis=1).max() == 0 for one in np.unique(group))
    assert (weight[:, label].sum(1) > 0).all() and (weight[:, ~label].sum(1) > 0).all()


def test_resamples_draw_as_many_groups_as_there_are_of_each_class():
    label = np.arange(30) < 10
    weight = resample(label, ~label, None, 200, np.random.default_rng(0)).weight
    assert (weight[:, label].sum(1) == 10).all() and (weight[:, ~label].sum(1) == 20).all()
    assert weight.mean() == pytest.approx(1) and weight.var() == pytest.approx(0.93, abs=0.05)


def test_interval_reports_the_exact_mean_over_seeds_and_holds_it():
    score, label = scored()
    for name, interval in image_intervals(score, label).items():
        assert interval.value == pytest.approx(np.mean([image_metrics(row, label)[name] for row in score]), abs=1e-12)
        assert 0 <= interval.low < interval.value < interval.high <= 1


@QUICK
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12), st.integers(1, 3), st.sampled_from([-50.0, 0.0, 0.5, 50.0]))
def test_interval_always_holds_its_value_within_0_and_1(seed, anomalous, normal, seeds, shift):
    """Few images, reversed and perfect rankings: F1max of resamples lies above that of the data, and still low <= value <= high."""
    label = np.arange(anomalous + normal) < anomalous
    score = np.random.default_rng(seed).integers(0, 4, (seeds, len(label))) + shift * label
    for interval in image_intervals(score, label, n_resamples=50, seed=seed).values():
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_intervals_are_deterministic_and_follow_the_seed():
    score, label = scored()
    assert image_intervals(score, label, seed=3) == image_intervals(score, label, seed=3)
    assert image_intervals(score, label, seed=3) != image_intervals(score, label, seed=4)


def test_95_percent_intervals_hold_the_true_auroc_about_as_often():
    """Two normals one apart have AUROC Phi(1 / sqrt 2) = 0.7602; 300 studies of 40 + 40 images, of which 92 to 98 % should hold it."""
    rng = np.random.default_rng(0)
    label = np.arange(80) < 40
    held = 0
    for study in range(300):
        interval = bootstrap_interval(rng.standard_normal(80) + label, label, None, auroc_of_counts, 300, study)
        held += interval.low <= 0.7602 <= interval.high
    assert 0.90 <= held / 300 <= 0.985


def test_groups_widen_the_interval_when_their_images_are_alike():
    """Ten photographs of each part carry hardly more than one: an interval over images is too narrow by about sqrt 10."""
    rng = np.random.default_rng(1)
    part = np.repeat(np.arange(30), 10)
    label = part % 2 == 0
    score = np.repeat(rng.standard_normal(30), 10) + label + 0.01 * rng.standard_normal(300)
    by_image, by_part = (bootstrap_interval(score, label, group, auroc_of_counts) for group in (None, part))
    assert by_part.high - by_part.low > 2 * (by_image.high - by_image.low)


def test_seeds_that_disagree_widen_the_interval():
    score, label = scored(400, seeds=1, shift=2.0)
    good, bad = score[0], score[0] - 3 * label
    agreeing, disagreeing = (bootstrap_interval(rows, label, None, auroc_of_counts) for rows in ([good, good], [good, bad]))
    assert agreeing.high - agreeing.low < 0.1 < disagreeing.high - disagreeing.low


def test_one_group_of_a_class_leaves_the_interval_at_the_whole_range():
    score, label = scored(20, seeds=1)
    group = np.where(label, "part", np.arange(20).astype(str))
    interval = bootstrap_interval(score, label, group, auroc_of_counts)
    assert (interval.low, interval.high) == (0, 1) and interval.value == image_metrics(score[0], label)["image_auroc"]


def test_paired_difference_of_a_model_with_itself_is_zero_and_tied():
    score, label = scored(seeds=1)
    assert paired_difference(score, score, label, None, auroc_of_counts) == (0, 0, 0)
    assert paired_difference(score, score, label, None, auroc_of_counts).holds_zero


def test_paired_difference_is_antisymmetric_in_value_and_sees_what_single_intervals_hide():
    """Model b errs where a errs, and a little more: their intervals overlap, the difference still excludes zero."""
    rng = np.random.default_rng(2)
    label = np.arange(300) % 2 == 0
    hard = rng.standard_normal(300)
    a, b = hard + 1.0 * label, hard + 0.6 * label + 0.1 * rng.standard_normal(300)
    difference, mirrored = paired_difference(a, b, label, None, auroc_of_counts), paired_difference(b, a, label, None, auroc_of_counts)
    singles = [bootstrap_interval(one, label, None, auroc_of_counts) for one in (a, b)]
    assert singles[0].low < singles[1].high
    assert difference.low > 0 and not difference.holds_zero
    assert (mirrored.value, mirrored.high) == pytest.approx((-difference.value, -difference.low), abs=1e-12)


def test_paired_difference_takes_models_with_different_numbers_of_seeds():
    score, label = scored(seeds=3)
    difference = paired_difference(score, score[:1], label, None, auroc_of_counts)
    alone = [np.mean([image_metrics(row, label)["image_auroc"] for row in rows]) for rows in (score, score[:1])]
    assert difference.value == pytest.approx(alone[0] - alone[1], abs=1e-12) and difference.low < difference.high


def test_paired_difference_with_one_group_of_a_class_is_unknown():
    assert paired_difference([1.0, 2, 3], [3.0, 2, 1], [0, 0, 1], None, auroc_of_counts) == (1.0, -1.0, 1.0)


def test_mean_over_categories_is_narrower_than_one_category_and_draws_them_independently():
    """Equal sizes and equal seeds draw equal weights; without shuffling, the mean of one category with itself would be as wide as the
    category.
    """
    score, label = scored(seeds=1)
    draws = bootstrap_draws(score, label, None, {"auroc": auroc_of_counts}, seed=0)["auroc"]
    mean, one = mean_interval([draws] * 9), draws.interval
    assert mean.value == pytest.approx(one.value)
    assert (mean.high - mean.low) == pytest.approx((one.high - one.low) / 3, rel=0.15)


def test_interval_is_widened_to_a_value_that_the_draws_miss():
    assert Draws(0.5, np.full(10, 0.7)).interval == pytest.approx((0.5, 0.5, 0.7))


def maps_of(n=12, side=32, seed=0):
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), dtype=bool)
    masks[: n // 2, 4:9, 6:14] = masks[: n // 3, 20:24, 3:9] = True
    return (rng.standard_normal(masks.shape) + 1.5 * masks + rng.standard_normal((n, 1, 1)) * 0.3).astype(np.float32), masks


def test_pixel_intervals_hold_the_exact_value_and_narrow_with_more_images():
    few, many = (maps_of(n) for n in (8, 48))
    wide, narrow = (pixel_intervals([PixelBins.from_maps(*data, 512)], exact=pixel_metrics(*data), n_resamples=300) for data in (few, many))
    for name, value in pixel_metrics(*few).items():
        assert wide[name].value == value and 0 <= wide[name].low < value < wide[name].high <= 1
        assert narrow[name].high - narrow[name].low < wide[name].high - wide[name].low


def test_pixel_value_is_the_mean_of_the_seeds():
    maps, masks = maps_of()
    bins = [PixelBins.from_maps(one, masks, 512) for one in (maps, -maps)]
    assert pixel_intervals(bins, n_resamples=50)["pixel_auroc"].value == pytest.approx(0.5, abs=1e-3)


def test_pixel_intervals_refuse_seeds_binned_over_other_images():
    maps, masks = maps_of()
    with pytest.raises(ValueError, match="same images and masks"):
        pixel_intervals([PixelBins.from_maps(maps, masks), PixelBins.from_maps(maps, masks[::-1])])


def test_one_class_has_no_interval_but_a_reason():
    with pytest.raises(Undefined, match="no anomalous image among 3"):
        image_intervals([[1.0, 2.0, 3.0]], [0, 0, 0])


@pytest.mark.parametrize(
    ("score", "label", "group", "message"),
    [
        ([[1.0, np.nan]], [0, 1], None, r"first at index \(0, 1\)"),
        ([[1.0, 2.0]], [0, 1, 1], None, r"label must have shape \(2,\)"),
        ([[1.0, 2.0]], [0, 1], [1], r"group must have shape \(2,\)"),
        ([[[1.0, 2.0]]], [0, 1], None, r"score must have shape \(S, N\)"),
    ],
)
def test_bootstrap_refuses_broken_input(score, label, group, message):
    with pytest.raises(ValueError, match=message):
        image_intervals(score, label, group)
