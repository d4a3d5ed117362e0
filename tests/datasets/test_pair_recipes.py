"""Sets of matching pairs whose texts are exchanged: MIMIC-CXR and Spot-the-Diff, on small trees of their layout."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.datasets import mimic_cxr, record_adapters
from stages.datasets.mismatched_pairs import partners
from stages.datasets.record_checks import check
from stages.datasets.samples import DataError
from tests.datasets.pair_trees import diff_tree, mimic_tree


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.floats(0, 1), st.integers(0, 9))
def test_texts_are_handed_round_once_each_and_never_within_a_group(groups, share, seed):
    found = partners(groups, share, np.random.default_rng(seed))
    assert sorted(found) == list(range(len(groups)))
    parted = [at for at, text in enumerate(found) if text != at]
    assert all(groups[at] != groups[found[at]] for at in parted) and len(parted) <= round(share * len(groups))
    if len(set(groups)) == len(groups) and round(share * len(groups)) != 1:
        assert len(parted) == round(share * len(groups)), "where all groups differ, as many are parted as were asked for"


@pytest.mark.parametrize("official", [True, False])
def test_a_mismatched_report_is_another_patients_of_the_same_split(tmp_path, official):
    owner = mimic_tree(tmp_path, official)
    reading = record_adapters.read("mimic_cxr", tmp_path, tmp_path / "media", {"test_fraction": 0.25, "val_fraction": 0.25})
    assert {row.record_id.removeprefix("s") for row in reading.rows} == set(owner) and len(check(reading).rows) == len(owner)
    split_of = {row.group: row.split for row in reading.rows}
    assert len({(row.group, row.split) for row in reading.rows}) == len(split_of), "a patient is in one split"
    for row in reading.rows:
        text = (tmp_path / row.paths["text"]).read_text()
        writer, patient = text.split()[3].strip(","), owner[row.record_id[1:]]
        assert row.group == f"p{patient}" and f"/p{patient}/{row.record_id}/a-" in row.paths["image"]
        assert row.label == (writer != patient) == (not text.endswith(row.record_id[1:]))
        assert split_of[f"p{writer}"] == row.split
    assert len({row.paths["text"] for row in reading.rows}) == len(owner), "each report is used once"
    shares = [np.mean([row.label for row in reading.rows if row.split == split]) for split in ("train", "val", "test")]
    assert all(0.2 <= share <= 0.6 for share in shares), shares
    if official:
        assert split_of["p10000001"] == "val" and split_of["p10000002"] == "test"


def test_half_of_a_study_is_left_out_and_said(tmp_path):
    mimic_tree(tmp_path)
    next(tmp_path.rglob("s50110.txt")).unlink()
    (problem,) = record_adapters.read("mimic_cxr", tmp_path, tmp_path / "media", {}).problems
    assert problem.code == "E438" and problem.what.startswith("1 studies have a report or a picture")
    with pytest.raises(DataError, match="E438 .*has no study with a report and a picture"):
        record_adapters.read("mimic_cxr", tmp_path / "files" / "p10" / "p10000000", tmp_path / "media", {})


TABLE = "mimic-cxr-2.0.0-split.csv.gz"
ROWS = b"subject_id,split\n10000000,train\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(ROWS * 50)[:-12], "cannot be read as a table"),
        (b"\x1f\x8b no archive at all", "cannot be read as a table"),
        (ROWS, "cannot be read as a table"),
        (gzip.compress(b"subject_id,split\n\xff,train\n"), "cannot be read as a table"),
        (gzip.compress(b"subject_id,split\n1,\"" + b"x" * 200_000 + b"\"\n"), "cannot be read as a table"),
        (gzip.compress(ROWS + b"10000001,validation\n"), "has the split 'validation', expected train, validate, test"),
        (gzip.compress(ROWS + b"10000001\n"), "has the split 'None'"),
        (gzip.compress(ROWS * 40_000), "holds more than 1000000 bytes"),
    ],
    ids=["cut off", "no archive", "not packed", "no text", "a field without end", "a word that is no split", "a short row", "too large"],
)  # fmt: skip
def test_a_table_of_splits_that_is_none_is_an_error_of_the_data(tmp_path, monkeypatch, content, said):
    monkeypatch.setattr(mimic_cxr, "MOST_BYTES", 1_000_000)
    mimic_tree(tmp_path)
    (tmp_path / TABLE).write_bytes(content)
    with pytest.raises(DataError, match=f"E438 .*{said}"):
        record_adapters.read("mimic_cxr", tmp_path, tmp_path / "media", {})


def test_patients_that_the_table_of_splits_does_not_name_are_counted(tmp_path):
    mimic_tree(tmp_path)
    (tmp_path / TABLE).write_bytes(gzip.compress(ROWS + b"10000001,test\n"))
    (problem,) = record_adapters.read("mimic_cxr", tmp_path, tmp_path / "media", {}).problems
    assert problem.code == "E438" and problem.what.startswith("10 patients have no row in the table of splits (10000002, ")


def test_pictures_are_copies_so_that_the_source_stays_as_it_is(tmp_path):
    diff_tree(tmp_path, 2)
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "0.png").hardlink_to(tmp_path / "resized_images" / "0.png")
    record_adapters.read("spot_the_diff", tmp_path, tmp_path / "media", {})
    before = (tmp_path / "resized_images" / "0.png").read_bytes()
    (tmp_path / "media" / "0.png").write_bytes(b"drawn over")
    assert (tmp_path / "resized_images" / "0.png").read_bytes() == before


def test_descriptions_that_are_none_are_refused(tmp_path):
    diff_tree(tmp_path, 2)
    (tmp_path / "annotations" / "train.json").write_text(json.dumps([{"img_id": "0", "sentences": None}]))
    with pytest.raises(DataError, match="E439 .*is no list of {img_id, sentences: "):
        record_adapters.read("spot_the_diff", tmp_path, tmp_path / "media", {})


def test_a_mismatched_description_is_of_another_pair_of_the_same_split(tmp_path):
    diff_tree(tmp_path)
    reading = record_adapters.read("spot_the_diff", tmp_path, tmp_path / "media", {})
    assert len(check(reading).rows) == 30 and reading.modalities == ("text", "image", "image_after")
    for row in reading.rows:
        told = (reading.root / row.paths["text"]).read_text().split()[3]
        assert row.label == (told != row.record_id) and int(told) // 100 == int(row.record_id) // 100
        assert row.split == ("train", "val", "test")[int(row.record_id) // 100]
        first, second = (np.asarray(Image.open(reading.root / row.paths[name]))[0, 0] for name in ("image", "image_after"))
        assert first.tolist() == [int(row.record_id) % 255, 0, 0] and second.tolist() == [int(row.record_id) % 255, 0, 50]
    assert sum(row.label for row in reading.rows) == 15


def test_a_set_without_pictures_is_refused(tmp_path):
    with pytest.raises(DataError, match="E439 .*has no annotations with pictures"):
        record_adapters.read("spot_the_diff", tmp_path, tmp_path / "media", {})
