"""Adapters of records are found by name; the user's own media come in by a CSV or by a folder for each record; wrong rows are refused by name."""

from pathlib import Path

import pytest

from stages.datasets import adapters, media_folder, record_adapters, signal_adapters
from stages.datasets.record_adapters import RecordReading, RecordRow
from stages.datasets.record_checks import check
from stages.datasets.samples import DataError
from stages.params import ParamsError


def put(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def reading(root: Path, *rows: RecordRow, modalities: tuple[str, ...] = ("image", "text")) -> RecordReading:
    return RecordReading(root, modalities, rows)


def test_adapters_of_records_are_told_from_those_of_images_and_signals():
    found = record_adapters.known()
    assert {"station", "media_folder"} <= set(found)
    assert not set(found) & {*adapters.known(), *signal_adapters.known()}


def test_an_unknown_adapter_or_option_names_the_nearest_one(tmp_path):
    with pytest.raises(ParamsError, match=r"records\.datasets\.mine\.adapter: no adapter of records 'statoin'; did you mean 'station'"):
        record_adapters.read("statoin", tmp_path, tmp_path, {}, at=("records", "datasets", "mine"))
    with pytest.raises(ParamsError, match=r"datasets.mine.confond is not a known key; did you mean 'confound'"):
        record_adapters.read("station", tmp_path, tmp_path, {"confond": 1}, at=("records", "datasets", "mine"))


def test_a_table_lists_records_with_the_modalities_that_they_have(tmp_path):
    put(tmp_path, "a.png", "b.png", "deep/b.wav", "ir/a.png")
    (tmp_path / "parts.csv").write_text(
        "record_id;label;group;split;image;audio;thermal_path\n"
        "a;ok;s1;train;a.png;;ir/a.png\n"
        "b;porosity;s2;Validation;b.png;deep\\b.wav;\n"
        "c;?;;;b.png;;\n"
        "d;NG;;test;b.png;;\n"
    )
    for found in (
        media_folder.read_records(tmp_path / "parts.csv", tmp_path),
        media_folder.read_records(tmp_path, tmp_path, table="parts.csv"),
    ):
        assert found.root == tmp_path and found.modalities == ["image", "audio", "thermal"]
        assert list(found.rows) == [
            RecordRow("a", {"image": "a.png", "thermal": "ir/a.png"}, 0, "", "s1", "train"),
            RecordRow("b", {"image": "b.png", "audio": "deep/b.wav"}, 1, "porosity", "s2", "val"),
            RecordRow("c", {"image": "b.png"}, -1),
            RecordRow("d", {"image": "b.png"}, 1, "", "", "test"),
        ]


def test_a_folder_for_each_record_may_lie_under_its_kind_and_its_split(tmp_path):
    put(tmp_path, "train/good/w1/top.png", "train/good/w1/run.wav", "train/Good/line2/w2/run.mp4", "test/porosity/w3/log.csv", "test/porosity/w3/note.txt",
        "test/porosity/.hidden/x.png", "train/good/readme.md.bak")  # fmt: skip
    found = media_folder.read_records(tmp_path, tmp_path)
    assert found.modalities == ["text", "image", "video", "audio", "series"]
    rows = {row.record_id: row for row in found.rows}
    assert rows["train/good/w1"] == RecordRow(
        "train/good/w1", {"audio": "train/good/w1/run.wav", "image": "train/good/w1/top.png"}, 0, "", "", "train"
    )
    assert rows["test/porosity/w3"].label == 1 and rows["test/porosity/w3"].fault == "porosity" and rows["test/porosity/w3"].split == "test"
    assert len(rows) == 3


def test_without_a_kind_called_normal_nothing_is_known_of_labels(tmp_path):
    put(tmp_path, "monday/w1/top.png", "tuesday/w2/top.png")
    found = media_folder.read_records(tmp_path, tmp_path)
    assert [(row.label, row.fault, row.group) for row in found.rows] == [(-1, "", "monday"), (-1, "", "tuesday")]


def test_a_second_file_of_a_modality_is_named_and_not_read(tmp_path):
    put(tmp_path, "w1/left.png", "w1/right.png")
    found = media_folder.read_records(tmp_path, tmp_path)
    assert found.rows[0].paths == {"image": "w1/left.png"}
    assert [problem.code for problem in found.problems] == ["E427"] and "right.png is not" in found.problems[0].what


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,image\nok,a.png\n", "missing: record_id"),
        ("record_id,label\na,ok\n", r"E426 .*no column of paths; expected one of text, image"),
        ("record_id,image,image_path\na,a.png,a.png\n", "E426 .*names a modality twice"),
    ],
)
def test_a_table_that_lacks_columns_says_which(tmp_path, text, message):
    (tmp_path / "parts.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        media_folder.read_records(tmp_path / "parts.csv", tmp_path)


def test_a_source_without_records_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"E426 .* has no folder with media in it.*\.png"):
        media_folder.read_records(tmp_path, tmp_path)
    with pytest.raises(DataError, match="E426 .*parts.csv is not there"):
        media_folder.read_records(tmp_path, tmp_path, table="parts.csv")


def test_files_that_are_not_there_or_empty_are_counted_and_named(tmp_path):
    put(tmp_path, *(f"{at}.png" for at in range(60)))
    (tmp_path / "1.png").write_bytes(b"")
    rows = [RecordRow(f"r{at:02d}", {"image": f"{at}.png"}) for at in range(60)]
    rows += [RecordRow("r60", {"image": "60.png", "text": "3.png"}), RecordRow("r61", {"image": "../1.png", "text": "4.png"})]
    checked = check(reading(tmp_path, *rows))
    assert [(problem.code, problem.what) for problem in checked.problems] == [
        ("E421", "files that are empty: 1 (1.png)"),
        ("E422", "records that have no file left and are out: 1 (r01)"),
        ("E420", "files that are not there: 1 (60.png)"),
        ("E428", "paths that leave the data folder: 1 (../1.png)"),
    ]
    assert (checked.files, checked.lost, len(checked.rows)) == (64, 3, 61)
    assert next(row for row in checked.rows if row.record_id == "r60").paths == {"text": "3.png"}


def test_more_than_a_twentieth_of_the_files_lost_is_an_error(tmp_path):
    put(tmp_path, *(f"{at}.png" for at in range(9)))
    with pytest.raises(DataError, match=r"E423 .*lacks 1 of the 10 files .*files that are not there: 1 .9.png"):
        check(reading(tmp_path, *(RecordRow(f"r{at}", {"image": f"{at}.png"}) for at in range(10))))


def test_the_hash_is_of_the_content_and_the_group_is_the_record_by_default(tmp_path):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "b.png").write_bytes(b"a.png")
    rows = check(reading(tmp_path, RecordRow("b", {"image": "b.png"}), RecordRow("a", {"image": "a.png"}, content={"image": "given"}))).rows
    assert [(row.record_id, row.group) for row in rows] == [("a", "a"), ("b", "b")]
    assert rows[0].content == {"image": "given"} and len(rows[1].content["image"]) == 64


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([RecordRow("a", {"image": "a.png"}), RecordRow("A", {"image": "a.png"})], "two records are called a and A"),
        ([RecordRow("a", {"image": "a.png"}, label=2)], "a has the label 2, expected 0"),
        ([RecordRow("a", {"image": "a.png"}, split="dev")], "a has the split 'dev', expected train, val, test"),
        ([RecordRow("a", {"smell": "a.png"})], "a has smell, which is none of the modalities image, text"),
        ([RecordRow("", {"image": "a.png"})], "has no id .a.png"),
    ],
)
def test_rows_that_contradict_themselves_are_refused_by_name(tmp_path, rows, message):
    put(tmp_path, "a.png")
    with pytest.raises(DataError, match=f"E424 .*{message}"):
        check(reading(tmp_path, *rows))
