"""Folds of records: whole sessions on one side, every class where it must be, nothing of the test learnt from."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from stages.datasets.samples import DataError
from stages.datasets.weld_protocols import class_of_row, described, folds

CLASSES = {"": 8, "porosity": 3, "overlap": 3, "undercut": 4, "warping": 2}  # sessions of each


def table(welds: int = 4, split: bool = False, **columns) -> list[dict]:
    """One class a session, as in the release; sessions of a class have different steels."""
    rows = []
    for fault, sessions in CLASSES.items():
        for number in range(sessions):
            for weld in range(welds):
                rows.append(
                    {
                        "record_id": f"{fault or 'good'}-{number}-{weld}",
                        "label": int(bool(fault)),
                        "fault": fault,
                        "group": f"{fault or 'good'}-{number}",
                        "split": ("train", "val", "test")[weld % 3] if split else None,
                        "video_hash": f"{fault}{number}{weld}",
                        "fact_steel_type": ("Fe410", "BSK46")[number % 2],
                        "fact_thickness_mm": (6.0, 7.0, None)[number % 3],
                    }
                    | columns
                )
    random.Random(0).shuffle(rows)
    return rows


def sessions(ids, rows) -> set[str]:
    return {row["group"] for row in rows if row["record_id"] in set(ids)}


@pytest.mark.parametrize("protocol", ["P2", "P3", "P4"])
def test_no_session_is_on_two_sides_and_each_list_has_what_it_needs(protocol):
    rows = table()
    label = {row["record_id"]: row["label"] for row in rows}
    made = folds(protocol, rows)
    assert made.folds and not made.skipped
    for fold in made.folds:
        held = [sessions(ids, rows) for ids in fold[1:]]
        assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2]), fold.name
        for ids in fold[1:]:
            assert {label[one] for one in ids} == {0, 1}, fold.name


def test_p2_tests_each_record_once_and_learns_every_class_in_each_fold():
    rows = table()
    found = folds("P2", rows).folds
    assert Counter(one for fold in found for one in fold.test) == Counter(row["record_id"] for row in rows)
    for fold in found:
        assert not described(fold, rows)["unseen_classes"]
        assert set(fold.train) | set(fold.val) | set(fold.test) == {row["record_id"] for row in rows}


def test_p2_parts_are_of_one_seed_and_not_of_the_order_of_rows():
    rows = table()
    assert folds("P2", rows) == folds("P2", rows[::-1])
    assert folds("P2", rows, seed=1) != folds("P2", rows)


def test_p3_leaves_out_all_that_has_the_setting_and_what_shares_a_session_with_it():
    rows = table()
    rows[0]["fact_steel_type"] = "odd"
    moved = rows[0]["group"]
    found = {fold.name: fold for fold in folds("P3", rows).folds}
    assert set(found) == {"steel_type=Fe410", "steel_type=BSK46", "thickness_mm=6", "thickness_mm=7"}
    for name, fold in found.items():
        fact, value = name.split("=")
        has = {row["record_id"] for row in rows if row[f"fact_{fact}"] is not None and f"{row[f'fact_{fact}']}".removesuffix(".0") == value}
        assert set(fold.test) == has
    other = next(fold for name, fold in found.items() if moved in sessions(fold.test, rows) and name.startswith("steel"))
    assert rows[0]["record_id"] not in other.train + other.val + other.test
    assert folds("P3", rows).skipped["steel_type=odd"].startswith("test would have no")


def test_p4_learns_nothing_of_the_fault_left_out_and_judges_it_beside_held_out_normal_records():
    rows = table()
    kind = {row["record_id"]: class_of_row(row) for row in rows}
    found = folds("P4", rows).folds
    assert [fold.name for fold in found] == ["overlap", "porosity", "undercut", "warping"]
    for fold in found:
        assert {kind[one] for one in fold.test} == {"normal", fold.name}
        assert fold.name not in {kind[one] for one in fold.train + fold.val}
        assert sum(kind[one] == fold.name for one in fold.test) == sum(row["fault"] == fold.name for row in rows)
    good = [{one for one in fold.test if kind[one] == "normal"} for fold in found]
    assert set.union(*good) == {one for one, name in kind.items() if name == "normal"} and not set.intersection(*good)


def test_p1_is_the_fixed_split_with_the_sessions_that_cross_it_counted():
    rows = table(split=True)
    [fold] = folds("P1", rows).folds
    assert set(fold.test) == {row["record_id"] for row in rows if row["split"] == "test"}
    told = described(fold, rows)
    assert told["sessions_in_test_and_train"] == sum(CLASSES.values()) == told["sessions"]["test"]
    released = [row | {"split": "val" if row["split"] == "train" and row["label"] else row["split"]} for row in rows]
    [shared] = folds("P1", released).folds
    assert set(shared.test) == set(fold.test) and not described(shared, released)["unseen_classes"] and set(shared.train) - set(fold.train)
    told = [row | {"split": None, "fact_official_split": row["split"]} for row in rows]
    assert folds("P1", told).folds == [fold]
    assert folds("P1", table()) == ("P1", [], {"official": "the data set fixes no split"})
    for row in rows:
        row["split"] = "train" if row["split"] == "val" else row["split"]
    [drawn] = folds("P1", rows).folds
    assert drawn.val and not sessions(drawn.val, rows) & sessions(drawn.train, rows)


def test_records_that_share_a_file_are_of_one_session_and_unlabelled_ones_of_none():
    rows = table()
    rows[0]["video_hash"] = next(row["video_hash"] for row in rows if row["group"] != rows[0]["group"])
    rows.append(rows[1] | {"record_id": "who-knows", "label": -1, "video_hash": "own"})
    twins = {row["record_id"] for row in rows if row["video_hash"] == rows[0]["video_hash"]}
    for fold in folds("P2", rows).folds:
        assert sum(bool(twins & set(ids)) for ids in fold[1:]) == 1
        assert "who-knows" not in fold.train + fold.val + fold.test


def test_a_class_of_two_sessions_is_never_taken_from_train_for_validation():
    rows = table()
    for protocol in ("P2", "P4"):
        for seed in range(5):
            for fold in folds(protocol, rows, seed).folds:
                left_out = {fold.name} if protocol == "P4" else set()
                assert {class_of_row(row) for row in rows if row["record_id"] in set(fold.train)} >= {*CLASSES, "normal"} - left_out - {""}


def test_what_cannot_be_parted_says_why():
    rows = table()
    with pytest.raises(DataError, match="has one label"):
        folds("P2", [row for row in rows if row["label"]])
    with pytest.raises(DataError, match="4 sessions cannot be parted into 5"):
        folds("P2", [row for row in rows if row["group"] in {"good-0", "good-1", "porosity-0", "overlap-1"}])
    with pytest.raises(DataError, match="no protocol 'P5'"):
        folds("P5", rows)
    assert folds("P3", rows, facts=("gas",)).skipped == {"gas": "the data set has no fact 'gas'"}


def test_validation_gives_a_session_back_where_every_part_would_cost_train_a_class():
    """Ten faults of one session each to learn from, so that each fifth of the sessions holds some fault's only one."""
    good = [row | {"split": "test" if row["group"] == "good-0" else "train"} for row in table() if not row["fault"]]
    rows = list(good)
    for name in (f"{fault}-{session}-{weld}" for fault in "abcdefghij" for session in range(2) for weld in range(3)):
        own = {"record_id": name, "label": 1, "fault": name[0], "group": name[:3], "video_hash": name, "split": ("train", "test")[name[2] == "1"]}
        rows.append(good[0] | own)
    [fold] = folds("P1", rows).folds
    assert fold.val and not described(fold, rows)["unseen_classes"]
