"""`assay data check --records` and `assay add --records`: what is found is said before anything is written, and only entries are written."""

import difflib
import json
from pathlib import Path

import pytest

from stages import extract_records, io, manifest_records, params, prepare_records
from stages.datasets.record_files import write_record
from stages.params import ParamsError
from stages.serving import record_check
from stages.serving.add import add, add_records, add_signals
from tests.datasets.weld_trees import write_tree
from tests.fusion.synthetic import samples


@pytest.fixture
def project(tmp_path, monkeypatch, root):
    """The repository's own settings beside a folder of stored records."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((root / name).read_text())
    for record in samples(0, 60):
        path = tmp_path / "Line 3" / record.group / f"{record.record_id}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, record)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stored_records_get_one_extract_and_the_models_of_the_others_and_every_other_line_stays(project):
    before = {name: Path(name).read_text().splitlines() for name in ("params.yaml", "dvc.yaml")}
    old = params.load().records
    added = add_records(Path("Line 3"))
    task = params.load().records
    assert (added.name, added.adapter) == ("line-3", "stored_records")
    assert task.datasets["line-3"].model_dump(exclude_none=True) == {"adapter": "stored_records", "source": "Line 3"}
    (extract,) = (extract for extract in task.extracts.values() if extract.dataset == "line-3")
    assert extract.modality == "stored" and task.encoders[extract.encoder].kind == "stored"
    assert extract.code == "stages/encoders/media/stored.py"
    assert {task.runs[run].model for run in added.runs} == {run.model for run in old.runs.values()} - {"weld-controls", "weld-fusion"}
    for run in added.runs:
        other = next(entry for entry in old.runs.values() if entry.model == task.runs[run].model)
        assert task.runs[run] == other.model_copy(update={"dataset": "line-3"})
    assert "metrics/line-3" in added.deps["report"] and "models/line-3" in added.deps["track"]
    assert added.predict == "assay predict --dataset line-3 RECORD.pt"
    for name, lines in before.items():
        changes = [line for line in difflib.ndiff(lines, Path(name).read_text().splitlines()) if line[0] in "+-"]
        assert changes and all(line.startswith("+ ") for line in changes)


def test_a_name_that_any_task_has_or_a_model_that_is_none_changes_nothing(project):
    before = Path("params.yaml").read_bytes()
    for name, models, said in (
        ("solar", (), "is taken"),
        ("server", (), "is taken"),
        ("station", (), "is taken"),
        ("x", ("perceiver",), "no entry 'perceiver'"),
        ("x", ("perceiver-moe", "weld-controls"), "weld-controls has rows that are shown duration, session, setpoint; there are image, series, stored, text"),
    ):
        with pytest.raises(ParamsError, match=said):
            add_records(Path("Line 3"), name, models=models)
    for other in (add, add_signals):
        with pytest.raises(ParamsError, match="is taken"):
            other(Path("Line 3"), "station")
    assert Path("params.yaml").read_bytes() == before


def test_the_command_adds_one_model_where_one_is_asked_for(project, assay, monkeypatch):
    monkeypatch.chdir(project)
    code, out, _ = assay("add", "Line 3", "--records", "--name", "line", "--model", "perceiver-moe", "--json")
    assert code == 0 and json.loads(out)["runs"] == ["line-perceiver-moe"]
    code, out, _ = assay("add", "Line 3", "--records", "--model", "perceiver-moe")
    assert code == 0 and "next:\n  dvc repro\n" in out and "assay predict --dataset line-3 RECORD.pt" in out


def test_each_medium_gets_the_encoder_of_the_other_data_sets_but_sensors_one_that_names_no_columns(root):
    task = params.load(root / "params.yaml").records
    station = {extract.modality: extract.encoder for extract in task.extracts.values() if extract.dataset == "station"}
    for modality in ("text", "image", "video", "audio"):
        assert record_check.encoder_for(task, modality)[0] == station[modality]
    assert record_check.encoder_for(task, "series") == ("plain-series", {"kind": "windows"})
    with pytest.raises(ParamsError, match="no encoder reads a modality 'smell'"):
        record_check.encoder_for(task, "smell")


def test_raw_media_get_an_extract_for_each_modality_that_the_table_has(project, assay, monkeypatch):
    monkeypatch.chdir(project)
    rows = ["record_id,label,group,text,series"]
    Path("press").mkdir()
    for number in range(24):
        Path(f"press/{number}.txt").write_text(f"note {number}")
        Path(f"press/{number}.csv").write_text(f"time_s,force\n0,{number}\n1,{number + 1}\n")
        rows.append(f"r{number},{'good' if number % 2 else 'jam'},shift {number // 2},{number}.txt,{number}.csv")
    Path("press/table.csv").write_text("\n".join([*rows, ""]))
    code, out, _ = assay("data", "check", "press/table.csv", "--records", "--json")
    found = json.loads(out)
    assert code == 0 and found["adapter"] == "media_folder" and found["modalities"] == {"text": 24, "series": 24} and found["faults"] == {"jam": 12}
    added = add_records(Path("press/table.csv"), "press")
    task = params.load().records
    encoders = {extract.modality: extract.encoder for extract in task.extracts.values() if extract.dataset == "press"}
    assert encoders == {"text": "notes", "series": "plain-series"} and task.encoders["plain-series"].kind == "windows"
    assert added.predict == "assay predict --dataset press text=FILE series=FILE"


def test_a_welding_release_gets_encoders_on_the_clock_of_the_arc_without_its_label_and_the_controls(project, assay, monkeypatch):
    """The plain ones would show the class code in print, and the column with the part number as a sensor."""
    monkeypatch.chdir(project)
    kinds = [(kind, code) for kind, code in (("Good", "00"), ("Undercut", "09"), ("Overlap", "06")) for _ in range(3)]
    Path("release").mkdir()
    write_tree(Path("release"), kinds, welds=1, seconds=1.5, arc=(0.5, 1.25), photos=1)
    added = add_records(Path("release"))
    task = params.load().records
    own = {extract.modality: (task.encoders[extract.encoder], extract) for extract in task.extracts.values() if extract.dataset == "release"}
    assert added.adapter == "intel_welding"
    assert {name: entry.kind for name, (entry, _) in own.items()} == {
        "image": "views", "video": "arc_film", "audio": "arc_sound", "series": "sensor_steps", "setpoint": "facts", "duration": "facts", "session": "facts",
    }  # fmt: skip
    assert [name for name, (_, extract) in own.items() if extract.control] == ["setpoint", "duration", "session"]
    assert own["image"][0].options["crop"][1] > 0 and own["series"][0].options["relative"]
    assert {"release-weld-controls", "release-weld-fusion"} <= set(added.runs)
    assert prepare_records.main("release") == 0 and manifest_records.main("release") == 0
    assert extract_records.main("release", "series") == extract_records.main("release", "setpoint") == extract_records.main("release", "session") == 0
    assert io.read_json(Path("features/release/setpoint/records.json"))["control"] is True


def test_controls_are_written_only_where_their_facts_are(project, monkeypatch):
    monkeypatch.chdir(project)
    Path("release").mkdir()
    write_tree(Path("release"), [("Good", "00")] * 3 + [("Undercut", "09")] * 3, welds=1, seconds=1.5, arc=(0.5, 1.25), photos=1)
    manifest = Path("release/manifest.csv")
    manifest.write_text(manifest.read_text().replace("GAS_BAR", "PRESSURE"))
    added = add_records(Path("release"))
    assert "release-setpoint" not in added.extracts and "release-session" in added.extracts
    assert "release-weld-fusion" in added.runs and "release-weld-controls" not in added.runs


def test_the_check_counts_records_and_draws_the_split_that_the_protocol_would(project, assay, monkeypatch):
    monkeypatch.chdir(project)
    code, out, _ = assay("data", "check", "Line 3", "--records", "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and found["labels"] == {"normal": 30, "anomalous": 30, "unlabelled": 0}
    assert found["widths"] == {"text": 8, "image": 12, "series": 6} and found["groups"] == 20
    assert sum(count["normal"] + count["anomalous"] for count in found["splits"].values()) == 60
    code, out, _ = assay("data", "check", "Line 3", "--records")
    assert code == 0 and out.endswith("ready for training\n") and "text of width 8" in out


def test_records_of_too_few_groups_cannot_be_judged_and_the_check_says_what_to_do(tmp_path, assay, monkeypatch):
    for record in samples(0, 12):
        path = tmp_path / "few" / f"{record.record_id}.pt"
        path.parent.mkdir(exist_ok=True)
        write_record(path, record._replace(group="one shift"))
    monkeypatch.chdir(tmp_path)
    code, out, _ = assay("data", "check", "few", "--records")
    assert code == 1 and "error E425" in out and "cannot be trained and judged" in out


def test_a_folder_without_records_is_an_error_of_one_line(project, assay, monkeypatch):
    monkeypatch.chdir(project)
    Path("empty").mkdir()
    before = Path("params.yaml").read_bytes()
    code, _, err = assay("add", "empty", "--records", "--adapter", "stored_records")
    assert code == 1 and err.count("\n") == 1 and Path("params.yaml").read_bytes() == before


def test_a_column_of_a_name_of_its_own_gets_the_encoder_of_its_kind_of_files(project):
    Path("pairs").mkdir()
    rows = ["record_id,label,image_after_path"]
    for number in range(24):
        Path(f"pairs/{number}.png").write_bytes(b"picture %d" % number)
        rows.append(f"r{number},{number % 2},{number}.png")
    Path("pairs/table.csv").write_text("\n".join([*rows, ""]))
    add_records(Path("pairs/table.csv"), "pairs")
    task = params.load().records
    (extract,) = (one for one in task.extracts.values() if one.dataset == "pairs")
    station = {one.modality: one.encoder for one in task.extracts.values() if one.dataset == "station"}
    assert extract.modality == "image_after" and extract.encoder == station["image"]


def test_flags_that_mean_nothing_to_records_are_refused(project, assay, monkeypatch):
    monkeypatch.chdir(project)
    before = Path("params.yaml").read_bytes()
    for arguments, said in (
        (("data", "check", "Line 3", "--records", "--signals"), "--signals and --records exclude each other"),
        (("add", "Line 3", "--records", "--signals"), "--signals and --records exclude each other"),
        (("data", "check", "Line 3", "--records", "--sheet", "a.png"), "--sheet: for images only"),
        (("data", "check", "Line 3", "--records", "--write-csv", "a.csv"), "--write-csv: for images only"),
        (("add", "Line 3", "--records", "--canvas", "2048", "--overlap", "0"), "--canvas, --overlap: for images only, records"),
        (("add", "Line 3", "--records", "--schedule", "quick"), "--schedule: for images only"),
        (("predict", "a.pt", "--category", "weave"), "--category: for images only"),
        (("predict", "a.pt", "--out", "here"), "--out: for images only"),
    ):
        code, _, err = assay(*arguments)
        assert code == 1 and said in err, (arguments, err)
    assert Path("params.yaml").read_bytes() == before
