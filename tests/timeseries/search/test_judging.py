import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.metrics.inputs import Undefined
from stages.timeseries.search.judging import KINDS, Block, Judged, blocks, draw_windows, figures
from stages.timeseries.search.plan import Plan, Stage

STAGE = Stage(100, 0.3, 0.2, 1, 32)


def _label(*regions, steps=100):
    label = np.zeros(steps, np.int8)
    for start, stop in regions:
        label[start:stop] = 1
    return label


def test_blocks_follow_the_shares_where_no_anomaly_lies_across():
    assert blocks(_label((20, 30), (50, 60)), STAGE) == [(0, 30), (30, 50), (50, 100)]


def test_an_anomaly_across_a_border_belongs_to_neither_side():
    assert blocks(_label((28, 33), (45, 51)), STAGE) == [(0, 28), (33, 45), (51, 100)]


@given(st.lists(st.tuples(st.integers(100, 880), st.integers(1, 60)), min_size=1, max_size=6))
def test_the_kinds_hold_for_every_patch_size(places):
    """By brute force over every window of the block."""
    plan, label = Plan(judged=(5000, 5000, 5000)), _label(*((start, start + length) for start, length in places), steps=1000)
    found = draw_windows(plan, label, Block(100, 950), "val")
    expected = {}
    for end in range(200, 951):
        for kind, agreed in {
            0: not label[end - 100 : end].any(),
            1: label[end - 100 : end].any() and not any(label[end - size : end].any() for size in plan.patch_sizes),
            2: all(label[end - size : end].any() for size in plan.patch_sizes),
        }.items():
            if agreed:
                expected[end] = kind
    assert dict(zip(found.ends.tolist(), found.kind.tolist())) == expected


def test_as_many_windows_as_asked_are_drawn_inside_the_block_and_always_the_same():
    plan, label = Plan(judged=(40, 20, 10)), _label((300, 330), (700, 740), steps=1000)
    found = draw_windows(plan, label, Block(150, 900), "val")
    assert np.bincount(found.kind).tolist() == [40, 20, 10] and len(set(found.ends.tolist())) == 70
    assert found.ends.min() >= 250 and found.ends.max() <= 900
    again = draw_windows(plan, label, Block(150, 900), "val")
    assert (found.ends == again.ends).all() and not (found.ends == draw_windows(plan, label, Block(150, 900), "test").ends).all()


def test_figures_by_hand():
    """Anomalies at 3 and 5; pure windows at 1 and 2 are below both, of the disturbing ones 4 is below one and 0 below both."""
    judged = Judged(np.arange(6), np.array([0, 0, 1, 1, 2, 2]))
    score = np.array([1.0, 2, 4, 0, 3, 5])
    found = figures(judged, score, -score, np.zeros(6))
    assert KINDS[2] == "anomaly"
    assert found["pure_auc"] == 1 and found["disturbing_auc"] == 0.75 and found["roc_auc"] == pytest.approx(7 / 8)
    assert found["reconstruction_auc"] == pytest.approx(1 / 8) and found["discrepancy_auc"] == 0.5


def test_no_anomalous_window_is_a_reason():
    with pytest.raises(Undefined):
        figures(Judged(np.arange(2), np.array([0, 1])), *np.ones((3, 2)))
