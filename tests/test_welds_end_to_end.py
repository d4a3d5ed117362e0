"""From a folder of the welding release to stored tokens, through the verbs."""

from pathlib import Path

from stages import extract_records, io, manifest_records, prepare_records
from stages.datasets import record_sets
from tests.datasets.weld_trees import write_tree
from tests.record_projects import record_project

SMALL = {"backbone": "test_efficientnet", "weights": "random", "image_size": 32}
CLOCK = {"clock_s": 2.0}
ENCODERS = {
    "steps": {"kind": "sensor_steps", **CLOCK},
    "sounds": {"kind": "arc_sound", "windows": 4, **CLOCK},
    "films": {"kind": "arc_film", **SMALL, "frames": 4, **CLOCK},
    "photos": {"kind": "views", **SMALL},
    "setpoints": {"kind": "facts", "nominal": {"current_a": [180.0, 5.0]}, "levels": {"weld_type": ["fillet", "butt"]}},
}
MODALITIES = {"series": "steps", "audio": "sounds", "video": "films", "image": "photos", "setpoint": "setpoints"}


def test_a_folder_of_welds_becomes_tokens_of_four_modalities_and_a_control(tmp_path, monkeypatch):
    kinds = [("Good", "00")] * 3 + [("Undercut", "03"), ("Porosity", "04"), ("Undercut", "03")]
    (tmp_path / "release").mkdir()
    write_tree(tmp_path / "release", kinds, welds=1, seconds=2.0, arc=(0.5, 1.5))
    code = "stages/encoders/media"
    extracts = {f"intel-{name}": {"dataset": "intel", "modality": name, "encoder": one, "code": code} for name, one in MODALITIES.items()}
    extracts["intel-setpoint"]["control"] = True
    datasets = {"intel": {"adapter": "intel_welding", "source": str(tmp_path / "release")}}
    project = record_project(tmp_path / "p", datasets=datasets, encoders=ENCODERS, extracts=extracts)
    monkeypatch.chdir(project)
    assert prepare_records.main("intel") == 0
    assert {problem["code"] for problem in io.read_json(Path("data/intel/dataset.json"))["problems"]} == {"E447", "E448"}
    assert manifest_records.main("intel") == 0 and all(extract_records.main("intel", name) == 0 for name in MODALITIES)
    train = record_sets.open_split("intel", "train").whole()
    assert {name: int(one.lengths.min()) for name, one in train.tokens.items()} == {"image": 5, "video": 3, "audio": 3, "series": 12}
    assert set(train.fault) <= {"", "undercut", "porosity"} and "setpoint" not in train.tokens
    control = record_sets.open_split("intel", "train", modalities=["setpoint"]).whole()
    assert control.widths == {"setpoint": 3} and control.tokens["setpoint"].values[:, 1:].tolist() == [[1, 0]] * control.samples
