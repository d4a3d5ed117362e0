"""VUS against frozen values of TSB-AD, against its definition written plainly, and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.metrics.inputs import Undefined
from stages.metrics.vus import Surface, range_auc, vus

CASES = json.loads(Path(__file__).with_name("series_references.json").read_text())["cases"]
QUICK = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def scored(draw):
    """Scores (often tied), labels with both classes and a buffer."""
    label = draw(st.lists(st.integers(0, 1), min_size=2, max_size=40).filter(lambda row: 0 < sum(row) < len(row)))
    score = draw(st.lists(st.integers(-3, 3), min_size=len(label), max_size=len(label)))
    return np.array(score, float), np.array(label), draw(st.integers(0, 8))


def by_definition(score, label, buffer):
    """R-AUC-ROC and R-AUC-PR of one series, one threshold and one event at a time."""
    steps, half = len(label), buffer // 2
    edges = np.flatnonzero(np.diff(np.r_[0, label, 0]))
    events = [(start, stop - 1) for start, stop in zip(edges[::2], edges[1::2])]
    soft = label.astype(float)
    for first, last in events:
        for step in range(steps):
            away = max(first - step, step - last)
            if 1 <= away <= half:
                soft[step] += np.sqrt(1 - away / buffer)
    soft = np.minimum(soft, 1)
    ranges = [[events[0][0] - half, events[0][1] + half]]
    for first, last in events[1:]:
        if ranges[-1][1] < first - half:
            ranges.append([first - half, last + half])
        ranges[-1][1] = last + half
    curve = [(0.0, 0.0, 1.0)]
    for rank in np.linspace(0, steps - 1, 250).astype(int):
        flagged = score >= np.sort(score)[::-1][rank]
        true = (soft * flagged).sum()
        positives = label.sum() + (soft * flagged)[label == 0].sum() / 2
        touched = np.mean([flagged[max(first, 0) : last + 1].any() for first, last in ranges])
        curve.append((min(true / positives, 1) * touched, (flagged.sum() - true) / (steps - positives), true / flagged.sum()))
    recall, fall_out, precision = np.array(curve).T
    roc = sum((b - a) * (c + d) / 2 for a, b, c, d in zip(fall_out, [*fall_out[1:], 1], recall, [*recall[1:], 1]))
    return roc, sum((b - a) * p for a, b, p in zip(recall, recall[1:], precision[1:]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vus_equals_tsb_ad(case):
    label = np.zeros(case["steps"], int)
    for start, stop in case["events"]:
        label[start:stop] = 1
    found = vus(case["score"], label, case["buffer"])
    assert found == pytest.approx((case["reference"]["vus_roc"], case["reference"]["vus_pr"]), abs=1e-9)


@QUICK
@given(scored())
def test_range_auc_follows_its_definition_and_vus_is_its_mean_over_buffers(data):
    score, label, buffer = data
    each = [by_definition(score, label, one) for one in range(buffer + 1)]
    assert range_auc(score, label, buffer) == pytest.approx(each[-1], abs=1e-9)
    assert vus(score, label, buffer) == pytest.approx(tuple(np.mean(each, axis=0)), abs=1e-9)


@QUICK
@given(scored())
def test_vus_lies_in_0_to_1_and_only_the_order_of_scores_matters(data):
    score, label, buffer = data
    found = vus(score, label, buffer)
    assert all(-1e-12 <= value <= 1 + 1e-12 for value in found)
    assert vus(np.exp(score / 2) + 7, label, buffer) == found


def test_range_auc_by_hand():
    """Steps 0 1 2 3, event at 2, buffer 2: the soft label is 0, r, 1, r with r = sqrt(1/2).

    Falling scores flag 2, 1, 3, 0: true positives 1, 1 + r, 1 + 2r, positives 1, 1 + r/2, 1 + r, so recall is 1 throughout, precision of the first is 1.
    False positives 0, 1 - r, 2 - 2r, 3 - 2r: ROC runs at recall 1 from the start.
    """
    assert range_auc([0, 2, 3, 1], [0, 0, 1, 0], 2) == pytest.approx((1.0, 1.0))


def test_an_alarm_just_before_an_event_is_worth_something_with_a_buffer_and_nothing_without():
    label, score = np.zeros(400, int), np.zeros(400)
    label[200:210], score[190:200] = 1, 1
    assert range_auc(score, label, 40).pr > 0.4 > 0.1 > range_auc(score, label, 0).pr


def test_a_buffer_ends_at_the_border_of_a_segment():
    """An alarm right behind an event earns nothing where it lies in another segment; the two events there are two."""
    label = np.zeros(100, int)
    label[45:50] = label[70:75] = 1
    score = np.zeros(100)
    score[50:55] = 1
    joined, apart = vus(score, label, 20), vus(score, label, 20, lengths=[50, 50])
    assert joined.pr > apart.pr + 0.05
    _, surface = Surface(score, label == 1, [50, 50]).counts([60])
    assert next(surface).events == 2


def test_counts_in_groups_add_up_to_the_counts_of_the_whole():
    rng = np.random.default_rng(0)
    label = np.zeros(300, bool)
    label[40:50] = label[60:65] = label[200:220] = True
    score = rng.standard_normal(300)
    group = (np.arange(300) >= 120).astype(int) + (np.arange(300) >= 280)
    (base, surface), (whole, whole_surface) = (Surface(score, label, None, one).counts([0, 7, 30]) for one in (group, None))
    for parts, total in zip(
        [*base, *(field for one in surface for field in one)], [*whole, *(field for one in whole_surface for field in one)]
    ):
        np.testing.assert_allclose(parts.sum(0), total[0], atol=1e-9)


@pytest.mark.parametrize("label", [np.zeros(10, int), np.ones(10, int)])
def test_one_class_has_no_vus(label):
    with pytest.raises(Undefined, match="step"):
        vus(np.arange(10.0), label, 4)
