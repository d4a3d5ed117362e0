"""Affiliation, range-based, event and point-adjusted metrics: frozen values of the reference code, plain definitions, and values by hand."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from stages.metrics.affiliation import affiliation, affiliation_per_event
from stages.metrics.events import delay, event_f1, events_of, false_alarms_per_10k, missed_events, runs, segment_ends
from stages.metrics.inputs import Undefined
from stages.metrics.point_adjust import pa_f1, pa_k_auc, pa_k_curve, point_adjusted
from stages.metrics.range_based import range_based
from stages.metrics.ranking import auroc, average_precision, f1_max

CASES = json.loads(Path(__file__).with_name("series_references.json").read_text())["cases"]
QUICK = settings(max_examples=60, deadline=None, derandomize=True)
FLAGS = st.lists(st.integers(0, 1), min_size=2, max_size=40)


@st.composite
def alarmed(draw):
    """Alarms and labels, with an event and a normal step."""
    label = np.array(draw(FLAGS.filter(lambda row: 0 < sum(row) < len(row))))
    return np.array(draw(st.lists(st.integers(0, 1), min_size=len(label), max_size=len(label)))), label


def spans(flags):
    edges = np.flatnonzero(np.diff(np.r_[0, flags, 0]))
    return list(zip(edges[::2], edges[1::2]))


def label_of(case):
    label = np.zeros(case["steps"], int)
    for start, stop in case["events"]:
        label[start:stop] = 1
    return label


def beyond(distance, limit):
    """Share that is farther than the limit; what lies at it counts half."""
    return ((distance > limit).mean() + (distance >= limit).mean()) / 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_metrics_equal_the_reference_code(case):
    score, label = np.array(case["score"]), label_of(case)
    alarm = score > case["threshold"]
    near = affiliation(alarm, label)
    found = {
        "roc_auc": auroc(score, label),
        "pr_auc": average_precision(score, label),
        "affiliation_precision": near.precision,
        "affiliation_recall": near.recall,
        "range_f1": range_based(alarm, label).f1,
        "event_f1": event_f1(alarm, label),
        "pa_f1_at_threshold": f1_score(label, point_adjusted(alarm, label)),
    }
    for name in found.keys() & case["reference"].keys():
        assert found[name] == pytest.approx(case["reference"][name], abs=1e-9), name


def test_the_fixtures_are_twenty_series_with_every_metric():
    assert len(CASES) == 20
    assert sum(len(case["reference"]) for case in CASES) == 175


@QUICK
@given(alarmed())
def test_affiliation_follows_its_definition(data):
    """Both chances counted on a grid of 32 points a step."""
    alarm, label = data
    if not alarm.any():
        return
    grid = (np.arange(len(label) * 32) + 0.5) / 32
    flagged = alarm[grid.astype(int)] == 1
    events = spans(label)
    middles = [0, *((a[1] + b[0]) / 2 for a, b in pairwise(events)), len(label)]
    each = affiliation_per_event(alarm == 1, runs(label == 1))
    for (start, stop), low, high, precision, recall in zip(events, middles, middles[1:], *each):
        zone = grid[(grid > low) & (grid < high)]
        hits = grid[flagged & (grid > low) & (grid < high)]
        if not len(hits):
            assert np.isnan(precision) and recall == 0
            continue
        away = np.clip(np.maximum(start - zone, zone - stop), 0, None)
        chance = [beyond(away, max(start - hit, hit - stop)) if not start < hit < stop else 1.0 for hit in hits]
        assert precision == pytest.approx(np.mean(chance), abs=0.01)
        inside = grid[(grid > start) & (grid < stop)]
        pieces = [(max(first, low), min(last, high)) for first, last in spans(alarm) if first < high and last > low]
        nearest = [min(max(first - point, point - last) for first, last in pieces) for point in inside]
        chance = [1.0 if gap < 0 else beyond(np.abs(zone - point), gap) for point, gap in zip(inside, nearest)]
        assert recall == pytest.approx(np.mean(chance), abs=0.01)


def test_affiliation_by_hand():
    """10 steps, event [4, 6), alarm [7, 8): E = [0, 10), |J| = 2, distances 1..2, shorter side 4, so precision 1 - (2 + 2 * 1.5) / 10 = 0.5.

    Recall: y in [4, 6), d = 7 - y in 1..3. From y = 5 on, the nearer end is 10 with 10 - y > d, and below, 0 with y > d: min is d, 1 - 2 d / 10 on average 0.6.
    """
    label, alarm = np.zeros(10, int), np.zeros(10, int)
    label[4:6] = alarm[7] = 1
    found = affiliation(alarm, label)
    assert found == pytest.approx((0.5, 0.6, 0.6 / 1.1))


@QUICK
@given(alarmed(), st.sampled_from([0.0, 0.2, 1.0]))
def test_range_based_follows_its_definition(data, alpha):
    alarm, label = data

    def earned(ranges, others, alpha):
        total = []
        for start, stop in ranges:
            met = [max(0, min(stop, end) - max(start, begin)) for begin, end in others]
            pieces = sum(overlap > 0 for overlap in met)
            total.append(alpha * (pieces > 0) + (1 - alpha) * sum(met) / (stop - start) / max(pieces, 1))
        return np.mean(total)

    found = range_based(alarm, label, alpha)
    assert found.recall == pytest.approx(earned(spans(label), spans(alarm), alpha))
    if alarm.any():
        assert found.precision == pytest.approx(earned(spans(alarm), spans(label), 0))
    else:
        assert (found.precision, found.f1) == (None, 0)


@QUICK
@given(alarmed())
def test_a_perfect_row_of_alarms_scores_1_and_all_scores_lie_in_0_to_1(data):
    alarm, label = data
    assert affiliation(label, label) == pytest.approx((1, 1, 1))
    assert range_based(label, label) == pytest.approx((1, 1, 1))
    assert event_f1(label, label) == 1
    assert 0 <= event_f1(alarm, label) <= 1 and 0 <= range_based(alarm, label).f1 <= 1
    if alarm.any():
        assert all(0 <= value <= 1 for value in affiliation(alarm, label))


@QUICK
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=2, max_size=30).filter(
        lambda rows: 0 < sum(y for _, y in rows) < len(rows)
    )
)
def test_pa_k_equals_adjusting_at_every_threshold(rows):
    score, label = np.array(rows, float).T
    label = label.astype(int)

    def best(share):
        reached = []
        for threshold in np.unique(score) - 0.5:
            alarm = score > threshold
            for start, stop in spans(label):
                if alarm[start:stop].sum() * 100 > share * (stop - start):
                    alarm[start:stop] = True
            reached.append(2 * (alarm & (label == 1)).sum() / (alarm.sum() + label.sum()))
        return max(reached)

    shares = (0, 10, 30, 50, 90, 100)
    curve = pa_k_curve(score, label, shares=shares)
    np.testing.assert_allclose(curve, [best(share) for share in shares], atol=1e-12)
    assert curve[0] == pa_f1(score, label)
    assert curve[-1] == pytest.approx(f1_max(score, label).value)
    assert (np.diff(curve) <= 1e-12).all()
    assert curve[-1] - 1e-12 <= pa_k_auc(score, label) <= curve[0] + 1e-12


def test_random_scores_look_good_to_pa_f1_alone():
    """Why it is printed as inflated: nothing is learnt here. PR AUC is the share of anomalous steps."""
    rng = np.random.default_rng(0)
    label = np.zeros(30_000, int)
    for start in rng.integers(0, 29_900, 20):
        label[start : start + 50] = 1
    score = rng.random(30_000)
    assert average_precision(score, label) == pytest.approx(label.mean(), abs=0.005)
    assert auroc(score, label) == pytest.approx(0.5, abs=0.03)
    assert f1_max(score, label).value < 0.1
    assert pa_f1(score, label) > 0.5


def test_events_by_hand():
    """Events 2..3 and 6..9; alarms at 0, 3, 4, 11 and 12: one event found a step late, two runs of alarms touch no event."""
    label, alarm = np.zeros(14, int), np.zeros(14, int)
    label[[2, 3, 6, 7, 8, 9]] = 1
    alarm[[0, 3, 4, 11, 12]] = 1
    assert delay(alarm, label) == 1
    assert missed_events(alarm, label) == 1
    assert event_f1(alarm, label) == pytest.approx(2 * 0.5 * 0.2 / 0.7)
    assert false_alarms_per_10k(alarm, label) == pytest.approx(10_000 * 2 / 8)


def test_an_event_at_the_end_is_found_by_its_last_step():
    """Where TSB-AD's event F1 loses a step."""
    assert event_f1([0, 0, 0, 1], [0, 0, 0, 1]) == 1


def test_runs_end_at_the_border_of_a_segment():
    flags = np.array([1, 1, 1, 0, 1, 1], bool)
    assert [tuple(side) for side in runs(flags, [2, 3, 1])] == [(0, 2, 4, 5), (2, 3, 5, 6)]
    assert [tuple(side) for side in runs(flags)] == [(0, 4), (3, 6)]


@pytest.mark.parametrize("lengths", [[3, 2], [4, 0], [5, -1], []])
def test_lengths_that_do_not_add_up_are_refused(lengths):
    with pytest.raises(ValueError, match="add up to the 4 steps"):
        segment_ends(4, lengths)


def test_what_has_no_value_says_why():
    nothing, some = np.zeros(5, int), np.array([0, 1, 0, 0, 0])
    with pytest.raises(Undefined, match="nothing to find"):
        events_of(nothing)
    with pytest.raises(Undefined, match="no alarm"):
        affiliation(nothing, some)
    with pytest.raises(Undefined, match="none of 1 events"):
        delay(nothing, some)
    with pytest.raises(Undefined, match="no normal step"):
        false_alarms_per_10k(some, np.ones(5, int))
