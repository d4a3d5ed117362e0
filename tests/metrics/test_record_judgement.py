"""Judging records: every number against brute force or scikit-learn, every interval around its value, every missing number with its reason."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, log_loss, roc_auc_score, roc_curve

from stages.metrics import calibration
from stages.metrics.bootstrap import Draws
from stages.metrics.counts import auroc_of_counts
from stages.metrics.ranking import rank
from stages.metrics.record_judgement import (
    AT_THRESHOLD,
    CALIBRATED,
    HALF,
    RAW,
    RECORD_METRICS,
    Judged,
    RecordRule,
    fault_rows,
    fit_temperature,
    fnr_at_fpr_05_of_counts,
    judge_records,
)

RULE = RecordRule(0.1, 200)
NOTHING = "not asked here"


def seen(seed: int, count: int = 120, seeds: int = 2, gap: float = 2.0, groups: int = 24) -> Judged:
    """Logits of records of which a third is anomalous, in groups."""
    draw = np.random.default_rng(seed)
    label = (np.arange(count) % 3 == 0).astype(int)
    score = draw.normal(size=(seeds, count)) + gap * (label - 0.5)
    fault = np.where(label == 1, np.where(np.arange(count) % 2, "leak", "spark"), "")
    return Judged(score, label, [f"g{number % groups}" for number in range(count)], fault.tolist())


@pytest.fixture(scope="module")
def judged():
    test, val = seen(0), seen(1)
    return test, val, judge_records(test, val, RULE, True, NOTHING)


def mean(measure, test: Judged, *each) -> float:
    return float(np.mean([measure(row, *one) for row, *one in zip(test.score, *each, strict=True)]))


def test_what_ranks_equals_scikit_learn_averaged_over_seeds(judged):
    test, _, found = judged
    assert found.cells["roc_auc"]["value"] == pytest.approx(mean(lambda row: roc_auc_score(test.label, row), test))
    assert found.cells["pr_auc"]["value"] == pytest.approx(mean(lambda row: average_precision_score(test.label, row), test))
    best = mean(lambda row: max(f1_score(test.label, row > cut) for cut in np.r_[row, row.min() - 1]), test)
    assert found.cells["f1_oracle"]["value"] == pytest.approx(best)


def test_the_miss_rate_is_read_where_at_most_five_of_a_hundred_normal_records_alarm(judged):
    test, _, found = judged

    def missed(row):
        false, true, _ = roc_curve(test.label, row, drop_intermediate=False)
        return 1 - true[false <= 0.05].max()

    assert found.cells["fnr_at_fpr_05"]["value"] == pytest.approx(mean(missed, test))
    alone = rank([3.0, 2.0, 1.0], [0, 1, 1])  # the highest score is the only normal one: nothing may be found
    assert fnr_at_fpr_05_of_counts(alone.positive, alone.negative) == 1


def test_numbers_at_the_threshold_are_those_of_each_seeds_own_held_out_normal_records(judged):
    test, val, found = judged
    cuts = [np.sort(row[val.label == 0])[-int(0.1 * ((val.label == 0).sum() + 1))] for row in val.score]
    assert [at.value for at in found.thresholds["conformal"]] == cuts
    alarms = [row > cut for row, cut in zip(test.score, cuts, strict=True)]
    by_hand = {
        "f1": [f1_score(test.label, alarm) for alarm in alarms],
        "recall": [alarm[test.label == 1].mean() for alarm in alarms],
        "precision": [test.label[alarm].mean() for alarm in alarms],
        "false_alarm_rate": [alarm[test.label == 0].mean() for alarm in alarms],
        "balanced_accuracy": [(alarm[test.label == 1].mean() + 1 - alarm[test.label == 0].mean()) / 2 for alarm in alarms],
    }
    assert set(by_hand) == set(AT_THRESHOLD)
    for name, values in by_hand.items():
        assert found.cells[name]["value"] == pytest.approx(np.mean(values)), name


def test_probabilities_are_judged_after_a_temperature_that_only_validation_fixed(judged):
    test, val, found = judged
    temperatures = [calibration.temperature(row, val.label) for row in val.score]
    assert [one.temperature for one in found.calibration] == temperatures
    shown = [calibration.probability(row, one) for row, one in zip(test.score, temperatures, strict=True)]
    assert found.cells["temperature"]["value"] == pytest.approx(np.mean(temperatures))
    assert found.cells["brier"]["value"] == pytest.approx(np.mean([brier_score_loss(test.label, one) for one in shown]))
    assert found.cells["nll"]["value"] == pytest.approx(np.mean([log_loss(test.label, one) for one in shown]))
    assert found.cells["ece"]["value"] == pytest.approx(np.mean([calibration.ece(one, test.label) for one in shown]))
    before = [calibration.ece(calibration.probability(row), test.label) for row in test.score]
    assert found.cells["ece_before"]["value"] == pytest.approx(np.mean(before))
    halves = [f1_score(test.label, one > 0.5) for one in shown]
    assert found.cells["f1_at_half"]["value"] == pytest.approx(np.mean(halves)) and found.thresholds[HALF][0].value == 0


def test_equal_probabilities_stay_in_one_bin_of_the_calibration_error():
    test = seen(2)
    test = test._replace(score=np.round(test.score))
    found = judge_records(test, seen(3), RULE, True, NOTHING)
    before = [calibration.ece(calibration.probability(row), test.label) for row in test.score]
    assert found.cells["ece_before"]["value"] == pytest.approx(np.mean(before))


def test_every_metric_has_a_value_within_its_interval_or_a_reason(judged):
    cells = judged[2].cells
    assert tuple(cells) == RECORD_METRICS
    assert cells["missing_auc"] == {"value": None, "reason": NOTHING}
    for name, cell in cells.items():
        if name != "missing_auc":
            assert cell["low"] <= cell["value"] <= cell["high"], name
            assert cell["low"] < cell["high"], name


def test_a_raw_score_has_thresholds_but_no_probability():
    found = judge_records(seen(0), seen(1), RULE, False, NOTHING)
    assert {name for name, cell in found.cells.items() if cell["value"] is None} == {*CALIBRATED, "missing_auc"}
    assert found.cells["ece"]["reason"] == found.cells["temperature"]["reason"] == RAW
    assert HALF not in found.thresholds and not found.calibration


def test_without_validation_there_is_no_threshold_and_no_temperature_and_each_says_so():
    empty = Judged(np.empty((2, 0)), np.empty(0, int), [], [])
    found = judge_records(seen(0), empty, RULE, True, NOTHING)
    for name in ("f1", "recall", "precision", "ece", "brier", "nll", "temperature"):
        assert found.cells[name]["value"] is None and found.cells[name]["reason"], name
    assert found.cells["roc_auc"]["value"] and found.cells["ece_before"]["value"] and found.cells["f1_at_half"]["value"]
    assert "normal and anomalous" in fit_temperature(np.ones(3), np.ones(3)).reason


def test_test_records_of_one_label_are_judged_as_far_as_they_can_be():
    test = seen(0)
    normal = Judged(
        test.score[:, test.label == 0], np.zeros((test.label == 0).sum(), int), np.asarray(test.group)[test.label == 0].tolist(), [""] * 80
    )
    found = judge_records(normal, seen(1), RULE, True, NOTHING)
    assert found.cells["roc_auc"]["value"] is None and "anomalous" in found.cells["roc_auc"]["reason"]
    assert 0 <= found.cells["false_alarm_rate"]["value"] < 0.5 and found.cells["recall"] == {"value": None, "reason": "no anomalous record"}


def test_one_group_a_class_leaves_the_whole_range_open():
    test = seen(0)
    found = judge_records(test._replace(group=["a" if one else "b" for one in test.label]), seen(1), RULE, True, NOTHING)
    assert (found.cells["roc_auc"]["low"], found.cells["roc_auc"]["high"]) == (0, 1)
    assert (found.cells["recall"]["low"], found.cells["recall"]["high"]) == (0, 1)


def test_intervals_are_wider_where_records_come_in_fewer_groups():
    def width(groups: int) -> float:
        test = seen(0, groups=groups)
        shared = np.random.default_rng(5).normal(size=groups)[np.arange(120) % groups]  # what a group's records share
        cell = judge_records(test._replace(score=test.score + 2 * shared), seen(1), RULE, True, NOTHING).cells["recall"]
        return cell["high"] - cell["low"]

    assert width(6) > width(120)


def test_each_kind_of_fault_is_set_against_all_normal_records(judged):
    test = judged[0]
    rows = {row["fault"]: row for row in judged[2].faults}
    assert set(rows) == {"leak", "spark"} and sum(row["records"] for row in rows.values()) == test.label.sum()
    own = (test.label == 0) | (np.asarray(test.fault) == "leak")
    expected = np.mean([roc_auc_score(test.label[own], row[own]) for row in test.score])
    assert rows["leak"]["roc_auc"] == pytest.approx(expected) and rows["leak"]["low"] <= expected <= rows["leak"]["high"]
    assert fault_rows(test._replace(fault=[""] * 120), RULE)[0]["fault"] == "not named"


def test_all_metrics_are_drawn_in_the_same_resamples(judged):
    """Recall at a threshold that parts nothing is 1 in every draw; and the ranks come from `bootstrap_draws` with the same weights."""
    test, val, found = judged
    again = judge_records(test, val, RULE, True, Draws(0.5, np.full(200, 0.5)))
    assert np.array_equal(again.draws["roc_auc"].samples, found.draws["roc_auc"].samples)
    assert again.cells["missing_auc"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    everything = test._replace(score=np.where(test.label == 1, 10.0, -10.0)[None].repeat(2, 0))
    perfect = judge_records(everything, val, RULE, True, NOTHING)
    assert (perfect.cells["recall"]["low"], perfect.cells["false_alarm_rate"]["high"]) == (1, 0)


def test_a_resampled_auroc_equals_that_of_the_drawn_records():
    """The weights of the thresholds' metrics and of the ranks are one: AUROC from `Scene` weights by brute force."""
    from stages.metrics import record_judgement

    test = seen(0, seeds=1)
    scene = record_judgement.scene_of(test.label == 1, test.group, 1, RULE)
    drawn = judge_records(test, seen(1, seeds=1), RULE, True, NOTHING).draws["roc_auc"].samples
    for place in (0, 7):
        which = np.repeat(np.arange(120), scene.weight[1 + place].astype(int))
        ranking = rank(test.score[0][which], test.label[which])
        assert drawn[place] == pytest.approx(float(auroc_of_counts(ranking.positive, ranking.negative)))


def test_a_score_at_the_threshold_is_no_alarm():
    test, val = seen(0), seen(1)
    alike = [one._replace(score=np.where(one.label == 1, 2.0, 1.0)[None].repeat(2, 0)) for one in (test, val)]
    found = judge_records(*alike, RULE, False, NOTHING).cells
    assert (found["false_alarm_rate"]["value"], found["recall"]["value"]) == (0, 1)
