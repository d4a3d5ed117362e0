"""Many files into one store: every bad one listed, killed and gone on to the same bytes, and back to files."""

import json
import multiprocessing
import os
import signal

import pytest
import torch

from stages.datasets import record_intake, record_packing
from stages.datasets.record_errors import RecordError
from stages.datasets.record_inspection import examined, examined_store
from stages.datasets.record_intake import grouped
from stages.datasets.record_lists import Listing, listing, scanned, write_list
from stages.datasets.record_packing import pack, pack_rows, unpack
from stages.datasets.record_store import RecordStore, StoreWriter, Subset
from stages.datasets.records import Record, Tokens
from tests.datasets.record_corpus import HOSTILE, series, write_mixed
from tests.datasets.test_record_files import same


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def packed(source, out, **options):
    return pack(source if isinstance(source, Listing) else listing(source), out, quiet=True, **{"say": lambda text: None, **options})


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def by_id(store):
    return {record_id: store.record(record_id) for record_id in store.record_ids}


def test_a_folder_packs_and_comes_back_record_by_record(tmp_path):
    write_mixed(tmp_path / "files")
    done = packed(tmp_path / "files", tmp_path / "store")
    store = RecordStore(tmp_path / "store")
    assert done.records == 30 and list(store.widths.items()) == [("text", 10), ("image", 16), ("video", 56), ("audio", 12), ("series", 9)]
    assert store.record("run4.csv").step_label.tolist() == [0, 0, 1] and store.record("run4.csv").label == 1
    unpack(store, tmp_path / "back", quiet=True)
    packed(tmp_path / "back", tmp_path / "again")
    first, second = by_id(store), by_id(RecordStore(tmp_path / "again"))
    assert first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)


def test_shards_of_any_size_hold_the_same_records(tmp_path, monkeypatch):
    """A modality that comes late is missing in earlier shards, and read as missing."""
    write_mixed(tmp_path / "files")
    packed(tmp_path / "files", tmp_path / "one")
    assert packed(tmp_path / "files", tmp_path / "many", shard_mb=0).shards == 30
    one, many = RecordStore(tmp_path / "one"), RecordStore(tmp_path / "many")
    assert "text.values" not in torch.load(tmp_path / "many" / "00000.pt", weights_only=True)
    whole, parts = (Subset([store], store.record_ids, torch.zeros(30)).whole() for store in (one, many))
    for name, ragged in whole.tokens.items():
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(ragged, parts.tokens[name], strict=True))
    assert all(torch.equal(lengths, many.lengths()[name]) for name, lengths in one.lengths().items())


def test_what_was_killed_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    write_mixed(tmp_path / "files")
    for place in range(2):
        (tmp_path / "files" / f"bad{place}.pt").write_bytes(b"no")
    write_mixed(tmp_path / "files" / "z", 40)  # ids that come again
    read, count = record_intake.read_record, []

    def counted(*arguments, **named):
        count.append(1)
        if len(count) == 50 and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return read(*arguments, **named)

    monkeypatch.setattr(record_intake, "read_record", counted)
    packed(tmp_path / "files", tmp_path / "store", shard_mb=0, group="folder")
    wanted = content(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "kept")
    count.clear()
    options = {"shard_mb": 0, "group": "folder"}
    killed = multiprocessing.get_context("fork").Process(target=packed, args=(tmp_path / "files", tmp_path / "store"), kwargs=options)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and not (tmp_path / "store").exists()
    packed(tmp_path / "files", tmp_path / "store", shard_mb=0, group="folder")
    assert len(count) == 72 - 49  # with shards of one record only the file in hand is read again
    assert content(tmp_path / "store") == wanted and not list(tmp_path.glob(".assay/resume/records/*"))


def test_files_that_changed_since_a_kill_are_packed_afresh(tmp_path, monkeypatch):
    write_mixed(tmp_path / "files", 6)
    monkeypatch.setattr(record_packing, "_close", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        packed(tmp_path / "files", tmp_path / "store", shard_mb=0)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "files" / "evening" / "000.pt"
    before = path.stat().st_size
    torch.save({**torch.load(path, weights_only=True), "labels": {"binary": 1}}, path)
    assert path.stat().st_size == before
    packed(tmp_path / "files", tmp_path / "store", shard_mb=0)
    assert RecordStore(tmp_path / "store").record("000").label == 1


def test_every_bad_file_is_listed_and_too_many_are_an_error(tmp_path):
    write_mixed(tmp_path / "files", 60)
    for place, title in enumerate(("NaN", "no modality", "a cut archive")):
        HOSTILE[title][0](tmp_path / "files" / f"bad{place}.pt")
    done = packed(tmp_path / "files", tmp_path / "store")
    assert [(one.path, one.code, one.key) for one in done.rejected] == [("bad0.pt", "E301", "embeddings"), ("bad1.pt", "E321", ""), ("bad2.pt", "E103", "")]
    listed = json.loads((tmp_path / "store" / "rejected.json").read_text())
    assert [one["path"] for one in listed] == ["bad0.pt", "bad1.pt", "bad2.pt"] and "first at [1, 1]" in listed[0]["reason"]
    HOSTILE["nothing"][0](tmp_path / "files" / "bad3.pt")
    with pytest.raises(RecordError, match=r"E329 .*4 of 64 files cannot be used, more than 5%: bad0.pt \(E301 embeddings holds NaN"):
        packed(tmp_path / "files", tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["rejected.json"]
    assert not list(tmp_path.glob(".assay/resume/records/*"))


def test_a_width_that_differs_is_told_with_the_width_of_the_files_before(tmp_path):
    for place in range(30):
        torch.save(series(width=6 + (place == 7)), tmp_path / f"{place:02d}.pt")
    [rejected] = packed(scanned(tmp_path, "*.pt"), tmp_path / "store").rejected
    assert rejected[:3] == ("07.pt", "series", "E324") and "has width 7, in the files before it 6" in rejected.reason


def test_an_unknown_key_is_told_once_for_the_whole_run(tmp_path):
    for place in range(20):
        torch.save(series(width=256, camera=1), tmp_path / f"{place}.pt")
    told = []
    done = packed(scanned(tmp_path, "*.pt"), tmp_path / "store", say=told.append)
    assert done.unknown == {"camera": 20} and len(told) == 1 and told[0].startswith("W321 0.pt: the key camera")


def test_ids_that_come_again_are_told_apart_and_keep_their_records_together(tmp_path):
    for folder, name in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder).mkdir()
        torch.save(series(id="p7" if name == "1" else "p8"), tmp_path / folder / f"{name}.pt")
    done = packed(tmp_path, tmp_path / "store")
    store = RecordStore(tmp_path / "store")
    assert store.record_ids == ["p7", "b/1", "p8"] and [row["group"] for row in store.rows] == ["p7", "p7", "p8"] and done.grouping == "id"


def test_folders_are_groups_only_where_both_labels_lie_in_many_of_them():
    paths = [f"{place // 2}/{place}.pt" for place in range(28)]
    ids, none, labels = paths, [""] * 28, [place // 2 % 2 for place in range(28)]
    assert grouped("auto", paths, ids, none, labels) == ([path.split("/")[0] for path in paths], "folder")
    assert grouped("auto", [f"{label}/x{place}.pt" for place, label in enumerate(labels)], ids, none, labels) == (none, "file")
    assert grouped("auto", paths, ids, ["s1", *none[1:]], labels)[1] == "said"


def test_a_place_that_is_taken_is_left_as_it_is(tmp_path):
    write_mixed(tmp_path / "files", 6)
    packed(tmp_path / "files", tmp_path / "store")
    with pytest.raises(RecordError, match="E330 .*holds a store already"):
        packed(tmp_path / "files", tmp_path / "store")
    before = content(tmp_path / "store")
    packed(tmp_path / "files", tmp_path / "store", replace=True)
    assert content(tmp_path / "store") == before
    (tmp_path / "store" / "thesis.doc").write_text("mine")
    with pytest.raises(RecordError, match="E330 .*thesis.doc"):
        packed(tmp_path / "files", tmp_path / "store", replace=True)


def test_unpacking_refuses_a_schema_before_it_writes(tmp_path):
    write_mixed(tmp_path / "files", 6)
    packed(tmp_path / "files", tmp_path / "store")
    with pytest.raises(RecordError, match="the schema series has no place for text"):
        unpack(RecordStore(tmp_path / "store"), tmp_path / "back", "series", quiet=True)
    assert not (tmp_path / "back").exists()


def test_ids_that_no_file_system_takes_get_names_of_their_own():
    names = record_packing.file_names(["a", "A", "a/b", "../a", "con", "ü" * 200])
    assert names[0] == "a.pt" and len({name.lower() for name in names}) == 6 and not any("/" in name or len(name) > 100 for name in names)


def test_rows_of_a_table_pack_under_their_own_ids_and_labels(tmp_path):
    write_mixed(tmp_path / "files", 6)
    rows = [
        {"record_id": f"r{at}", "label": at, "group": "g", "fault": "", "split": None, "stored_path": path}
        for at, path in enumerate(("morning/001.pt", "evening/000.pt"))
    ]
    pack_rows(rows, tmp_path / "files", tmp_path / "store", say=lambda text: None, quiet=True)
    store = RecordStore(tmp_path / "store")
    assert [(row["record_id"], row["label"], row["group"]) for row in store.rows] == [("r0", 0, "g"), ("r1", 1, "g")]


def test_lists_are_read_in_both_forms_and_missing_files_are_named_at_once(tmp_path):
    write_mixed(tmp_path / "files", 6)
    write_list(tmp_path / "all.json", scanned(tmp_path / "files"))
    assert [path.startswith("/") for path in json.loads((tmp_path / "all.json").read_text())] == [True] * 6
    assert len(listing(tmp_path / "all.json").items) == 6
    told = {"version": 1, "root": "files", "items": [{"path": "morning/001.pt", "label": 1, "group": "s", "split": "test"}, {"path": "evening/000.pt"}]}
    (tmp_path / "told.json").write_text(json.dumps(told))
    packed(tmp_path / "told.json", tmp_path / "store")
    row = RecordStore(tmp_path / "store").rows[0]
    assert (row["label"], row["group"], row["split"]) == (1, "s", "test")
    (tmp_path / "bad.json").write_text(json.dumps([f"gone{place:02d}.pt" for place in range(13)] + ["files/morning/001.pt"]))
    with pytest.raises(RecordError, match="13 of 14 files are not there: gone00.pt, .*gone09.pt and 3 more"):
        listing(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([], "lists no file"),
        ({"version": 2, "items": ["a"]}, "is no list of paths"),
        ([3], r"items\[0\] is no path"),
        ([{"path": "a", "lable": 1}], "unknown key lable"),
        ([{"path": "a", "label": 2}], r"items\[0\].label is 2"),
        ([{"path": "a", "split": "dev"}], "split is 'dev'"),
        ([{"path": "a", "group": 3}], "group is a int"),
    ],
)
def test_a_list_that_is_none_says_where(tmp_path, content, what):
    (tmp_path / "l.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=what):
        listing(tmp_path / "l.json")


def test_files_and_their_store_are_told_of_alike(tmp_path):
    write_mixed(tmp_path / "files")
    packed(tmp_path / "files", tmp_path / "store")
    files, store = examined(listing(tmp_path / "files"), quiet=True), examined_store(RecordStore(tmp_path / "store"))
    assert files.ok and store.ok and files.labels == store.labels == {"normal": 15, "anomalous": 15, "unlabelled": 0}
    assert files.modalities == store.modalities and files.modalities["audio"] == (10, 12, 5, 5, 5) and files.groups == store.groups == 30
    assert {frozenset(name.split("+")): count for name, count in files.subsets.items()} == {
        frozenset(("audio", "video")): 10, frozenset(("series",)): 10, frozenset(("text", "image")): 10,
    }  # fmt: skip


def test_what_training_cannot_go_on_with_is_an_error(tmp_path):
    for place in range(4):
        torch.save(series(label=None if place == 3 else 0, filename=f"f{place}"), tmp_path / f"{place}.pt")
    found = examined(scanned(tmp_path), quiet=True)
    errors = {problem.code: problem.what for problem in found.problems if problem.severity == "error"}
    assert not found.ok and errors.keys() == {"E303", "E305"} and "1 of 4 records have no label: f3" in errors["E303"]


def test_widths_that_are_announced_are_kept_to(tmp_path):
    writer = StoreWriter(tmp_path / "s", {"audio": 2})
    with pytest.raises(ValueError, match="gas has width 2, expected None"):
        writer.add(Record("a", {"gas": Tokens(torch.zeros(1, 2), torch.zeros(1))}))
