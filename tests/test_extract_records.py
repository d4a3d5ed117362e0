"""The verb extract_records on the smallest station, and on a data set of stored tokens."""

import shutil

import pytest
import torch

from stages import extract_records, io, prepare_records
from stages.datasets.record_store import RecordStore
from stages.datasets.samples import DataError
from stages.encoders import media
from stages.encoders.media.encoder import Place
from stages.params import ParamsError
from tests.record_projects import record_project

ENCODERS = {
    "pictures": {"kind": "frames", "backbone": "test_efficientnet", "weights": "random", "image_size": 64},
    "mel": {"kind": "log_mel", "window_s": 0.2, "hop_s": 0.1},
    "sensors": {"kind": "windows", "steps": 16, "frequencies": 4},
    "absent": {"kind": "dinov2", "weights": "dinov2-small"},
    "packed": {"kind": "stored"},
}
READ_BY = {"image": "pictures", "audio": "mel", "series": "sensors", "video": "absent"}


def _extracts(dataset, read_by):
    return {
        f"{dataset}-{modality}": {"dataset": dataset, "modality": modality, "encoder": encoder, "code": "stages/encoders/media"}
        for modality, encoder in read_by.items()
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    project = record_project(
        tmp_path_factory.mktemp("records") / "project",
        encoders=ENCODERS,
        extracts=_extracts("station", READ_BY) | _extracts("files", {"stored": "packed"}),
        datasets={"files": {"adapter": "stored_records", "source": "files"}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        assert prepare_records.main("station") == 0
    return project


@pytest.fixture
def project(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.mark.parametrize("modality", ["image", "audio", "series"])
def test_what_is_stored_is_what_the_encoder_gives_for_the_file_alone(project, modality):
    assert extract_records.main("station", modality) == 0
    store, samples = RecordStore(project / "features/station" / modality), io.read_table(project / "data/station/samples.parquet")
    having = [row for row in samples if row[f"{modality}_path"]]
    assert 0 < len(having) < len(samples) and store.record_ids == [row["record_id"] for row in having]
    assert [(row["label"], row["group"], row["fault"]) for row in store.rows] == [(row["label"], row["group"], row["fault"]) for row in having]
    encoder = media.rebuild(store.about, Place("cpu", 1, project / "backbones"))
    root = project / io.read_json(project / "data/station/dataset.json")["root"]
    for row in having[:: len(having) // 3]:
        alone, stored = encoder([root / row[f"{modality}_path"]])[0], store.tokens([row["record_id"]])[modality]
        torch.testing.assert_close(stored.values, alone.values, rtol=0, atol=1e-5)
        assert torch.equal(stored.time, alone.time)
    assert store.widths == {modality: stored.values.shape[1]}


def test_the_same_files_give_the_same_bytes_whatever_the_number_of_threads(project):
    def extracted():
        extract_records.main("station", "series")
        return {path.name: path.read_bytes() for path in (project / "features/station/series").iterdir()}

    first = extracted()
    settings = project / "params.yaml"
    settings.write_text(settings.read_text().replace("processes: 1", "processes: 3"))
    assert extracted() == first and set(first) == {"00000.pt", "index.parquet", "records.json"}


def _damage(project, modality, count):
    samples = io.read_table(project / "data/station/samples.parquet")
    root = project / io.read_json(project / "data/station/dataset.json")["root"]
    having = [row for row in samples if row[f"{modality}_path"]][:count]
    for row in having:
        (root / row[f"{modality}_path"]).write_bytes(b"not what it was")
    return [row["record_id"] for row in having]


def test_a_file_that_cannot_be_read_is_left_out_and_listed(project, capsys):
    lost = _damage(project, "image", 2)
    assert extract_records.main("station", "image") == 0
    store = RecordStore(project / "features/station/image")
    assert [one["record_id"] for one in store.about["unreadable"]] == lost and not set(lost) & set(store.record_ids)
    assert store.about["unreadable"][0]["reason"].startswith("E431") and "2 could not be read" in capsys.readouterr().out


def test_too_many_files_that_cannot_be_read_are_an_error(project):
    _damage(project, "image", 5)
    with pytest.raises(DataError, match=r"E436 3 of \d+ files of image .*more than 5%. The last: E431"):
        extract_records.main("station", "image")
    assert not (project / "features/station/image/records.json").exists()


def test_files_with_other_variables_are_named(project):
    samples = [row for row in io.read_table(project / "data/station/samples.parquet") if row["series_path"]]
    path = project / io.read_json(project / "data/station/dataset.json")["root"] / samples[3]["series_path"]
    path.write_text("time_s,spindle_rpm\n" + "".join(f"{step},1300\n" for step in range(40)))
    with pytest.raises(DataError, match=f"E437 {samples[3]['series_path']} gives tokens of width 10, the files before it 60"):
        extract_records.main("station", "series")


def test_absent_weights_are_a_recorded_refusal(project, capsys):
    assert extract_records.main("station", "video") == 0
    about = io.read_json(project / "features/station/video/records.json")
    assert about["refused"].startswith("E101 dinov2-small") and about["modalities"] == {} and about["records"] == 0
    assert "not extracted" in capsys.readouterr().out


def test_an_extract_that_is_not_in_the_settings_is_named(project):
    with pytest.raises(ParamsError, match="one entry for station text, has 0. Known: files stored, station audio"):
        extract_records.main("station", "text")


def test_stored_tokens_are_packed_with_the_labels_of_the_table(project):
    (project / "files").mkdir()
    for number in range(6):
        content = {"img_feat": torch.full((2, 4), float(number)), "text_feat": torch.ones(3) * number, "label": number % 2, "id": f"pair-{number}"}
        torch.save(content, project / "files" / f"{number}.pt")
    assert prepare_records.main("files") == 0 and extract_records.main("files", "stored") == 0
    store = RecordStore(project / "features/files/stored")
    assert store.widths == {"text": 3, "image": 4} and [row["label"] for row in store.rows] == [0, 1] * 3
    assert store.record("pair-4").modalities["image"].values.tolist() == [[4.0] * 4] * 2
