"""One category judged: held-out images set the threshold, test images are only judged by it, what is missing has a reason."""

import numpy as np
import pytest
from scipy import stats

from stages.metrics.judgement import Judgement, Rule, Scored, judge_category, mean_over, same_distribution_p
from stages.metrics.result import result_of, tables_of, thresholds_of
from stages.metrics.tables import metrics_csv, pretty

RULE = Rule((0.3, 0.05), 0.1, 200, 10**9)


def scored(count: int, bad: int, seed: int = 0, masks: bool = False, lift: float = 3.0) -> Scored:
    rng = np.random.default_rng(seed)
    label = np.r_[np.zeros(count - bad, dtype=int), np.ones(bad, dtype=int)]
    maps = rng.normal(size=(count, 8, 8)).astype(np.float32)
    mask = np.zeros((count, 8, 8), dtype=bool)
    mask[label == 1, 2:5, 2:5] = True
    maps[mask] += lift
    score = (rng.normal(size=count) + lift * label).astype(np.float32)
    return Scored([f"s{number}" for number in range(count)], label, score, maps, mask if masks else None)


def judged(val=None, test=None, held_out=None, rule: Rule = RULE, masked=None, **splits) -> Judgement:
    by_split = {"val": [val or scored(9, 0, 1)], "test": test or [scored(40, 20, 2), scored(40, 20, 3)], **splits}
    groups = {split: list(seeds[0].sample_id) for split, seeds in by_split.items()}
    known = {split: np.ones(len(seeds[0].label), dtype=bool) for split, seeds in by_split.items()}
    known["test"] = known["test"] if masked is None else masked
    return judge_category(by_split, groups, known, np.empty(0) if held_out is None else held_out, rule)


def test_the_threshold_is_decided_by_held_out_images_alone():
    """Test scores, however wild, move no fitted threshold; one held-out score more does."""
    wild = scored(40, 20, 2)._replace(score=np.random.default_rng(9).normal(size=40).astype(np.float32) * 100)
    one, other = judged(), judged(test=[wild, wild])
    assert one.thresholds == other.thresholds and one.oracle != other.oracle
    more = np.r_[wild.score[:0], np.random.default_rng(4).normal(size=30), 7.0]
    assert judged(held_out=more, rule=RULE._replace(target_false_alarm_rate=0.01)).thresholds["conformal"].value == 7.0


def test_out_of_fold_scores_of_another_distribution_do_not_set_the_threshold():
    """Models of fewer images that score twice as high would make a threshold that nothing exceeds."""
    same, other = np.random.default_rng(4).normal(size=50), np.random.default_rng(4).normal(size=50) + 6
    assert len(judged(held_out=same).held_out) == 59 and judged(held_out=same).thresholds["percentile_95"].note is None
    apart = judged(held_out=other)
    assert len(apart.held_out) == 9 and apart.thresholds["conformal"].achieved["n_normal"] == 9
    assert "50 out-of-fold scores were left out" in apart.thresholds["conformal"].note


def test_metrics_at_the_threshold_come_from_one_confusion_matrix():
    val = scored(9, 0)._replace(score=np.zeros(9, dtype=np.float32))
    test = Scored(list("abcdef"), np.array([0, 0, 0, 1, 1, 1]), np.float32([-1, -1, 1, 1, 1, -1]), None, None)
    cells = judged(val, [test]).cells
    assert {name: cells[name]["value"] for name in ("accuracy", "precision", "recall", "f1", "false_alarm_rate")} == {
        "accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "false_alarm_rate": pytest.approx(1 / 3),
    }  # fmt: skip


def test_without_masks_pixel_metrics_have_a_reason_and_image_metrics_a_value():
    cells = judged().cells
    assert cells["image_auroc"]["value"] > 0.9 and cells["pixel_auroc"] == {"value": None, "reason": "the data set has no masks"}


def test_images_whose_mask_is_unknown_are_left_out_of_pixel_metrics():
    """The last five defects have an empty mask in the store; counted as good pixels they would cost AUROC."""
    test = scored(40, 20, 2, masks=True)
    hidden = test.masks.copy()
    hidden[35:] = False
    known = np.arange(40) < 35
    full = judged(test=[test._replace(masks=hidden)]).cells["pixel_auroc"]["value"]
    assert judged(test=[test._replace(masks=hidden)], masked=known).cells["pixel_auroc"]["value"] > full


def test_binned_pixel_metrics_are_near_the_exact_ones():
    test = [scored(40, 20, 2, masks=True)]
    exact, binned = judged(test=test), judged(test=test, rule=RULE._replace(pixel_bins_above=0))
    for name in ("pixel_auroc", "pixel_ap", "aupro", "aupro_005"):
        assert binned.cells[name]["value"] == pytest.approx(exact.cells[name]["value"], abs=2e-3), name


def test_only_good_test_images_leave_metrics_undefined_but_count_false_alarms():
    good = scored(20, 0, 4)
    cells = judged(test=[good]).cells
    assert cells["image_auroc"]["value"] is None and "anomalous" in cells["image_auroc"]["reason"]
    assert cells["recall"]["value"] is None and 0 <= cells["false_alarm_rate"]["value"] <= 1


def test_a_shift_is_judged_at_the_threshold_that_was_fixed_without_it():
    shifted = scored(40, 20, 5, lift=0.0)
    shift = judged(test_shift=[shifted._replace(score=shifted.score + 50), scored(40, 20, 6, lift=0.0)]).shift["test_shift"]
    assert shift["false_alarm_rate"]["value"] == 1.0 and shift["image_auroc_drop"]["value"] > 0.3


def test_the_mean_is_over_the_categories_that_have_the_metric_and_says_so():
    with_masks, without = judged(test=[scored(40, 20, 2, masks=True)]), judged()
    mean = mean_over({"a": with_masks, "b": without})
    assert mean["pixel_auroc"]["value"] == with_masks.cells["pixel_auroc"]["value"] and mean["pixel_auroc"]["over"] == "1 of 2 categories"
    values = [one.cells["image_auroc"]["value"] for one in (with_masks, without)]
    assert mean["image_auroc"]["value"] == pytest.approx(np.mean(values)) and "over" not in mean["image_auroc"]


def test_a_result_with_its_tables_and_the_most_suspicious_training_images():
    one = judged(test=[scored(40, 20, 2, masks=True)])
    result = result_of({"model": "x"}, {"a": one}, {"b": "too few images"})
    assert result["refused_categories"] == {"b": "too few images"}
    lines = tables_of(result)["summary_metrics.csv"].splitlines()
    assert lines[0].startswith("category,image_auroc,image_ap") and [line.split(",")[0] for line in lines] == ["category", "a", "mean"]
    assert float(lines[1].split(",")[1]) == one.cells["image_auroc"]["value"]
    rows = [{"sample_id": name, "image_score": value} for name, value in (("a", 1.0), ("b", 3.0), ("c", 2.0))]
    assert [row["sample_id"] for row in thresholds_of(one, rows)["suspicious_training_images"]] == ["b", "c", "a"]


def test_a_model_refused_everywhere_has_its_reason_and_no_tables():
    result = result_of({"model": "x"}, {}, {"a": "E101 weights"})
    assert result == {"model": "x", "refused": "E101 weights"} and tables_of(result) == {}


def test_cells_of_tables():
    assert pretty({"value": 0.9573, "low": 0.9411, "high": 0.97}) == "95.7 [94.1, 97.0]"
    assert pretty({"value": None, "reason": "r"}) == "n/a"
    assert (
        metrics_csv({"aupro": {"value": None, "reason": "no masks, none"}}) == 'metric,value,low,high,reason\naupro,,,,"no masks, none"\n'
    )


@pytest.mark.parametrize(("first", "second"), [(20, 10), (60, 12), (300, 50), (40, 40)])
def test_the_p_value_of_two_samples_is_scipys(first, second):
    """Stephens' correction against scipy's exact law: within a third, from 10 images on."""
    generator = np.random.default_rng(first)
    for apart in np.linspace(0, 2, 9):
        samples = generator.normal(size=first), generator.normal(apart, size=second)
        exact, ours = stats.ks_2samp(*samples).pvalue, same_distribution_p(*samples)
        assert ours == pytest.approx(exact, rel=1 / 3, abs=0.002), apart
