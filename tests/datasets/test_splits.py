"""Train, val and test share no sample, no group and no picture, whatever the data set looks like."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.datasets.duplicates import Pair
from stages.datasets.samples import DataError
from stages.datasets.splits import Rule, refuse_overlap, split

RULE = Rule(split_seed=0, val_fraction=0.2, test_fraction=0.4)


def _row(number: int, label=0, part=None, group="", content="", category="c"):
    name = f"{category}/{number:03}"
    kind = "good" if label == 0 else "bad"
    return {
        "sample_id": name,
        "category": category,
        "split": part,
        "label": label,
        "defect_type": kind,
        "group": group or name,
        "content_hash": content or f"hash of {name}",
        "mask_path": "m.png" if label == 1 else None,
    }


def _parts(drawn) -> dict[str, list[str]]:
    parts = defaultdict(list)
    for sample in drawn.samples:
        parts[sample["split"]].append(sample["sample_id"])
    return dict(parts)


def _draw(rows, pairs=(), rule=RULE):
    return split("set", rows, list(pairs), rule)


def _near(first: int, second: int) -> Pair:
    return Pair(first, second, False, 0.9)


def test_without_a_split_anomalies_are_test_and_shares_of_the_normals_are_test_and_val():
    drawn = _draw([_row(number, label=int(number >= 50)) for number in range(60)])
    assert {part: len(names) for part, names in _parts(drawn).items()} == {"test": 20 + 10, "val": 6, "train": 24}
    assert {sample["label"] for sample in drawn.samples if sample["split"] != "test"} == {0}


def test_the_data_sets_own_test_is_never_touched():
    rows = [_row(number, part="train") for number in range(20)] + [_row(20, 0, "test"), _row(21, 1, "test"), _row(22, 1, "test_shift")]
    parts = _parts(_draw(rows, [_near(0, 20), _near(1, 22)]))
    assert parts["test"] == ["c/020", "c/021"] and parts["test_shift"] == ["c/022"]
    assert len(parts["train"]) + len(parts["val"]) == 18


def test_what_train_shares_with_test_is_removed_from_train_and_listed():
    rows = [_row(number, part="train") for number in range(20)]
    rows += [_row(20, 0, "test", content="hash of c/003"), _row(21, 1, "test", group="c/004"), _row(22, 1, "test")]
    drawn = _draw(rows, [Pair(3, 20, True, 1.0), _near(5, 22)])
    assert [(leak["sample_id"], leak["reason"], leak["of"]) for leak in drawn.leaks] == [
        ("c/003", "copy", "c/020"),
        ("c/004", "group", "c/021"),
        ("c/005", "near copy", "c/022"),
    ]
    placed = {name for names in _parts(drawn).values() for name in names}
    assert placed == {row["sample_id"] for row in rows} - {"c/003", "c/004", "c/005"}


def test_a_third_copy_in_a_chain_is_removed_too():
    rows = [_row(0, part="train", content="same"), _row(1, part="train", content="same")]
    rows += [_row(number, part="train") for number in range(2, 9)] + [_row(9, 0, "test", content="same")]
    drawn = _draw(rows, [Pair(0, 1, True, 1.0), Pair(1, 9, True, 1.0)])
    assert {leak["sample_id"] for leak in drawn.leaks} == {"c/000", "c/001"}


def test_copies_and_groups_lie_on_one_side():
    rows = [_row(number, group=f"part {number // 2}") for number in range(40)]
    sides = {name: part for part, names in _parts(_draw(rows, [_near(0, 39), _near(5, 20)])).items() for name in names}
    for first, second in [(2 * pair, 2 * pair + 1) for pair in range(20)] + [(0, 39), (5, 20)]:
        assert sides[f"c/{first:03}"] == sides[f"c/{second:03}"]


def test_a_normal_image_of_an_anomalous_group_goes_with_it_to_test():
    rows = [_row(number) for number in range(20)] + [_row(20, label=1, group="c/007")]
    assert "c/007" in _parts(_draw(rows))["test"]


def test_contamination_stays_in_train_and_never_reaches_val():
    rows = [_row(number, int(number >= 20), "train") for number in range(24)] + [_row(24, 1, "test")]
    parts = _parts(_draw(rows, [_near(20, 3)]))
    assert {"c/020", "c/021", "c/022", "c/023", "c/003"} <= set(parts["train"])
    assert len(parts["val"]) == 4  # a fifth of the 19 normal images that nothing anomalous is tied to


def test_unlabelled_samples_are_kept_aside():
    drawn = _draw([_row(number) for number in range(20)] + [_row(20, label=None, part="test"), _row(21, label=None)])
    assert _parts(drawn)["unlabelled"] == ["c/020", "c/021"]


def test_another_category_changes_nothing_in_this_one():
    rows = [_row(number) for number in range(30)]
    alone = _draw(rows)
    beside = _draw(rows + [_row(number, category="d") for number in range(30)])
    assert [sample for sample in beside.samples if sample["category"] == "c"] == alone.samples


def test_the_seed_decides_and_nothing_else():
    rows = [_row(number) for number in range(40)]
    assert _draw(rows) == _draw(rows)
    assert _parts(_draw(rows, rule=RULE._replace(split_seed=1))) != _parts(_draw(rows))


def test_what_is_bound_to_the_data_sets_own_train_stays_there_and_costs_no_image():
    rows = [_row(number, part="train") for number in range(10)] + [_row(number, group=f"c/{number - 10:03}") for number in range(10, 20)]
    drawn = _draw([*rows, _row(20, 1, "test")])
    assert drawn.leaks == [] and _parts(drawn)["test"] == ["c/020"]


def test_a_large_group_never_empties_train():
    rows = [_row(number, group="one part") for number in range(30)] + [_row(number) for number in range(30, 34)]
    parts = _parts(_draw(rows))
    assert "c/000" in parts["train"] and len(parts["val"]) >= 1


@pytest.mark.parametrize("rows", [[_row(0, part="train")], [_row(0, part="train", group="g"), _row(1, part="train", group="g")]])
def test_too_few_normal_groups_name_the_category(rows):
    with pytest.raises(DataError, match="E201 category c has"):
        _draw([*rows, _row(8, 1, "test"), *(_row(number, part="train", category="fine") for number in range(10))])


def test_a_category_that_has_only_test_images_is_refused_by_name():
    with pytest.raises(DataError, match="category d has 0 normal"):
        _draw([_row(number) for number in range(10)] + [_row(1, 1, "test", category="d")])


def test_overlaps_are_refused():
    content = {"a": "1", "b": "1"}
    with pytest.raises(DataError, match="content 1 is in train and in val"):
        refuse_overlap([{"sample_id": "a", "group": "a", "split": "train"}, {"sample_id": "b", "group": "b", "split": "val"}], content)
    shared = [{"sample_id": "a", "group": "g", "split": "train"}, {"sample_id": "b", "group": "g", "split": "test_shift"}]
    with pytest.raises(DataError, match="group g is in train and in test"):
        refuse_overlap(shared, {"a": "1", "b": "2"})


@st.composite
def _data_set(draw):
    count = draw(st.integers(12, 40))
    rows = []
    for number in range(count):
        part = draw(st.sampled_from([None, "train", "train", "test", "test_shift"]))
        label = draw(st.sampled_from([0, 0, 0, 1, None]))
        group, content = draw(st.integers(0, 60)), draw(st.integers(0, 60))
        group = group if group < 6 else 100 + number
        content = content if content < 6 else 100 + number
        rows.append(_row(number, label, part, f"g{group}", f"h{content}", draw(st.sampled_from("cd"))))
    rows += [_row(number, part="train", category=category) for number in range(100, 106) for category in "cd"]
    indices = st.integers(0, count - 1)
    near = draw(st.lists(st.tuples(indices, indices).filter(lambda pair: pair[0] < pair[1]), max_size=5))
    return rows, [_near(*pair) for pair in near] + _copies(rows)


def _copies(rows) -> list[Pair]:
    last, pairs = {}, []
    for position, row in enumerate(rows):
        if row["content_hash"] in last:
            pairs.append(Pair(last[row["content_hash"]], position, True, 1.0))
        last[row["content_hash"]] = position
    return pairs


@settings(max_examples=60, deadline=None)
@given(_data_set())
def test_no_data_set_makes_the_lists_overlap(case):
    rows, pairs = case
    drawn = split("set", rows, pairs, RULE)
    by_id = {row["sample_id"]: row for row in rows}
    side = {sample["sample_id"]: "test" if sample["split"].startswith("test") else sample["split"] for sample in drawn.samples}
    used = {name: part for name, part in side.items() if part != "unlabelled"}
    for key in ("group", "content_hash"):
        owners = defaultdict(set)
        for name, part in used.items():
            owners[by_id[name][key]].add(part)
        assert all(len(parts) == 1 for parts in owners.values())
    for pair in pairs:
        first, second = (used.get(rows[position]["sample_id"]) for position in (pair.first, pair.second))
        assert first is None or second is None or first == second
    leaked = {leak["sample_id"] for leak in drawn.leaks}
    assert leaked.isdisjoint(side) and leaked | set(side) == set(by_id)
    assert all(by_id[name]["split"] == "train" for name in leaked)
    for row in rows:
        if row["split"] not in (None, "train") and row["label"] is not None:
            assert {sample["split"] for sample in drawn.samples if sample["sample_id"] == row["sample_id"]} == {row["split"]}
    labels = Counter((part, by_id[name]["label"]) for name, part in used.items())
    assert labels["val", 1] == 0 and labels["val", 0] >= 1 and labels["train", 0] >= 1
