"""Image metrics against scikit-learn, on scores with and without ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from stages.metrics.confusion import Confusion, confusion
from stages.metrics.inputs import Undefined
from stages.metrics.ranking import auroc, average_precision, f1_max, image_metrics, pr_curve, roc_curve, separator

CONTINUOUS = st.floats(-1e6, 1e6, allow_subnormal=False)
QUICK = settings(max_examples=100, deadline=None, derandomize=True)
TIED = st.integers(-3, 3).map(float)


@st.composite
def scored(draw, values=CONTINUOUS | TIED):
    """Scores and labels of 2 to 40 images with both classes."""
    label = draw(st.lists(st.integers(0, 1), min_size=2, max_size=40).filter(lambda row: 0 < sum(row) < len(row)))
    source = draw(st.sampled_from([values, TIED, st.just(0.25)]))
    return np.array(draw(st.lists(source, min_size=len(label), max_size=len(label)))), np.array(label)


@QUICK
@given(scored())
def test_auroc_and_average_precision_equal_scikit_learn(data):
    score, label = data
    assert auroc(score, label) == pytest.approx(sk.roc_auc_score(label, score), abs=1e-12)
    assert average_precision(score, label) == pytest.approx(sk.average_precision_score(label, score), abs=1e-12)


@QUICK
@given(scored())
def test_curves_equal_scikit_learn(data):
    score, label = data
    fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
    precision, recall, _ = sk.precision_recall_curve(label, score)
    np.testing.assert_allclose(roc_curve(score, label)[:2], (fpr, tpr), atol=1e-12, rtol=0)
    np.testing.assert_allclose(pr_curve(score, label)[:2], (precision[::-1], recall[::-1]), atol=1e-12, rtol=0)


@QUICK
@given(scored())
def test_f1_max_is_the_best_f1_of_all_thresholds_and_its_threshold_reaches_it(data):
    score, label = data
    best = f1_max(score, label)
    precision, recall, _ = sk.precision_recall_curve(label, score)
    brute = (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max()
    assert best.value == pytest.approx(brute, abs=1e-12)
    assert sk.f1_score(label, score > best.threshold) == pytest.approx(best.value, abs=1e-12)


@QUICK
@given(scored())
def test_curve_thresholds_give_the_rates_beside_them(data):
    """Every point of both curves is what `score > threshold` really gives, the first and the last included."""
    score, label = data
    curve, pr = roc_curve(score, label), pr_curve(score, label)
    matrices = [confusion(score, label, one) for one in curve.threshold]
    assert [1 - one.specificity for one in matrices] == pytest.approx(list(curve.fpr), abs=1e-12)
    assert [one.recall for one in matrices] == pytest.approx(list(curve.tpr), abs=1e-12)
    assert [one.precision for one in matrices][1:] == pytest.approx(list(pr.precision[1:]), abs=1e-12)


@QUICK
@given(scored(st.integers(-1000, 1000).map(float)))
def test_metrics_do_not_change_under_monotone_rescaling(data):
    """Only ranks count. Whole numbers, so that the map keeps distinct scores distinct."""
    score, label = data
    assert image_metrics(score, label) == image_metrics(score**3 + 7, label)


@QUICK
@given(scored())
def test_metrics_stay_within_0_and_1_and_turning_scores_round_mirrors_auroc(data):
    score, label = data
    assert all(0 <= value <= 1 for value in image_metrics(score, label).values())
    assert auroc(score, label) == pytest.approx(1 - auroc(-score, label), abs=1e-12)


def test_constant_scores_are_chance():
    assert image_metrics(np.full(10, 3.0), [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]) == {
        "image_auroc": 0.5,
        "image_ap": 0.2,
        "image_f1_max": pytest.approx(1 / 3),
    }


def test_perfect_ranking_is_exactly_1():
    score, label = np.arange(7.0), [0, 0, 0, 0, 1, 1, 1]
    assert set(image_metrics(score, label).values()) == {1.0}
    assert f1_max(score, label).threshold == 3.5


@QUICK
@given(st.floats(-1e300, 1e300), st.integers(1, 5))
def test_separator_keeps_neighbouring_floats_apart(low, steps):
    high = low
    for _ in range(steps):
        high = np.nextafter(high, np.inf)
    assert low <= separator(np.array([high, low]), 0) < high
    assert separator(np.array([high, low]), 1) < low


@pytest.mark.parametrize(
    ("score", "label", "reason"),
    [
        ([], [], "nothing to measure"),
        ([1.0, 2.0], [0, 0], "no anomalous image among 2"),
        ([1.0, 2.0], [1, 1], "no normal image among 2"),
        ([1.0], [1], "no normal image among 1"),
    ],
)
def test_sets_that_cannot_be_ranked_are_undefined_with_the_reason(score, label, reason):
    for metric in (image_metrics, auroc, average_precision, f1_max, roc_curve, pr_curve):
        with pytest.raises(Undefined, match=reason):
            metric(score, label)


@pytest.mark.parametrize(
    ("score", "label", "message"),
    [
        ([1.0, np.nan], [0, 1], r"1 NaN or infinite values, the first at index \(1,\)"),
        ([np.inf, 1.0], [0, 1], "must be finite"),
        ([1.0, 2.0], [0, 2], "labels must be 0 .* or 1"),
        ([1.0, 2.0], [0, np.nan], "labels must be 0 .* or 1"),
        ([1.0, 2.0], [0, 1, 1], r"shape \(2,\)"),
        ([[1.0], [2.0]], [0, 1], r"shape \(N,\)"),
    ],
)
def test_broken_input_is_an_error_and_not_an_undefined_metric(score, label, message):
    with pytest.raises(ValueError, match=message) as caught:
        image_metrics(score, label)
    assert not isinstance(caught.value, Undefined)


def test_a_score_equal_to_the_threshold_is_normal():
    assert confusion([1.0, 2.0, 2.0, 3.0], [0, 0, 1, 1], 2.0) == Confusion(tp=1, fn=1, tn=2, fp=0)


@QUICK
@given(scored(), st.floats(-4, 4))
def test_confusion_ratios_equal_scikit_learn_and_are_none_where_it_warns(data, threshold):
    score, label = data
    matrix, flagged = confusion(score, label, threshold), score > threshold
    assert matrix.accuracy == pytest.approx(sk.accuracy_score(label, flagged))
    assert matrix.recall == pytest.approx(sk.recall_score(label, flagged))
    assert matrix.f1 == pytest.approx(sk.f1_score(label, flagged))
    assert matrix.specificity == pytest.approx(sk.recall_score(1 - label, ~flagged))
    if flagged.any():
        assert matrix.precision == pytest.approx(sk.precision_score(label, flagged)) and matrix.reasons == {}
    else:
        assert matrix.precision is None and matrix.reasons == {"precision": "nothing was called anomalous"}


def test_confusion_of_one_class_says_which_ratio_is_missing_and_why():
    assert confusion([1.0, 2.0], [0, 0], 5.0).reasons.keys() == {"precision", "recall", "f1"}
    assert confusion([1.0, 2.0], [1, 1], 0.0).reasons == {"specificity": "no normal image"}


def test_confusion_refuses_a_threshold_that_is_no_number():
    with pytest.raises(ValueError, match="finite number"):
        confusion([1.0], [0], np.nan)
