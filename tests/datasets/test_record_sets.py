"""Which records and which of their modalities a model is shown; what is marked as a control only by name."""

import shutil

import pytest
import torch

from stages import io
from stages.datasets.record_sets import open_split, open_stores, rows_of, subset_of
from stages.datasets.record_store import StoreWriter
from stages.datasets.records import Record, Tokens
from stages.fusion.detector import class_names, class_of
from stages.params import ParamsError
from stages.types import Refusal

FAULTS = ["", "crack", "", "burr", "", "crack"]


@pytest.fixture
def project(tmp_path):
    """Six records: all have sound, every other one a film, all but the last a setpoint."""
    ids = [f"r{number}" for number in range(6)]
    have = {"audio": ids, "video": ids[::2], "setpoint": ids[:5]}
    for name, there in have.items():
        writer = StoreWriter(tmp_path / "features/press" / name, {name: 2})
        for record_id in there:
            writer.add(Record(record_id, {name: Tokens(torch.full((1, 2), float(record_id[1:])), torch.zeros(1))}))
        writer.close({"control": True} if name == "setpoint" else {})
    samples = [
        {"record_id": record_id, "split": "train", "label": int(bool(fault)), "group": record_id, "fault": fault}
        for record_id, fault in zip(ids, FAULTS, strict=True)
    ]
    io.write_json(tmp_path / "data/press/manifest.json", {"samples": samples})
    return tmp_path


def test_a_control_is_shown_only_to_what_names_it(project):
    assert list(open_split("press", "train", project).widths) == ["video", "audio"]
    shown = open_split("press", "train", project, ["setpoint"])
    assert shown.widths == {"setpoint": 2} and shown.record_ids == ["r0", "r1", "r2", "r3", "r4"]
    assert shown.take([4]).tokens["setpoint"].values.tolist() == [[4.0, 4.0]]


def test_controls_alone_are_said_to_be_that(project):
    for name in ("audio", "video"):
        shutil.rmtree(project / "features/press" / name)
    with pytest.raises(ParamsError, match="all that press has are controls"):
        open_split("press", "train", project)


def test_a_model_of_few_modalities_learns_from_the_records_that_have_one_and_is_judged_on_all(project):
    assert [row["record_id"] for row in rows_of("press", "train", project, ["video"])] == ["r0", "r2", "r4"]
    judged = subset_of(rows_of("press", "train", project), "press", project, ["video"])
    assert judged.samples == 6 and judged.take(range(6)).present[:, 0].tolist() == [True, False] * 3
    assert list(judged.kept([1, 2]).widths) == ["video"]


def test_a_modality_that_no_store_holds_is_named(project):
    with pytest.raises(ParamsError, match="press has no modality 'vidoe'; did you mean 'video'"):
        open_stores("press", project, ["vidoe"])


def test_records_know_their_kind_of_fault_however_they_are_taken(project):
    split = open_split("press", "train", project)
    assert list(split.kept([5, 1, 0]).take([2, 0]).fault) == ["", "crack"] and list(split.take([3]).take([0]).fault) == ["burr"]
    assert class_names(split) == ["normal", "burr", "crack"]
    assert class_of(split, ["normal", "crack"]).tolist() == [0, 1, 0, -1, 0, 1]


def test_what_tells_faults_cannot_learn_from_those_that_have_no_name(project):
    split = open_split("press", "train", project)
    split.fault = ["", "crack", "", "", "", ""]
    with pytest.raises(Refusal, match="2 anomalous records to learn from do not say which fault"):
        class_names(split)
