"""Train, val, threshold and test follow each other in time, and nothing that test asks about is in train."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.datasets import series_splits
from stages.datasets.recordings import Segment
from stages.datasets.samples import DataError
from stages.datasets.segments import normal_parts, recording_path
from stages.datasets.series_splits import LEAST, SPLITS, Rule, split

RULE = Rule(0.5, 0.1)


def row(name: str = "a", steps: int = 100, category: str = "c", **changes) -> dict:
    plain = {"recording_id": f"{category}/{name}", "category": category, "steps": steps, "breaks": [], "train_steps": None}
    return plain | {"regions": [], "content_hash": name} | changes


def region(start: int, stop: int) -> dict:
    return {"start": start, "stop": stop, "kind": "spike", "variables": [], "magnitude": None}


def drawn(*rows: dict) -> list[tuple]:
    return [(part["recording_id"].split("/")[1], part["split"], part["start"], part["stop"]) for part in split(rows, RULE)[0]]


def test_the_shares_of_the_protocol_follow_each_other():
    assert drawn(row()) == [("a", "train", 0, 50), ("a", "threshold", 50, 60), ("a", "test", 60, 100)]


def test_what_is_held_out_is_halved_where_a_category_has_enough_of_it():
    enough = 20 * LEAST  # a tenth of it is held out
    val, test = enough // 2, enough * 6 // 10
    assert drawn(row(steps=enough)) == [
        ("a", "train", 0, val), ("a", "val", val, val + LEAST), ("a", "threshold", val + LEAST, test), ("a", "test", test, enough)
    ]  # fmt: skip
    assert [name for _, name, _, _ in drawn(row(steps=enough - 20))] == ["train", "threshold", "test"]


def test_the_recordings_of_a_category_count_together_and_those_of_others_do_not():
    half = 10 * LEAST
    together = [row("a", steps=half), row("b", steps=half), row("c", steps=half, category="other")]
    assert [(name, split) for name, split, _, _ in drawn(*together)] == [
        *((name, split) for name in "ab" for split in SPLITS), ("c", "train"), ("c", "threshold"), ("c", "test")
    ]  # fmt: skip


def test_an_anomaly_across_the_middle_of_what_is_held_out_is_in_neither_half():
    middle = 11 * LEAST
    segments, excluded = split([row(steps=20 * LEAST, regions=[region(middle - 5, middle + 5)])], RULE)
    assert [part["stop"] - part["start"] for part in segments[1:3]] == [LEAST - 5, LEAST - 5]
    assert [part.reason for part in excluded] == ["spike across the border of val and threshold"]


def test_where_the_data_set_fixes_train_what_is_held_out_is_its_last_part():
    assert drawn(row(train_steps=40)) == [("a", "train", 0, 36), ("a", "threshold", 36, 40), ("a", "test", 40, 100)]
    assert drawn(row("a", train_steps=100), row("b", train_steps=0)) == [
        ("a", "train", 0, 90),
        ("a", "threshold", 90, 100),
        ("b", "test", 0, 100),
    ]


def test_a_break_ends_a_segment():
    assert drawn(row(breaks=[20, 50, 99])) == [
        ("a", "train", 0, 20), ("a", "train", 20, 50), ("a", "threshold", 50, 60), ("a", "test", 60, 99), ("a", "test", 99, 100)
    ]  # fmt: skip


def test_an_anomaly_across_a_border_is_in_neither_part_and_listed_with_the_reason():
    rows = [row(regions=[region(45, 53), region(58, 65), region(60, 61), region(10, 12)])]
    segments, excluded = split(rows, RULE)
    assert [(part["split"], part["start"], part["stop"]) for part in segments] == [("train", 0, 45), ("threshold", 53, 58), ("test", 65, 100)]
    assert [(part.start, part.stop) for part in excluded] == [(45, 53), (58, 65)]
    assert excluded[0].reason == "spike across the border of train and threshold"


def test_an_anomaly_that_ends_at_a_border_stays():
    assert split([row(regions=[region(45, 50), region(60, 70)])], RULE)[1] == []


def test_a_copy_of_a_test_recording_is_not_learnt_from():
    rows = [row("a", train_steps=100, content_hash="x"), row("b", train_steps=0, content_hash="x"), row("d", train_steps=100)]
    segments, excluded = split(rows, RULE)
    assert {part["recording_id"] for part in segments} == {"c/b", "c/d"}
    assert excluded == [("c/a", 0, 100, "identical to c/b, where these steps are test")]


def test_two_copies_of_one_split_are_no_leak():
    assert split([row("a", content_hash="x"), row("b", content_hash="x")], RULE)[1] == []


@pytest.mark.parametrize(("rows", "said"), [([row(train_steps=0)], "train"), ([row(train_steps=100)], "test")])
def test_a_category_that_cannot_be_learnt_or_judged_is_refused(rows, said):
    with pytest.raises(DataError, match=f"c has no step for {said}"):
        split(rows, RULE)


@given(
    st.integers(30, 300), st.none() | st.integers(12, 25), st.lists(st.integers(1, 299), max_size=4),
    st.lists(st.tuples(st.integers(0, 290), st.integers(1, 40)), max_size=4), st.sampled_from([1, LEAST]),
)  # fmt: skip
def test_segments_are_disjoint_in_order_unbroken_and_hold_whole_anomalies(steps, train_steps, breaks, places, least):
    regions = [region(start, min(start + length, steps)) for start, length in places if start < steps]
    rows = [row(steps=steps, train_steps=train_steps, breaks=sorted({at for at in breaks if at < steps}), regions=regions)]
    try:
        with mock.patch.object(series_splits, "LEAST", least):
            segments, excluded = split(rows, RULE)
    except DataError:
        return
    owner = np.zeros(steps, int)
    order = []
    for part in segments:
        place = slice(part["start"], part["stop"])
        assert part["stop"] > part["start"] and not owner[place].any()
        assert not any(part["start"] < at < part["stop"] for at in rows[0]["breaks"])
        owner[place] = SPLITS.index(part["split"]) + 1
        order.append(owner[part["start"]])
    assert order == sorted(order)
    for found in regions:
        assert len({int(part) for part in owner[found["start"] : found["stop"]]} - {0}) <= 1
    outside = {step for part in excluded for step in range(part.start, part.stop)}
    assert set(np.flatnonzero(owner == 0).tolist()) == outside


def segment(label: list[int] | None, start: int = 7) -> Segment:
    steps = 6 if label is None else len(label)
    values = np.arange(steps * 2, dtype=np.float32).reshape(steps, 2)
    return Segment("c/a", start, values, None if label is None else np.array(label, np.int8))


def test_normal_parts_keep_their_place_in_the_recording():
    parts = normal_parts([segment([0, 0, 1, 0, 1, 1, 0, 0, 0])])
    assert [(part.start, part.steps) for part in parts] == [(7, 2), (10, 1), (13, 3)]
    assert parts[2].values[0].tolist() == [12, 13] and not any(part.label.any() for part in parts)


def test_normal_parts_that_are_too_short_are_left_out_and_unlabelled_segments_stay():
    assert [(part.start, part.steps) for part in normal_parts([segment([0, 0, 1, 0, 0, 0])], shortest=3)] == [(10, 3)]
    assert normal_parts([segment(None)])[0].steps == 6
    assert normal_parts([segment([1, 1])]) == []


@pytest.mark.parametrize("name", ["../x/y", "a/b/c", "a", "a/..", "a/b\\c", "a/b:c"])
def test_a_recording_stays_in_its_folder(name):
    with pytest.raises(DataError, match="E319"):
        recording_path(name)
