"""A data set of `.pt` files as the pipeline sees it: a row a file, and the same records when they are packed."""

import json

import pytest
import torch

from stages.datasets import record_adapters
from stages.datasets.record_checks import check
from stages.datasets.record_errors import RecordError
from stages.datasets.record_packing import pack_rows
from stages.datasets.record_store import RecordStore
from stages.params import ParamsError
from tests.datasets.record_corpus import HOSTILE, series, write_mixed


def read(source, folder, **options):
    return record_adapters.read("stored_records", source, folder, options)


def test_rows_pack_into_the_records_that_were_read(tmp_path):
    write_mixed(tmp_path / "files")
    HOSTILE["NaN"][0](tmp_path / "files" / "sick.pt")
    reading = read(tmp_path / "files", tmp_path / "media")
    checked = check(reading)
    assert reading.modalities == ("stored",) and len(checked.rows) == 30 and checked.rows[0].paths.keys() == {"stored"}
    [sick] = [problem for problem in checked.problems if problem.code == "E301"]
    assert sick.path == "sick.pt" and "embeddings holds NaN" in sick.what
    names = ("record_id", "label", "group", "fault", "split")
    rows = [{name: getattr(row, name) for name in names} | {"stored_path": row.paths["stored"]} for row in checked.rows]
    pack_rows(rows, reading.root, tmp_path / "store", say=lambda text: None, resume=tmp_path / "resume", quiet=True)
    store = RecordStore(tmp_path / "store")
    assert [{name: row[name] for name in names} for row in store.rows] == [{name: row[name] for name in names} for row in rows]
    assert {row["record_id"] for row in rows} >= {"run1.csv", "000"}


def test_a_list_of_absolute_paths_has_one_root_and_its_labels_count(tmp_path):
    write_mixed(tmp_path / "files", 6)
    paths = sorted(path.as_posix() for path in (tmp_path / "files").rglob("*.pt"))
    items = [{"path": path, "label": 1, "group": "s1", "split": "test"} for path in paths]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.json").write_text(json.dumps({"version": 1, "items": items}))
    reading = read(tmp_path / "lists" / "l.json", tmp_path / "media")
    assert reading.root == tmp_path / "files" and reading.about["grouping"] == "said"
    assert {(row.label, row.group, row.split) for row in reading.rows} == {(1, "s1", "test")} and len(check(reading).rows) == 6


def test_the_folder_may_be_the_group_and_unknown_options_are_named(tmp_path):
    write_mixed(tmp_path / "files", 6)
    assert {row.group for row in read(tmp_path / "files", tmp_path / "media", group="folder").rows} == {"morning", "evening"}
    assert len(read(tmp_path / "files", tmp_path / "media", pattern="morning/*.pt").rows) == 3
    for options in ({"group": "shift"}, {"patern": "*"}):
        with pytest.raises(ParamsError):
            read(tmp_path / "files", tmp_path / "media", **options)


def test_too_many_bad_files_are_an_error(tmp_path):
    torch.save(series(), tmp_path / "good.pt")
    HOSTILE["a cut archive"][0](tmp_path / "bad.pt")
    with pytest.raises(RecordError, match=r"E329 .*1 of 2 files cannot be used, more than 5%: bad.pt \(E103"):
        read(tmp_path, tmp_path / "media")


def test_films_of_several_pictures_a_moment_may_be_read_as_tokens(tmp_path):
    for place, pictures in enumerate((2, 3)):
        torch.save({"video_tokens": torch.ones(2, pictures, 8), "labels": 0}, tmp_path / f"{place}.pt")
    assert read(tmp_path, tmp_path / "media", as_tokens=True).about["modalities"] == {"video": 8}
    with pytest.raises(RecordError, match="E329 .*E324"):
        read(tmp_path, tmp_path / "media")


def test_files_of_several_drives_are_no_data_set(tmp_path, monkeypatch):
    def apart(paths):
        raise ValueError("Paths don't have the same drive")

    write_mixed(tmp_path / "files", 3)
    monkeypatch.setattr("os.path.commonpath", apart)
    with pytest.raises(RecordError, match="E328 .*files of several drives"):
        read(tmp_path / "files", tmp_path / "media")
