"""The generated welding cell, then a second lot of it welded with more gas and current: from logs on disk to what is named, and what was never set before."""

import json
from pathlib import Path

import pytest
import torch

from stages import io, params
from stages.datasets import weld
from stages.serving.drift_sides import of_new, of_split
from tests.record_projects import record_project
from tests.stored_records import work

pytestmark = pytest.mark.slow
CODE = "stages/encoders/media"
LOGS_ALONE = {"sessions": 36, "welds_per_session": 1, "missing_rate": {"video": 1.0, "image": 1.0, "audio": 1.0, "series": 0.0}}
ENCODERS = {
    "steps": {"kind": "sensor_steps", "clock_s": 10.0, "steps": 88, "relative": True},
    "setpoints": {"kind": "facts", "nominal": {"current_a": [190.0, 60.0], "gas_bar": [2.0, 1.0]}, "levels": {"weld_type": ["Butt", "Fillet", "Lap"]}},
}
MORE = {"current_a": 40.0, "gas_bar": 1.0}


def welded(folder: Path, patch: pytest.MonkeyPatch | None = None) -> Path:
    """Another lot of the generator; with `patch` every session is set to more gas and current."""
    folder.mkdir()
    if patch is not None:
        drawn = weld.process.draw_sessions

        def hotter(*given):
            sessions = drawn(*given)
            changed = [{name: round(getattr(one.setting, name) + more, 3) for name, more in MORE.items()} for one in sessions]
            return [one._replace(setting=one.setting._replace(**new)) for one, new in zip(sessions, changed, strict=True)]

        patch.setattr(weld.process, "draw_sessions", hotter)
    weld.read_records(folder, folder, seed=1, **LOGS_ALONE)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("welds")
    extracts = {
        "weld-series": {"dataset": "weld", "modality": "series", "encoder": "steps", "code": f"{CODE}/sensor_steps.py"},
        "weld-setpoint": {"dataset": "weld", "modality": "setpoint", "encoder": "setpoints", "code": f"{CODE}/facts.py", "control": True},
    }
    run = {"weld-knn": {"dataset": "weld", "model": "knn", "code": "stages/fusion/classical/knn.py", "maths": "stages/fusion/classical"}}
    datasets = {"weld": {"adapter": "weld", "source": "station_code", "seed": 0, **LOGS_ALONE}}
    record_project(folder, datasets=datasets, encoders=ENCODERS, extracts=extracts, models={"knn": {"detector": "classical.knn"}}, runs=run)
    steps = [("prepare_records", "weld"), ("extract_records", "weld"), ("manifest_records", "weld"), ("train_records", "weld-knn")]
    return work(folder, *steps)


def measured(assay, folder: Path):
    code, out, err = assay("drift", "--new", str(folder), "--json", "--permutations", "499")
    assert code == 0, err
    return json.loads(out)


def test_media_that_come_live_are_the_numbers_of_the_store(project, monkeypatch):
    monkeypatch.chdir(project)
    live, stored = of_new(params.load(), "weld", Path("data/weld/media")), of_split("weld", "test")
    for place, name in enumerate(stored.records.record_id):
        other = live.records.record_id.index(name)
        one, two = (side.records.take([at]).tokens["series"].values for side, at in ((stored, place), (live, other)))
        assert torch.equal(one, two) and stored.group[place] == live.group[other]
        assert stored.levels["pressure"][place] == live.levels["pressure"][other]
        assert live.facts[other] == {fact: value for fact, value in stored.facts[place].items() if fact in live.facts[other]} != {}
    assert not any("video" in one for one in live.records.tokens) and any(note.startswith("E447") for note in live.notes)


def test_another_lot_with_the_same_settings_is_steady(project, assay, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    assert measured(assay, welded(tmp_path / "lot"))["counts"]["moved"] == 0


def test_more_gas_and_current_are_named_as_settings_and_as_sensors_and_lie_outside(project, assay, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    with pytest.MonkeyPatch.context() as patch:
        found = measured(assay, welded(tmp_path / "hot", patch))
    moved = [row["statistic"] for row in found["statistics"] if row["verdict"] == "moved"]
    assert {"current_a", "gas_bar", "primary_weld_current level", "pressure level"} <= {*moved[:6]}
    assert {one["fact"] for one in found["settings"]["outside"]} == {"current_a", "gas_bar"}
    known = found["settings"]["seen"]
    of_good_welds = io.read_json(project / "models/weld/knn/seed0/config.json")["settings"]
    assert known["current_a"]["least"] <= of_good_welds["current_a"]["least"] <= of_good_welds["current_a"]["most"] <= known["current_a"]["most"]
    by_name = {row["statistic"]: row for row in found["statistics"]}
    assert by_name["current_a"]["is"] > known["current_a"]["most"] > by_name["current_a"]["was"]
    assert by_name["primary_weld_current level"]["is"] - by_name["primary_weld_current level"]["was"] == pytest.approx(MORE["current_a"], abs=8)
