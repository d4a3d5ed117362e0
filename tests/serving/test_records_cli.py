"""`assay records`: exit codes, JSON, and errors of one line."""

import json

import torch

from tests.datasets.record_corpus import HOSTILE, series, write_mixed


def test_pack_check_and_unpack_follow_each_other(assay, tmp_path):
    write_mixed(tmp_path / "files")
    code, out, err = assay("records", "pack", "files", "-o", "store")
    assert code == 0 and "store: 30 records in 1 shards; text 10, image 16, video 56, audio 12, series 9; grouped by file" in out and "W302" in err
    code, out, _ = assay("records", "check", "store", "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and found["modalities"]["series"] == {"records": 10, "width": 9, "shortest": 3, "median": 3, "longest": 3}
    assert assay("records", "unpack", "store", "-o", "back")[0] == 0 and len(list((tmp_path / "back").glob("*.pt"))) == 30
    assert assay("records", "check", "back")[0] == 0


def test_check_names_each_bad_file_and_exits_1_where_training_cannot_go_on(assay, tmp_path):
    write_mixed(tmp_path / "files", 12)
    HOSTILE["NaN"][0](tmp_path / "files" / "sick.pt")
    code, out, err = assay("records", "check", "files")
    assert code == 1 and "warning E301 sick.pt: embeddings holds NaN or infinity, first at [1, 1]" in out and "error E329" in out
    assert "15 normal" not in out and "6 normal, 6 anomalous" in out and "Traceback" not in out + err


def test_records_without_labels_can_be_packed_and_are_told_of(assay, tmp_path):
    for place in range(4):
        torch.save(series(width=300), tmp_path / f"{place}.pt")
    assert assay("records", "pack", ".", "-o", "../store-of-none")[0] == 0
    code, out, _ = assay("records", "check", ".")
    assert code == 1 and "4 of 4 records have no label: 0, 1, 2, 3" in out and "training cannot go on" in out


def test_what_cannot_be_is_one_line_and_exit_code_1(assay, tmp_path):
    for arguments, words in (
        (("pack", "nowhere", "-o", "s"), "E328 nowhere: is neither a folder nor a list"),
        (("pack", ".", "-o", "s"), "has no file that fits '**/*.pt'"),
        (("pack", ".", "-o", "s", "--group", "shift"), "--group must be one of auto, file, folder, id"),
        (("unpack", "nowhere", "-o", "s"), "nowhere/records.json is not here"),
    ):
        code, _, err = assay("records", *arguments)
        assert code == 1 and words in err and len(err.strip().splitlines()) == 1, err
