"""Thresholds: the four classic ones by their definitions, the conformal promise by simulation, and the text file by its own numbers."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from stages.metrics.conformal import conformal_p_value, conformal_quantile, percentile_among
from stages.metrics.confusion import Confusion, confusion
from stages.metrics.inputs import Undefined
from stages.metrics.ranking import f1_max
from stages.metrics.thresholds import METHODS, Threshold, conformal, f1_percentile, f1_uniform, fit_thresholds, percentile_95, youden
from stages.metrics.thresholds_text import promise_text, thresholds_text

QUICK = settings(max_examples=100, deadline=None, derandomize=True)


def scored(n=200, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.random(n) < 0.4
    return rng.standard_normal(n) + 1.5 * label, label


def test_f1_thresholds_reach_the_f1_they_state_and_nearly_the_best_there_is():
    score, label = scored()
    best = f1_max(score, label).value
    for fit in (f1_percentile, f1_uniform):
        threshold = fit(score, label)
        assert sk.f1_score(label, score > threshold.value) == pytest.approx(threshold.achieved["f1"], abs=1e-12)
        assert best - 0.01 < threshold.achieved["f1"] <= best


def test_f1_candidates_are_percentiles_of_the_scores_or_even_steps_between_their_ends():
    """One outlier far out: even steps of 1,000 cannot tell scores within 1 apart, percentiles can."""
    score = np.r_[np.linspace(0, 1, 100), 1e6]
    label = score > 0.5
    assert f1_percentile(score, label).achieved["f1"] == 1.0
    assert f1_uniform(score, label).value % 1000 == 0 and f1_uniform(score, label).achieved["f1"] < 0.8


def test_f1_takes_the_middle_of_a_gap():
    score, label = np.array([0.0, 1.0, 9.0, 10.0]), [0, 0, 1, 1]
    assert f1_uniform(score, label).value == pytest.approx(5, abs=0.01)


@QUICK
@given(st.integers(0, 10**6), st.booleans())
def test_youden_has_the_highest_j_of_all_thresholds_with_the_rates_it_states(seed, tied):
    score, label = scored(30, seed)
    score = np.round(score) if tied else score
    if label.all() or not label.any() or np.ptp(score) == 0:
        return
    threshold = youden(score, label)
    fpr, tpr, _ = sk.roc_curve(label, score)
    sensitivity, specificity = threshold.achieved["sensitivity"], threshold.achieved["specificity"]
    assert sensitivity + specificity - 1 == pytest.approx((tpr - fpr).max(), abs=1e-12)
    assert (score > threshold.value)[label].mean() == pytest.approx(sensitivity)
    assert (score <= threshold.value)[~label].mean() == pytest.approx(specificity)


def test_percentile_95_is_that_of_the_normal_scores_alone():
    score = np.r_[np.arange(101.0), 1e9]
    fitted = fit_thresholds(score, score > 1e6)["percentile_95"]
    assert fitted.value == 95.0 and fitted.achieved["false_alarm_rate"] == pytest.approx(5 / 101)


@pytest.mark.parametrize(("n", "target"), [(199, 0.01), (60, 0.05), (30, 0.1), (19, 0.05), (60, 0.01)])
def test_conformal_promise_holds_by_simulation(n, target):
    """20,000 draws of n held-out scores and one future good part: alarms are as rare as promised, and not much rarer."""
    rng = np.random.default_rng(0)
    alarms = np.mean([(future := rng.standard_normal(n + 1))[-1] > conformal_value(future[:-1], target) for _ in range(20_000)])
    promised = conformal_quantile(np.arange(float(n)), target).promised_false_alarm_rate
    assert alarms == pytest.approx(promised, abs=4 * np.sqrt(promised / 20_000))


def conformal_value(scores, target):
    """The definition in one line: the smallest held-out score that at most (n + 1) * target - 1 others exceed."""
    allowed = max(int(np.floor(target * (len(scores) + 1) + 1e-9)), 1)
    return np.sort(scores)[-allowed]


@QUICK
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.29, 0.07]))
def test_conformal_threshold_is_the_order_statistic_and_ties_cannot_break_the_promise(scores, target):
    """Leave each of n + 1 scores out in turn: the share that exceeds the threshold of the others is the target at most, or 1 / (n + 1)."""
    promise = conformal_quantile(np.array(scores, dtype=float), target)
    assert promise.value == conformal_value(np.array(scores, dtype=float), target)
    if len(scores) > 1:
        left_out = [
            scores[i] > conformal_quantile(np.array(scores[:i] + scores[i + 1 :], dtype=float), target).value for i in range(len(scores))
        ]
        assert np.mean(left_out) <= max(target, 1 / len(scores)) + 1e-9


def test_sixty_good_parts_cannot_promise_less_than_1_in_61():
    threshold = conformal(np.arange(60.0), 0.01)
    assert threshold.value == 59.0
    assert threshold.achieved["smallest_reachable_rate"] == 1 / 61 == threshold.achieved["promised_false_alarm_rate"]
    assert "60 good parts cannot promise less than 1.6 % false alarms" in threshold.note and "it needs 99" in threshold.note


def test_the_number_of_good_parts_that_the_note_asks_for_is_the_smallest_that_reaches_the_target():
    assert conformal(np.arange(99.0), 0.01).note is None
    assert "it needs 99" in conformal(np.arange(98.0), 0.01).note


@pytest.mark.parametrize(("n", "target", "exceeding"), [(99, 0.01, 0), (199, 0.01, 1), (99, 0.07, 6), (99, 0.29, 28), (999, 0.01, 9)])
def test_whole_products_of_rate_and_size_are_not_lost_to_rounding(n, target, exceeding):
    """0.29 * 100 is 28.999999999999996 in floats; 28 of 99 scores may exceed the threshold."""
    scores = np.arange(float(n))
    assert (scores > conformal_quantile(scores, target).value).sum() == exceeding


def test_false_alarm_interval_is_the_spread_of_the_true_rate_over_held_out_draws():
    """The true false-alarm rate of the fitted threshold, over 4,000 draws of 199 uniform scores, against the stated 95 % interval."""
    rng = np.random.default_rng(1)
    rates = np.array([1000 * (1 - conformal_quantile(rng.random(199), 0.05).value) for _ in range(4000)])
    promise = conformal_quantile(np.arange(199.0), 0.05)
    assert np.quantile(rates, [0.025, 0.975]) == pytest.approx([promise.false_alarms_low, promise.false_alarms_high], rel=0.06)
    assert rates.mean() == pytest.approx(promise.false_alarms_per_1000, rel=0.03) and promise.false_alarms_per_1000 == 50


def test_conformal_p_values_of_good_parts_are_never_too_small():
    """Valid p-values: P(p <= alpha) <= alpha. 3,000 draws of 50 held-out scores and one future one."""
    rng = np.random.default_rng(0)
    p = np.array([conformal_p_value(rng.standard_normal(50), rng.standard_normal(1))[0] for _ in range(3000)])
    assert all((p <= alpha).mean() <= alpha + 3 * np.sqrt(alpha / 3000) for alpha in (0.02, 0.1, 0.5))
    assert stats.kstest(p, "uniform").statistic < 0.05
    assert conformal_p_value([1.0, 2.0, 3.0], [0.0, 2.0, 9.0]).tolist() == [1.0, 0.75, 0.25]


def test_percentile_among_counts_the_good_parts_that_score_lower():
    assert percentile_among([3.0, 1.0, 2.0, 2.0], [0.0, 2.0, 2.5, 9.0]).tolist() == [0.0, 25.0, 75.0, 100.0]


def test_validation_without_anomalies_leaves_conformal_and_percentile_and_says_why():
    fitted = fit_thresholds(np.arange(200.0), np.zeros(200, dtype=int))
    assert list(fitted) == list(METHODS)
    for method in ("f1_percentile", "f1_uniform", "youden"):
        assert fitted[method].value is None
        assert fitted[method].reason.startswith("E401: no anomalous image among 200 in validation")
    assert fitted["conformal"].value == 198.0 and fitted["percentile_95"].value == pytest.approx(189.05)


def test_validation_without_good_parts_has_no_threshold_at_all():
    fitted = fit_thresholds(np.arange(5.0), np.ones(5, dtype=int))
    assert all(one.value is None and one.reason for one in fitted.values())
    assert "E401: no normal image among 5" in fitted["youden"].reason and "no held-out normal score" in fitted["conformal"].reason


def test_empty_validation_with_out_of_fold_scores_still_has_the_default_threshold():
    fitted = fit_thresholds([], [], 0.05, normal_score=np.arange(100.0))
    assert fitted["conformal"].value == 95.0 and fitted["conformal"].achieved["n_normal"] == 100
    assert fitted["f1_uniform"].value is None


def test_constant_scores_are_named_a_collapsed_model():
    fitted = fit_thresholds(np.full(50, 2.5), np.arange(50) % 2)
    assert all(fitted[method].reason.startswith("E402: all 50 scores are 2.5") for method in ("f1_percentile", "f1_uniform", "youden"))
    assert all(fitted[method].value == 2.5 and "E402: all 25 scores" in fitted[method].note for method in ("percentile_95", "conformal"))


def test_one_good_part_promises_one_half_and_is_not_called_collapsed():
    threshold = conformal([3.0], 0.01)
    assert threshold.value == 3.0 and threshold.achieved["promised_false_alarm_rate"] == 0.5
    assert "E402" not in threshold.note and "needs 99" in threshold.note


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1])
def test_target_rate_outside_0_and_1_is_refused(target):
    with pytest.raises(ValueError, match="target false-alarm rate"):
        conformal([1.0, 2.0], target)


def test_broken_scores_are_an_error_in_every_fit():
    for fit in (percentile_95, conformal, lambda score: fit_thresholds(score, [0, 1])):
        with pytest.raises(ValueError, match="must be finite") as caught:
            fit([1.0, np.nan])
        assert not isinstance(caught.value, Undefined)


def test_thresholds_survive_json_unchanged():
    for one in fit_thresholds(*scored()).values():
        assert Threshold.from_dict(json.loads(json.dumps(one.to_dict(), allow_nan=False))) == one


NUMBER = r"(-?[\d.]+(?:e[+-]?\d+)?)"


def test_text_has_the_sections_and_lines_of_the_old_reports_in_their_order():
    score, label = scored()
    text = thresholds_text(score, label, fit_thresholds(*scored(seed=1)))
    patterns = [
        r"=== Image-level Results ===",
        rf"AUROC: {NUMBER} \({NUMBER}%\)",
        rf"AUPR: {NUMBER} \({NUMBER}%\)",
        r"",
        r"=== Thresholds ===",
        rf"F1 \(Percentile\): {NUMBER} \| F1: {NUMBER}",
        rf"F1 \(Uniform\): {NUMBER} \| F1: {NUMBER}",
        rf"ROC \(Youden J\): {NUMBER} \| Sensitivity: {NUMBER}, Specificity: {NUMBER}",
        rf"Percentile \(95%\): {NUMBER}",
        r"Conformal \(1% false alarms\): .*",
        r"",
        r"=== Confusion Matrix \(F1 Threshold\) ===",
        r"TP=\d+, FN=\d+, TN=\d+, FP=\d+",
        rf"Accuracy: {NUMBER}, Precision: {NUMBER}, Recall: {NUMBER}",
    ]
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == len(patterns)
    assert all(re.fullmatch(pattern, line) for pattern, line in zip(patterns, lines, strict=True)), text


def parsed_matrix(text):
    return Confusion(*map(int, re.search(r"TP=(\d+), FN=(\d+), TN=(\d+), FP=(\d+)", text).groups()))


@QUICK
@given(st.integers(0, 10**6), st.integers(20, 300))
def test_every_ratio_in_the_text_follows_from_its_one_confusion_matrix(seed, n):
    """The example report that this format comes from states 0.912 where its own counts give 0.914: parse ours and compute again."""
    score, label = scored(n, seed)
    text = thresholds_text(score, label, fit_thresholds(*scored(n, seed + 1)))
    matrix = parsed_matrix(text)
    printed = re.search(rf"Accuracy: {NUMBER}, Precision: {NUMBER}, Recall: {NUMBER}", text).groups()
    assert sum(matrix) == n and matrix.tp + matrix.fn == label.sum()
    assert [float(one) for one in printed] == pytest.approx([matrix.accuracy, matrix.precision, matrix.recall], abs=5.01e-4)
    assert float(re.search(rf"F1 \(Percentile\): .* F1: {NUMBER}", text)[1]) == pytest.approx(matrix.f1, abs=5.01e-4)


def test_without_anomalies_in_validation_the_matrix_is_that_of_the_conformal_threshold_and_f1_is_oracle():
    score, label = scored()
    thresholds = fit_thresholds(score[~label], np.zeros((~label).sum()), 0.05)
    text = thresholds_text(score, label, thresholds, oracle=fit_thresholds(score, label))
    assert "F1 (Percentile): n/a (E401: no anomalous image among" in text and "Confusion Matrix (F1" not in text
    matrix, oracle = text.split("=== Confusion Matrix (Conformal Threshold) ===")[1].split("=== oracle (test-fitted) ===")
    assert parsed_matrix(matrix) == confusion(score, label, thresholds["conformal"].value)
    assert re.search(rf"F1 \(Percentile\): {NUMBER} \| F1: {NUMBER}", oracle) and "Youden J" in oracle


def test_test_set_of_one_class_prints_reasons_and_no_made_up_numbers():
    text = thresholds_text([1.0, 2.0], [0, 0], fit_thresholds(np.arange(200.0), np.zeros(200)))
    assert "AUROC: n/a (no anomalous image among 2: there is nothing to find)" in text
    assert "Accuracy: 1.000, Precision: n/a (nothing was called anomalous), Recall: n/a (no anomalous image)" in text
    assert "nan" not in text.lower()


def test_without_any_threshold_the_text_says_so():
    text = thresholds_text([1.0, 2.0], [0, 1], fit_thresholds([], []))
    assert "=== Confusion Matrix ===\nn/a" in text


def test_promise_reads_as_alarms_per_thousand_good_parts():
    assert promise_text(conformal(np.arange(999.0), 0.003)) == "3 false alarms expected per 1,000 good parts (95 % CI 0.62-7.2)"
