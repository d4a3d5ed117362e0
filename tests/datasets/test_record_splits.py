"""Lists of records: whole groups, both labels in each, what the data set fixes is kept, copies on one side."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.datasets.record_splits import UNLABELLED, Rule, counts, split
from stages.datasets.samples import DataError

RULE = Rule(split_seed=0, val_fraction=0.15, test_fraction=0.15)


def table(labels: list[int], groups: list[str], splits: list[str | None] | None = None, **hashes: list[str | None]) -> list[dict]:
    """Rows of samples.parquet; hashes: columns such as image_hash, by default one file of its own for each record."""
    count = len(labels)
    columns = hashes or {"image_hash": [f"content {at}" for at in range(count)]}
    columns |= {"record_id": [f"r{at:04d}" for at in range(count)], "label": labels, "group": groups, "split": splits or [None] * count}
    columns |= {"fault": ["crack" if label == 1 else "" for label in labels]}
    return [{name: content[at] for name, content in columns.items()} for at in range(count)]


def shifts(count: int, each: int, share: float, seed: int) -> list[dict]:
    draw = np.random.default_rng(seed)
    return table((draw.random(count * each) < share).astype(int).tolist(), [f"shift {at // each}" for at in range(count * each)])


def lists(drawn) -> dict[str, list[dict]]:
    return {part: [row for row in drawn.samples if row["split"] == part] for part in ("train", "val", "test", UNLABELLED)}


@settings(max_examples=40, deadline=None)
@given(count=st.integers(8, 30), each=st.integers(4, 15), share=st.floats(0.3, 0.7), seed=st.integers(0, 10_000))
def test_lists_share_no_group_and_each_has_both_labels(count, each, share, seed):
    rows = shifts(count, each, share, seed)
    parts = lists(split("d", rows, RULE._replace(split_seed=seed)))
    assert sorted(row["record_id"] for part in parts.values() for row in part) == [row["record_id"] for row in rows]
    groups = [{row["group"] for row in parts[part]} for part in ("train", "val", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups)) == count
    assert all({row["label"] for row in parts[part]} == {0, 1} for part in ("train", "val", "test"))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.2, 0.6))
def test_each_list_has_its_share_of_groups_and_nearly_its_share_of_each_label(seed, share):
    rows = shifts(40, 12, share, seed)
    parts = lists(split("d", rows, RULE))
    assert len({row["group"] for row in parts["test"]}) == len({row["group"] for row in parts["val"]}) == 6
    for label in (0, 1):
        total = sum(row["label"] == label for row in rows)
        for part, wanted in (("val", 0.15), ("test", 0.15), ("train", 0.7)):
            assert sum(row["label"] == label for row in parts[part]) / total == pytest.approx(wanted, abs=0.06)


@pytest.mark.parametrize("seed", range(4))
def test_groups_of_one_label_are_shared_out_by_label(seed):
    """Sessions of a weld set have one class each: of 400 good and 200 bad ones each list gets its very share of both."""
    rows = table([int(at >= 400) for at in range(600)], [f"session {at}" for at in range(600)])
    parts = lists(split("d", rows, RULE._replace(split_seed=seed)))
    assert [sum(row["label"] == label for row in parts[part]) for part in ("val", "test") for label in (0, 1)] == [60, 30, 60, 30]


@pytest.mark.parametrize("seed", range(4))
def test_sessions_of_one_fault_each_give_every_list_every_fault(seed):
    """Eleven faults in three sessions each; a split by label alone would leave faults out of a list."""
    kinds = [f"fault {at % 11}" for at in range(33)]
    rows = table([0] * 40 + [1] * 132, [f"good {at // 4}" for at in range(40)] + [f"bad {at // 4}" for at in range(132)])
    for at, row in enumerate(rows[40:]):
        row["fault"] = kinds[at // 4]
    parts = lists(split("d", rows, RULE._replace(split_seed=seed)))
    assert all({row["fault"] for row in parts[part]} == {"", *kinds} for part in ("train", "val", "test"))


def test_a_label_in_three_groups_reaches_all_lists_even_where_that_is_less_even():
    labels = [1] * 60 + ([1] * 60 + [0] * 5) * 2 + [0] * 100
    rows = table(labels, ["bad"] * 60 + ["one"] * 65 + ["two"] * 65 + [f"good {at // 5}" for at in range(100)])
    parts = lists(split("d", rows, RULE))
    assert all({row["label"] for row in parts[part]} == {0, 1} for part in ("train", "val", "test"))


def test_the_same_seed_gives_the_same_lists_and_another_seed_others():
    rows = shifts(20, 5, 0.4, 0)
    assert split("d", rows, RULE) == split("d", rows, RULE) != split("d", rows, RULE._replace(split_seed=1))
    assert split("d", rows, RULE) != split("e", rows, RULE)


def test_a_fixed_split_is_kept_and_val_is_drawn_from_train():
    splits = ["test" if at // 10 < 4 else "train" for at in range(200)]
    rows = table([at % 2 for at in range(200)], [f"g{at // 10}" for at in range(200)], splits)
    drawn = split("d", rows, RULE)
    parts = lists(drawn)
    assert [row["record_id"] for row in parts["test"]] == [row["record_id"] for row in rows[:40]] and not drawn.leaks
    assert 0 < len({row["group"] for row in parts["val"]}) <= 4
    both = ["val" if at // 10 == 5 else part for at, part in enumerate(splits)]
    kept = lists(split("d", [row | {"split": part} for row, part in zip(rows, both)], RULE))
    assert {row["group"] for row in kept["val"]} == {"g5"}


def test_what_train_shares_with_a_fixed_test_is_taken_out_and_named():
    splits = ["test" if at < 20 else "train" for at in range(60)]
    groups = [f"g{at // 5}" for at in range(60)]
    content: list[str | None] = [f"c{at}" for at in range(60)]
    groups[25], content[41] = "g0", "c3"  # a train record of a test group, and a copy of a test record whose group goes with it
    drawn = split("d", table([at % 2 for at in range(60)], groups, splits, image_hash=content), RULE)
    assert {(leak["record_id"], leak["removed_from"], leak["shares_with"]) for leak in drawn.leaks} == {
        (f"r{at:04d}", "train", "test") for at in (25, 40, 41, 42, 43, 44)
    }
    assert not {f"r{at:04d}" for at in (25, 40, 41, 42, 43, 44)} & {row["record_id"] for row in drawn.samples}


@pytest.mark.parametrize("name", ["image_hash", "series_hash"])
def test_a_file_that_two_groups_share_binds_them(name):
    labels, groups = [at % 2 for at in range(80)], [f"g{at // 4}" for at in range(80)]
    content: list[str | None] = [f"c{at}" for at in range(80)]
    for seed in range(12):
        content[seed], content[79 - seed] = "same", "same"
        drawn = split("d", table(labels, groups, text_hash=["a note"] * 80, **{name: content}), RULE._replace(split_seed=seed))
        one = {row["split"] for row in drawn.samples if row["record_id"] in (f"r{seed:04d}", f"r{79 - seed:04d}")}
        assert len(one) == 1
        owner: dict[str, str] = {}
        assert all(owner.setdefault(row["group"], row["split"]) == row["split"] for row in drawn.samples)


def test_the_same_words_bind_only_where_there_is_nothing_but_notes():
    labels, groups = [at % 2 for at in range(40)], [f"g{at // 2}" for at in range(40)]
    words = ["nothing to report"] * 40
    drawn = split("d", table(labels, groups, text_hash=words, image_hash=[f"c{at}" for at in range(40)]), RULE)
    assert {row["split"] for row in drawn.samples} == {"train", "val", "test"}
    with pytest.raises(DataError, match="E425"):
        split("d", table(labels, groups, text_hash=words), RULE)


def test_unlabelled_records_are_in_no_list_and_leave_their_group_where_it_is():
    rows = shifts(20, 5, 0.5, 3)
    for row in rows[::5]:
        row["label"] = -1
    parts = lists(split("d", rows, RULE))
    assert [row["record_id"] for row in parts[UNLABELLED]] == [row["record_id"] for row in rows[::5]]
    assert all(row["label"] != -1 for part in ("train", "val", "test") for row in parts[part])
    assert counts([row for part in parts.values() for row in part])[UNLABELLED] == {
        "groups": 20,
        "normal": 0,
        "anomalous": 0,
        "unknown": 20,
    }


@pytest.mark.parametrize("bad", [1, 2])
def test_too_few_groups_of_a_label_are_an_error_that_counts_them(bad):
    rows = table([int(at // 4 < bad) for at in range(80)], [f"g{at // 4}" for at in range(80)])
    with pytest.raises(DataError, match=f"E425 d has anomalous records in {bad} groups, and .*would get none"):
        split("d", rows, RULE)


def test_three_groups_of_a_label_are_enough():
    rows = table([int(at // 4 < 3) for at in range(80)], [f"g{at // 4}" for at in range(80)])
    assert all({row["label"] for row in part} == {0, 1} for name, part in lists(split("d", rows, RULE)).items() if name != UNLABELLED)


def test_a_data_set_of_normal_records_alone_can_be_split():
    parts = lists(split("d", table([0] * 60, [f"g{at // 3}" for at in range(60)]), RULE))
    assert [len({row["group"] for row in parts[part]}) for part in ("train", "val", "test")] == [14, 3, 3]
