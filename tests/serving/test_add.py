"""`assay add` writes what a person would have written, and not one other byte."""

import difflib
import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages import params
from stages.datasets.samples import DataError
from stages.params import ParamsError
from stages.serving.add import add, add_signals
from tests.projects import photograph


@pytest.fixture
def project(root, tmp_path, monkeypatch) -> Path:
    """The real params.yaml and dvc.yaml, and a folder of photos."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, tmp_path)
    photograph(tmp_path / "My Photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_line_that_was_there_stays_and_only_lines_about_the_new_data_set_come(project):
    before = {name: Path(name).read_text().splitlines() for name in ("params.yaml", "dvc.yaml")}
    add(Path("My Photos"))
    for name, old in before.items():
        changes = [line for line in difflib.ndiff(old, Path(name).read_text().splitlines()) if line[0] in "+-"]
        assert changes and all(line.startswith("+ ") for line in changes), [line for line in changes if line[0] == "-"]
        assert not any(line.startswith(("+ #", "+  #")) or line.strip() == "+" for line in changes)


def test_the_new_data_set_has_the_encoders_models_and_seeds_of_the_others(project):
    added = add(Path("My Photos"))
    settings = params.load()
    assert settings.datasets["my-photos"].model_dump(exclude_none=True) == {"adapter": "mvtec", "source": "My Photos"}
    for run in added.runs:
        own, model = settings.runs[run], settings.runs[run].model
        other = next(entry for entry in settings.runs.values() if entry.model == model)
        assert own == other.model_copy(update={"dataset": "my-photos"})
    assert {settings.runs[run].model for run in added.runs} == {run.model for run in settings.runs.values()}
    assert settings.extracts["my-photos-pixels"].reads == "data/my-photos/samples.parquet"
    assert settings.extracts["my-photos-lite0"].reads == "features/my-photos/pixels"


def test_stages_without_a_table_depend_on_the_new_data_set_as_on_the_old(project):
    add(Path("My Photos"))
    stages = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]
    for stage in ("report", "track"):
        of = {name: [dep for dep in stages[stage]["deps"] if f"/{name}" in dep] for name in ("parts", "my-photos")}
        assert [dep.replace("/parts", "/my-photos") for dep in of["parts"]] == of["my-photos"] != []


def test_only_the_models_asked_for_and_what_they_need(project):
    added = add(Path("My Photos"), "x", models=["trivial"])
    assert added.runs == ["x-trivial"] and added.extracts == ["x-pixels"]
    with pytest.raises(ParamsError, match="did you mean 'padim'"):
        add(Path("My Photos"), "y", models=["padm"])


@pytest.mark.parametrize("name", ["parts", "report", "bench", "ensemble", "a/b", "Ä", "..", "a.b"])
def test_a_name_that_is_taken_or_cannot_be_one_is_refused_and_nothing_is_written(project, name):
    before = Path("params.yaml").read_bytes(), Path("dvc.yaml").read_bytes()
    with pytest.raises(ParamsError, match="--name"):
        add(Path("My Photos"), name)
    assert before == (Path("params.yaml").read_bytes(), Path("dvc.yaml").read_bytes())


def test_a_folder_without_good_images_is_refused_and_nothing_is_written(project):
    before = Path("params.yaml").read_bytes()
    (project / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        add(Path("empty"))
    assert Path("params.yaml").read_bytes() == before


def test_a_source_outside_the_project_is_absolute_and_two_can_be_added_in_turn(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "caps"
    photograph(elsewhere)
    add(Path("My Photos"))
    add(elsewhere)
    settings = params.load()
    assert settings.datasets["caps"].source == elsewhere.as_posix() and "my-photos" in settings.datasets
    deps = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]["report"]["deps"]
    assert len(deps) == len(set(deps)) and {"metrics/caps", "metrics/my-photos", "metrics/parts"} <= set(deps)


def test_a_file_without_a_last_line_end_is_completed_first(project):
    text = Path("params.yaml").read_text()
    head, tail = text.split("\nprotocol:")[0], "protocol:" + text.split("\nprotocol:")[1]
    Path("params.yaml").write_text(tail.rstrip() + "\n\n" + head.rstrip())
    add(Path("My Photos"), "late")
    assert params.load().runs["late-patchcore"].dataset == "late"


def test_the_command_says_what_to_do_next(project, assay, monkeypatch):
    monkeypatch.chdir(project)
    code, out, _ = assay("add", "My Photos", "--name", "caps")
    assert code == 0 and "next:\n  dvc repro\n" in out and "assay predict --dataset caps" in out
    code, out, _ = assay("add", "My Photos", "--name", "caps2", "--json")
    assert code == 0 and json.loads(out)["runs"][0] == "caps2-patchcore"
    code, _, err = assay("add", "My Photos", "--name", "caps")
    assert code == 1 and err.startswith("ParamsError: 'caps' is taken") and err.count("\n") == 1


def test_with_a_canvas_the_new_data_set_has_tiles_and_the_others_stay_whole(project):
    before = params.load()
    added = add(Path("My Photos"), "x", models=["patchcore", "trivial", "fastflow-resnet50"], canvas=(2000, 8000), overlap=40)
    settings = params.load()
    tiles = settings.encoders["pixels-in-2000x8000"]
    assert tiles.image_size == 224 and tiles.options == {"canvas": [2000, 8000], "overlap": 40}
    assert {settings.runs[run].pixels for run in added.runs} == {"pixels-in-2000x8000", "pixels-256-in-2000x8000"}
    assert settings.runs["x-trivial"].encoder == "pixels-in-2000x8000" and settings.runs["x-patchcore"].encoder == "lite0"
    assert settings.extracts["x-lite0"].reads == "features/x/pixels-in-2000x8000"
    assert settings.extracts["x-pixels-in-2000x8000"].reads == "data/x/samples.parquet"
    encoders = {settings.extracts[name].encoder for name in added.extracts}
    assert encoders == {name for run in added.runs for name in (settings.runs[run].encoder, settings.runs[run].pixels)}
    assert {name: run for name, run in settings.runs.items() if not name.startswith("x-")} == before.runs
    again = add(Path("My Photos"), "y", models=["trivial"], canvas=(2000, 8000), overlap=40)
    assert again.extracts == ["y-pixels-in-2000x8000"]
    text = Path("params.yaml").read_text()
    with pytest.raises(ParamsError, match="already, with overlap 40 .*say --overlap 40"):
        add(Path("My Photos"), "z", models=["trivial"], canvas=(2000, 8000), overlap=60)
    assert Path("params.yaml").read_text() == text


def test_a_canvas_leaves_a_data_set_alone_that_is_named_as_an_encoder_is(project):
    add(Path("My Photos"), "pixels", models=["patchcore"], canvas=(300, 400))
    settings = params.load()
    assert settings.runs["pixels-patchcore"].dataset == "pixels" and settings.runs["pixels-patchcore"].pixels == "pixels-in-300x400"
    extract = settings.extracts["pixels-lite0"]
    assert (extract.dataset, extract.reads) == ("pixels", "features/pixels/pixels-in-300x400")
    assert settings.extracts["pixels-pixels-in-300x400"].reads == "data/pixels/samples.parquet"


def test_a_canvas_that_is_none_is_refused_and_nothing_is_written(project, assay):
    before = Path("params.yaml").read_text()
    for canvas, said in (("big", "2048 or HEIGHTxWIDTH"), ("100", "smaller than image_size"), ("1x2x3", "HEIGHTxWIDTH")):
        code, _, err = assay("add", "My Photos", "--canvas", canvas)
        assert code == 1 and said in err
    assert Path("params.yaml").read_text() == before


def test_signals_get_the_detectors_of_the_other_signals_and_every_other_line_stays(project):
    before = {name: Path(name).read_text().splitlines() for name in ("params.yaml", "dvc.yaml")}
    (project / "press").mkdir()
    added = add_signals(Path("press"))
    settings = params.load().signals
    assert settings.datasets["press"].model_dump(exclude_none=True) == {"adapter": "signal_folder", "source": "press"}
    assert {settings.runs[run].model for run in added.runs} == {run.model for run in settings.runs.values()}
    for run in added.runs:
        other = next(entry for entry in settings.runs.values() if entry.model == settings.runs[run].model and entry.dataset == "server")
        assert settings.runs[run] == other.model_copy(update={"dataset": "press"})
    assert {"metrics/press", "models/press", "data/press/manifest.json"} <= set(added.deps["track"]) and "metrics/press" in added.deps["report"]
    for name, old in before.items():
        changes = [line for line in difflib.ndiff(old, Path(name).read_text().splitlines()) if line[0] in "+-"]
        assert changes and all(line.startswith("+ ") for line in changes)


def test_signals_with_a_name_that_is_taken_or_a_model_that_is_none_change_nothing(project):
    before = Path("params.yaml").read_bytes()
    (project / "press").mkdir()
    for name, models, said in (("solar", (), "is taken"), ("server", (), "is taken"), ("press", ("kmeans",), "no entry 'kmeans'")):
        with pytest.raises(ParamsError, match=said):
            add_signals(Path("press"), name, models=models)
    with pytest.raises(ParamsError, match="is taken"):
        add(Path("My Photos"), "server")
    assert Path("params.yaml").read_bytes() == before
