"""The store gives back what went in, whatever the order, the batches and the shards, and reads only the rows it is asked for."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import io
from stages.encoders import shards
from stages.encoders.shards import ShardWriter, Store

ABOUT = {"layers": {"layer1": {"shape": [4, 3, 3], "dtype": "float32"}, "layer2": {"shape": [2], "dtype": "float32"}}}
ROW = 4 * (4 * 3 * 3 + 2)  # bytes


def rows(category, count):
    generator = torch.Generator().manual_seed(count)
    ids = [f"{category}/{number}" for number in range(count)]
    return ids, {"layer1": torch.randn(count, 4, 3, 3, generator=generator), "layer2": torch.randn(count, 2, generator=generator)}


def write(folder, content, batch=4, rows_per_shard=5, dtype=torch.float32):
    writer = ShardWriter(folder, {category: len(ids) for category, (ids, _) in content.items()}, shard_mb=1)
    writer.shard_bytes = rows_per_shard * ROW * (2 if dtype == torch.float32 else 1) // 2
    for category, (ids, tensors) in content.items():
        for start in range(0, len(ids), batch):
            part = {name: tensor[start : start + batch].to(dtype) for name, tensor in tensors.items()}
            writer.add(category, ids[start : start + batch], part)
    writer.close(ABOUT)
    return Store(folder)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 17), min_size=1, max_size=3),
    batch=st.integers(1, 9),
    rows_per_shard=st.integers(1, 20),
    data=st.data(),
)
def test_any_rows_in_any_order_come_back_bit_for_bit(tmp_path_factory, counts, batch, rows_per_shard, data):
    folder = tmp_path_factory.mktemp("store")
    content = {f"c{number}": rows(f"c{number}", count) for number, count in enumerate(counts)}
    store = write(folder, content, batch, rows_per_shard)
    everything = list(itertools.chain.from_iterable(ids for ids, _ in content.values()))
    chosen = data.draw(st.lists(st.sampled_from(everything), min_size=1, max_size=12))
    read = store.read(chosen, ["layer2", "layer1"])
    for name in ("layer1", "layer2"):
        stacked = torch.cat([tensors[name] for _, tensors in content.values()])
        assert torch.equal(read[name], stacked[[everything.index(one) for one in chosen]])


def test_a_shard_closes_at_its_size_and_holds_one_category(tmp_path):
    write(tmp_path, {"a": rows("a", 7), "b": rows("b", 5)})
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["a-000.pt", "a-001.pt", "b-000.pt"]
    assert [len(io.open_tensors(tmp_path / name)["layer2"]) for name in ("a-000.pt", "a-001.pt", "b-000.pt")] == [5, 2, 5]
    assert io.read_table(tmp_path / "index.parquet")[6] == {"sample_id": "a/6", "category": "a", "shard": "a-001.pt", "row": 1}


def test_the_bytes_do_not_depend_on_the_batches_they_came_in(tmp_path):
    content = {"a": rows("a", 11)}
    for folder, batch in (("one", 1), ("four", 4), ("all", 11)):
        write(tmp_path / folder, content, batch)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    for name in names:
        assert len({(tmp_path / folder / name).read_bytes() for folder in ("one", "four", "all")}) == 1, name


def test_a_shard_is_no_larger_than_its_rows(tmp_path):
    """A view saved as it is would bring its whole buffer along."""
    write(tmp_path, {"a": rows("a", 5)}, rows_per_shard=1000)
    assert (tmp_path / "a-000.pt").stat().st_size < 5 * ROW + 4096


def test_float16_comes_back_as_float32(tmp_path):
    content = {"a": rows("a", 6)}
    store = write(tmp_path, content, dtype=torch.float16)
    read = store.read(["a/5", "a/0"], ["layer1"])["layer1"]
    assert read.dtype == torch.float32 and torch.equal(read, content["a"][1]["layer1"][[5, 0]].half().float())
    assert io.open_tensors(tmp_path / "a-000.pt")["layer1"].dtype == torch.float16


def test_a_store_that_was_not_finished_does_not_look_complete(tmp_path):
    ids, tensors = rows("a", 3)
    writer = ShardWriter(tmp_path, {"a": 4}, shard_mb=1)
    writer.add("a", ids, tensors)
    with pytest.raises(ValueError, match=r"rows are missing, \{'a': 1\}"):
        writer.close(ABOUT)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        Store(tmp_path)


def test_more_rows_than_announced_are_refused(tmp_path):
    ids, tensors = rows("a", 3)
    writer = ShardWriter(tmp_path, {"a": 2}, shard_mb=1)
    with pytest.raises(ValueError, match="more rows of category 'a'"):
        writer.add("a", ids, tensors)


def test_an_unknown_sample_says_what_to_run(tmp_path):
    store = write(tmp_path, {"a": rows("a", 2)})
    with pytest.raises(KeyError, match=r"no sample 'a/9'.*dvc repro extract"):
        store.read(["a/9"], ["layer1"])


def test_a_store_travels_to_another_process_as_a_path(tmp_path):
    store = write(tmp_path, {"a": rows("a", 300)}, rows_per_shard=300)
    before = store.read(["a/1"], ["layer1"])["layer1"]
    assert len(pickle.dumps(store)) < 1000
    assert torch.equal(copy.deepcopy(store).read(["a/1"], ["layer1"])["layer1"], before)


def test_what_was_read_is_a_copy_and_changing_it_leaves_the_store_alone(tmp_path):
    store = write(tmp_path, {"a": rows("a", 2)})
    before = (tmp_path / "a-000.pt").read_bytes()
    expected = store.read(["a/0"], ["layer1"])["layer1"].clone()
    store.read(["a/0"], ["layer1"])["layer1"].zero_()
    assert torch.equal(store.read(["a/0"], ["layer1"])["layer1"], expected)
    assert (tmp_path / "a-000.pt").read_bytes() == before


@pytest.mark.parametrize("categories", [["Ä/ö", "Ä:ö"], ["Bottle", "bottle"], ["a b", "a_b"], ["x" * 300, "x" * 299]])
def test_categories_of_any_name_get_files_of_their_own_on_every_system(tmp_path, categories):
    content = {category: rows(category, 2) for category in categories}
    store = write(tmp_path, content)
    names = [path.name for path in tmp_path.glob("*.pt")]
    assert len({name.lower() for name in names}) == 2 and all(name.isascii() and len(name) < 128 for name in names)
    for category in categories:
        assert torch.equal(store.read([f"{category}/1"], ["layer2"])["layer2"][0], content[category][1]["layer2"][1])
    assert store.categories() == {category: content[category][0] for category in categories}


def test_the_estimate_counts_the_bytes_of_a_row():
    shapes = {"layer1": ((64, 56, 56), "float32"), "half": ((10,), "float16"), "pixels": ((3, 4, 4), "uint8"), "mask": ((4, 4), "bool")}
    assert shards.row_bytes(shapes) == 4 * 64 * 56 * 56 + 20 + 48 + 16
