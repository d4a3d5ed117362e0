"""One file to one record and back: three schemas and a general one, and what is wrong named by file and key."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.datasets.record_errors import RecordError
from stages.datasets.record_files import SCHEMAS, parsed, read_record, write_record
from stages.datasets.records import UNKNOWN, Record, Tokens
from tests.datasets.record_corpus import HOSTILE, series


def read(path, content, **options):
    torch.save(content, path)
    return read_record(path, **options)


@pytest.mark.parametrize("title", HOSTILE)
def test_a_file_that_cannot_be_used_is_named_with_its_key_and_runs_nothing(tmp_path, title):
    write, code, key = HOSTILE[title]
    write(tmp_path / "x.pt")
    with pytest.raises(RecordError) as raised:
        read_record(tmp_path / "x.pt", name="set/x.pt")
    error = raised.value
    assert (error.code, error.key) == (code, key) and str(error).startswith(f"{code} set/x.pt: {key}".rstrip()) and error.fix
    assert not (tmp_path / "touched").exists()


def test_audio_and_video_are_laid_out_flat_and_keep_their_order(tmp_path):
    audio, video = torch.randn(5, 1, 12), torch.randn(4, 7, 8)
    record, named, _, _ = read(tmp_path / "w7.pt", {"audio_tokens": audio, "video_tokens": video.numpy(), "labels": {"binary": 1}})
    assert (record.record_id, named, record.label) == ("w7", False, 1)
    assert torch.equal(record.modalities["audio"].values, audio[:, 0])
    assert torch.equal(record.modalities["video"].values, video.reshape(4, 56))
    assert record.modalities["video"].time.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_video_as_tokens_repeats_the_time_of_a_frame(tmp_path):
    video = torch.randn(3, 7, 8)
    record = read(tmp_path / "a.pt", {"video_tokens": video, "labels": 0}, as_tokens=True).record
    assert torch.equal(record.modalities["video"].values, video.reshape(21, 8))
    assert record.modalities["video"].time.tolist() == [0.0] * 7 + [0.5] * 7 + [1.0] * 7


def test_a_vector_of_labels_is_kept_for_the_steps_and_any_step_makes_the_record_anomalous(tmp_path):
    record = read(tmp_path / "a.pt", {**series(4), "labels": np.array([0, 1, 0, 0]), "filename": "pump.csv"}).record
    assert record.label == 1 and record.step_label.tolist() == [0, 1, 0, 0] and record.record_id == "pump.csv"
    assert read(tmp_path / "b.pt", {**series(4), "labels": torch.zeros(4, 1)}).record.label == 0
    assert read(tmp_path / "c.pt", series(4)).record[2] == UNKNOWN


def test_a_pair_of_vectors_is_one_token_each(tmp_path):
    content = {"img_feat": torch.ones(3, dtype=torch.bfloat16), "text_feat": np.ones((2, 5), np.int16), "label": np.int64(1), "id": 17}
    record = read(tmp_path / "a.pt", content).record
    assert record.modalities["image"].values.shape == (1, 3) and record.modalities["text"].values.shape == (2, 5)
    assert {one.values.dtype for one in record.modalities.values()} == {torch.float32} and (record.record_id, record.label) == ("17", 1)


@pytest.mark.parametrize("label", [1, True, 1.0, np.float32(1), torch.tensor(1), torch.tensor([1]), np.array([[1]]), [1]])
@pytest.mark.parametrize("spell", [lambda one: {"labels": one}, lambda one: {"labels": {"binary": one}}, lambda one: {"label": one}])
def test_every_spelling_of_a_label_means_the_same(label, spell):
    assert parsed({"img_feat": torch.ones(2), **spell(label)}, "a.pt", "a").record.label == 1


def test_times_of_any_unit_become_shares_in_order_and_masked_tokens_go_with_their_labels():
    gas = {"tokens": torch.tensor([[3.0], [1.0], [2.0], [9.0]]), "time": torch.tensor([30, 10, 20, 40]), "mask": torch.tensor([1, 1, 1, 0])}
    record = parsed({"modalities": {"series": gas}, "labels": [1, 0, 0, 1], "group": "shift4", "split": "test"}, "a.pt", "a").record
    assert record.modalities["series"].values[:, 0].tolist() == [1, 2, 3] and record.step_label.tolist() == [0, 0, 1]
    assert record.modalities["series"].time.tolist() == pytest.approx([0, 1 / 3, 2 / 3]) and (record.group, record.split) == ("shift4", "test")


def test_a_modality_that_is_masked_whole_is_missing():
    hidden = {"tokens": torch.zeros(2, 3), "mask": [0, 0]}
    assert list(parsed({"modalities": {"gas": {**hidden, "mask": torch.zeros(2)}, "oil": torch.ones(3)}}, "a.pt", "a").record.modalities) == ["oil"]


def test_unknown_keys_are_told_and_ignored():
    content = {"img_feat": torch.ones(2), "labels": {"binary": 0, "kind": "dent"}, "camera": 3, "modalities": {"gas": {"tokens": torch.ones(2), "unit": 1}}}
    assert parsed(content, "a.pt", "a").unknown == ["camera", "modalities.*.unit", "labels.kind"]


NUMBERS = st.floats(-(2.0**20), 2.0**20, width=32)


@st.composite
def records(draw, schema):
    names = ["text", "image", "video", "audio", "series", "gas-2"]
    names = {"audio-video": ["audio", "video"], "series": ["series"], "image-text": ["image", "text"]}.get(schema, names)
    present = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    modalities = {}
    for name in present:
        count, width = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        values = torch.tensor(draw(st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=count, max_size=count)))
        even = torch.zeros(count) if name == "image" or count == 1 else torch.linspace(0, 1, count)
        own = torch.tensor(sorted(draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count))))
        modalities[name] = Tokens(values, own if schema == "general" else even)
    label, steps = draw(st.sampled_from([0, 1, UNKNOWN])), None
    if schema in ("general", "series") and "series" in modalities and len(modalities["series"].values) > 1 and draw(st.booleans()):
        count = len(modalities["series"].values)
        steps = torch.tensor(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), dtype=torch.int8)
        label = int(steps.any())
    told = {name: draw(st.sampled_from(["", "x/1"])) for name in ("group", "fault")} if schema == "general" else {}
    split = draw(st.sampled_from([None, "train", "test"])) if schema == "general" else None
    return Record(draw(st.text("aZ0/.ü ", min_size=1)), modalities, label, **told, split=split, step_label=steps)


def same(one: Record, other: Record) -> bool:
    plain = one._replace(modalities={}, step_label=None) == other._replace(modalities={}, step_label=None)
    steps = (one.step_label is None) == (other.step_label is None) and (one.step_label is None or torch.equal(one.step_label, other.step_label))
    return plain and steps and list(one.modalities) == list(other.modalities) and all(
        torch.equal(mine, theirs) for name in one.modalities for mine, theirs in zip(one.modalities[name], other.modalities[name], strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS)
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_record_comes_back_as_it_was_written(tmp_path, schema, data):
    record = data.draw(records(schema))
    write_record(tmp_path / "r.pt", record, schema)
    back = read_record(tmp_path / "r.pt").record
    order = list(record.modalities) if schema == "general" else list(back.modalities)
    assert same(back, record._replace(modalities={name: record.modalities[name] for name in order}))


def test_a_schema_that_has_no_place_for_a_modality_says_so(tmp_path):
    record = Record("a", {"audio": Tokens(torch.zeros(1, 2), torch.zeros(1)), "gas": Tokens(torch.zeros(1, 2), torch.zeros(1))})
    with pytest.raises(RecordError, match="E321 a: the schema audio-video has no place for gas"):
        write_record(tmp_path / "a.pt", record, "audio-video")
    assert not (tmp_path / "a.pt").exists()
