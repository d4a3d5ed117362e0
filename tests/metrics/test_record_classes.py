"""Judging by classes: what training never had counts as wrong and is said, intervals hold their value, verdicts keep what held-out records promise."""

import numpy as np
import pytest

from stages.metrics.record_classes import CLASS_METRICS, Told, class_result, judge_classes, learning_csv
from stages.metrics.record_judgement import Judged, RecordRule

NAMES = ["normal", "overlap", "spatter", "warping"]  # the last is in no training record
RULE = RecordRule(0.1, 100)


def told(seed: int, count: int = 160, seeds: int = 2, sure: float = 2.0) -> tuple[Judged, Told]:
    draw = np.random.default_rng(seed)
    true = np.arange(count) % 4
    logits = draw.normal(size=(seeds, count, 3)) + sure * np.eye(4)[true][:, :3]
    score = np.log(np.exp(logits[..., 1:]).sum(-1)) - logits[..., 0]
    fault = ["" if one == 0 else NAMES[one] for one in true]
    judged = Judged(score, (true > 0).astype(int), [f"g{number // 4}" for number in range(count)], fault)
    return judged, Told(logits, logits.argmax(-1), true, NAMES)


@pytest.fixture(scope="module")
def found():
    (test, own), (val, held) = told(0), told(1)
    return own, judge_classes({"test": test, "val": val}, {"test": own, "val": held}, RULE)


def test_a_class_that_only_test_records_have_is_wrong_in_each_of_them_and_is_said(found):
    own, judged = found
    assert judged.unseen == ["warping"] and class_result(judged)["classes_only_in_test"] == ["warping"] and class_result(judged)["classes"] == 3
    row = next(row for row in judged.rows if row["class"] == "warping")
    assert (row["records"], row["recall"], row["f1"], row["precision"]) == (40, 0, 0, None)
    right = (own.logits.argmax(-1) == own.true).mean()
    assert judged.cells["accuracy"]["value"] == pytest.approx(right) and right <= 0.75
    assert judged.confusion.sum() == 160 and judged.confusion[:, 3].sum() == 0 and judged.confusion[3].sum() == 40


def test_every_figure_lies_in_its_interval_in_the_order_of_the_tables(found):
    cells = found[1].cells
    assert tuple(cells) == CLASS_METRICS
    assert all(cell["low"] <= cell["value"] <= cell["high"] and cell["low"] < cell["high"] for cell in cells.values())
    assert cells["fnr_at_fpr_01"]["value"] >= cells["fnr_at_fpr_10"]["value"] and cells["ap_at_05"]["value"] <= cells["ap_at_20"]["value"]


def test_test_records_of_one_label_have_classes_but_no_ranks():
    test, own = told(0)
    bad = np.flatnonzero(test.label == 1)
    only = Judged(test.score[:, bad], test.label[bad], [test.group[one] for one in bad], [test.fault[one] for one in bad])
    part = Told(own.logits[:, bad], own.neighbour[:, bad], own.true[bad], NAMES)
    judged = judge_classes({"test": only, "val": only}, {"test": part, "val": part}, RULE)
    assert judged.cells["ap_at_05"]["value"] is None and "normal" in judged.cells["ap_at_05"]["reason"]
    assert judged.cells["accuracy"]["value"] > 0.3 and judged.rows[0]["f1"] is None
    assert judged.verdicts["rule"] is None and "normal and anomalous" in judged.verdicts["reason"]


def test_at_most_the_promised_share_is_rejected_or_accepted_wrongly_of_many():
    (test, own), (val, held) = told(2, 4000, 1), told(3, 4000, 1)
    verdicts = judge_classes({"test": test, "val": val}, {"test": own, "val": held}, RULE._replace(resamples=2)).verdicts
    normal, bad = (sum(both[name] for both in verdicts["test"].values()) for name in ("normal", "anomalous"))
    assert normal + bad == 4000
    assert verdicts["test"]["reject"]["normal"] / normal == pytest.approx(0.1, abs=0.04)
    assert verdicts["test"]["accept"]["anomalous"] / bad == pytest.approx(0.1, abs=0.04)


def test_the_table_of_learning_has_a_line_for_each_measurement_and_none_where_nothing_was_measured():
    text = learning_csv({0: [{"training": "a", "step": 1, "epoch": 0, "val_loss": 0.5, "note": "text"}], 1: [{"weights": [1, 2]}]})
    assert text == "seed,training,step,epoch,val_loss\n0,a,1,0,0.5\n" and learning_csv({0: [{"weights": [1]}]}) == ""
