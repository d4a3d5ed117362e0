"""Records judged with modalities missing: every subset on the same records, the area under the curve by hand."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from stages.metrics.bootstrap import Draws
from stages.metrics.inputs import Undefined
from stages.metrics.subsets import area_under, judge_subsets, mean_draws

NAMES = ("text", "image", "audio")
LABEL = (np.arange(60) % 2).astype(int)
GROUP = np.arange(60) // 4


def scored(seed: int = 0) -> dict[int, np.ndarray]:
    """By mask two seeds' scores: a subset sees as much more as it has members."""
    draw = np.random.default_rng(seed)
    masks = [sum(1 << one for one in members) for size in (1, 2, 3) for members in combinations(range(3), size)]
    return {mask: draw.normal(size=(2, 60)) + mask.bit_count() * 0.6 * LABEL for mask in masks}


def test_each_subset_is_named_counted_and_judged():
    scores = scored()
    table = judge_subsets(scores, NAMES, LABEL, GROUP, 100)
    assert [row["modalities"] for row in table.rows] == [
        "text",
        "image",
        "audio",
        "text+image",
        "text+audio",
        "image+audio",
        "text+image+audio",
    ]
    for row, rows in zip(table.rows, scores.values(), strict=True):
        assert row["roc_auc"] == pytest.approx(np.mean([roc_auc_score(LABEL, one) for one in rows]))
        assert row["pr_auc"] == pytest.approx(np.mean([average_precision_score(LABEL, one) for one in rows]))
        assert row["low"] <= row["roc_auc"] <= row["high"] and row["share_missing"] == pytest.approx(1 - row["count"] / 3)


def test_the_curve_is_the_mean_over_subsets_of_one_size_and_the_area_is_that_of_its_trapezoids():
    table = judge_subsets(scored(), NAMES, LABEL, GROUP, 100)
    by_size = {size: np.mean([row["roc_auc"] for row in table.rows if row["count"] == size]) for size in (3, 2, 1)}
    assert [point["roc_auc"] for point in table.curve] == pytest.approx(list(by_size.values()))
    assert [point["count"] for point in table.curve] == [3, 2, 1]
    assert table.area.value == pytest.approx((by_size[3] / 2 + by_size[2] + by_size[1] / 2) / 2)
    assert table.area.interval.low < table.area.value < table.area.interval.high


def test_a_model_that_loses_nothing_has_the_area_of_its_auroc_and_one_that_loses_all_keeps_the_first_trapezoid():
    whole = scored()[7]
    same = judge_subsets(dict.fromkeys((1, 2, 4, 3, 5, 6, 7), whole), NAMES, LABEL, GROUP, 100)
    assert same.area.value == pytest.approx(same.rows[-1]["roc_auc"])
    assert np.allclose(same.area.samples, mean_draws([same.area, same.area]).samples)
    perfect, blind = Draws(1.0, np.ones(3)), Draws(0.5, np.full(3, 0.5))
    area = area_under([0, 1 / 3, 2 / 3], [perfect, blind, blind])
    assert area.value == pytest.approx((0.75 + 0.5) / 2) and np.allclose(area.samples, area.value)


def test_one_modality_has_one_point_and_no_width_to_divide_by():
    table = judge_subsets({1: scored()[1]}, ("text",), LABEL, GROUP, 100)
    assert table.area.value == table.rows[0]["roc_auc"] and len(table.curve) == 1


def test_labels_of_one_class_have_no_curve():
    with pytest.raises(Undefined, match="nothing to find"):
        judge_subsets(scored(), NAMES, np.zeros(60, int), GROUP, 100)
