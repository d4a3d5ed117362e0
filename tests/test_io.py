"""Artefacts: whole or absent, the same bytes, and no foreign file that can run code."""

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import io


def test_a_writer_that_dies_leaves_neither_the_file_nor_a_part_of_it(tmp_path):
    with pytest.raises(RuntimeError), io.writing(tmp_path / "model.json") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    io.write_json(path, {"value": 1})
    with pytest.raises(ValueError):
        io.write_json(path, {"value": float("nan")})
    assert io.read_json(path) == {"value": 1}


def test_full_disk_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full while writing .*a.json; nothing was left behind"):
        io.write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [
    lambda path: io.write_tensors(path, {"layer2": torch.arange(12.0).view(3, 4)[:, :2]}),
    lambda path: io.write_model(path, {"bank": torch.ones(3, 2)}, {"b": 1, "a": 2}),
    lambda path: io.write_table(path, {"sample_id": ["a", "b"], "image_score": np.float32([1, 2])}),
])  # fmt: skip
def test_same_content_gives_the_same_bytes_whatever_the_name(tmp_path, write):
    write(tmp_path / "one")
    write(tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_view_is_stored_without_the_storage_behind_it(tmp_path):
    io.write_tensors(tmp_path / "view.pt", {"x": torch.zeros(1_000_000)[:10]})
    assert (tmp_path / "view.pt").stat().st_size < 5_000


def test_foreign_pt_with_numpy_arrays_is_read(tmp_path):
    content = {"embeddings": np.arange(6, dtype=np.float32).reshape(2, 3), "labels": None, "filename": "a.wav", "score": np.float64(0.5)}
    torch.save(content, tmp_path / "a.pt")
    loaded = io.load_foreign(tmp_path / "a.pt")
    assert np.array_equal(loaded["embeddings"], content["embeddings"]) and loaded["labels"] is None and loaded["score"] == 0.5


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_foreign_pt_cannot_run_code(tmp_path):
    torch.save({"x": Exploit(tmp_path / "touched")}, tmp_path / "evil.pt")
    with pytest.raises(io.UnsafeFile):
        io.load_foreign(tmp_path / "evil.pt")
    assert not (tmp_path / "touched").exists()


def test_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"x": torch.zeros(50_000_000 // 4)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    with pytest.raises(io.UnsafeFile, match="decompression bomb"):
        io.load_foreign(tmp_path / "bomb.pt")


def test_many_small_tensors_that_become_large_are_refused_together(tmp_path):
    """Each of them is within what a file may grow to; all of them would take 800 MB."""
    torch.save({str(place): torch.zeros(1, dtype=torch.uint8).expand(1000, 1000) for place in range(200)}, tmp_path / "many.pt")
    with pytest.raises(io.UnsafeFile, match="decompression bomb"):
        io.load_foreign(tmp_path / "many.pt")
    torch.save({str(place): torch.zeros(1, dtype=torch.uint8).expand(100) for place in range(200)}, tmp_path / "few.pt")
    assert len(io.load_foreign(tmp_path / "few.pt")) == 200


def test_lists_that_hold_each_other_many_times_over_are_refused(tmp_path):
    many = [0]
    for _ in range(9):
        many = [many] * 10
    torch.save({"x": many}, tmp_path / "laughs.pt")
    with pytest.raises(io.UnsafeFile, match="decompression bomb"):
        io.load_foreign(tmp_path / "laughs.pt")


def test_a_list_that_holds_itself_is_nested_too_deeply(tmp_path):
    own = []
    own.append(own)
    torch.save({"x": own}, tmp_path / "own.pt")
    with pytest.raises(io.UnsafeFile, match="is nested too deeply"):
        io.load_foreign(tmp_path / "own.pt")


def test_complex_numbers_are_no_features_even_where_they_are_nan(tmp_path):
    torch.save({"x": torch.tensor([complex("nan")])}, tmp_path / "complex.pt")
    with pytest.raises(io.NotNumbers, match="x is complex") as refused:
        io.load_foreign(tmp_path / "complex.pt")
    assert not isinstance(refused.value, io.NotFinite)


@pytest.mark.parametrize("bad", [torch.tensor([1, float("nan")]).to(torch.float8_e4m3fn), torch.tensor([1, float("inf")]).to(torch.float8_e5m2)])
def test_numbers_of_one_byte_are_looked_at_as_others_are(tmp_path, bad):
    torch.save({"x": bad[:1], "y": bad}, tmp_path / "bad.pt")
    with pytest.raises(io.NotFinite, match=r"y holds NaN or infinity, first at \[1\]"):
        io.load_foreign(tmp_path / "bad.pt")


@pytest.mark.parametrize("bad", [torch.tensor([1.0, float("nan")]), np.float32([1, np.inf]), np.array([{}], dtype=object)])
def test_foreign_values_that_are_not_finite_numbers_are_refused(tmp_path, bad):
    torch.save({"tokens": {"video": bad}}, tmp_path / "bad.pt")
    with pytest.raises(io.UnsafeFile):
        io.load_foreign(tmp_path / "bad.pt")


def test_missing_artefact_names_the_stage_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="Run `dvc repro prepare`"):
        io.read_table(Path("data/solar/samples.parquet"))
