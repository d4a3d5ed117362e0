"""The mirror in MLflow: each result once and whole, at one place wherever DVC runs the stage, and never at the expense of a stage."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages import params, track, tracking
from stages.tracking import Point, Result

CELL = {"value": 0.957, "low": 0.941, "high": 0.97}
MISSING = {"value": None, "reason": "the data set has no masks"}


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A new MLflow database, which takes many seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking._client(f"sqlite:///{path}")
    return path


@pytest.fixture
def project(tmp_path, root, monkeypatch) -> Path:
    """A project with one finished run and one that was never made, and no database yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    settings = YAML(typ="safe").load(root / "params.yaml")
    run = {"dataset": "metal", "encoder": "lite0", "code": "-", "maths": "-"}
    settings["models"] = {
        "patchcore": {"detector": "memory_bank.patchcore", "layers": ["layer2", "layer3"], "coreset_ratio": 0.01},
        "floor": {"rows": {"brightness": {"detector": "trivial.brightness"}, "random": {"detector": "trivial.random_score"}}},
    }
    settings["runs"] = {name: {**run, "model": name} for name in ("patchcore", "floor")}
    settings["tracking"] = {"enabled": True, "uri": "sqlite:///mlflow.db", "experiment": "assay"}
    YAML().dump(settings, tmp_path / "params.yaml")
    content = {"dataset": "metal", "model": "patchcore", "label": "", "categories": {"nut": {"image_auroc": CELL, "pixel_auroc": MISSING}}}
    write("data/metal/manifest.json", {"samples": []})
    write("metrics/metal/patchcore.json", {**content, "mean": {"image_auroc": CELL}})
    write("models/metal/patchcore/nut/seed0/history.json", [{"training": "train", "step": step, "loss": 1 / step} for step in (1, 2)])
    write("models/metal/patchcore/nut/seed1/history.json", [{"memory_bank_rows": 784, "search": "flat"}])
    write("metrics/metal/patchcore/nut/overlays/00.png", "a picture")
    write("metrics/metal/patchcore/thresholds.json", {})
    return tmp_path


@pytest.fixture
def store(project, template) -> Path:
    """The project's database, already made."""
    return Path(shutil.copy(template, project / "mlflow.db"))


def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content))


def edit(path, change):
    content = json.loads(Path(path).read_text())
    change(content)
    write(path, content)


def runs(store):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    found = client.get_experiment_by_name("assay")
    return client, client.search_runs([found.experiment_id]) if found else []


def test_an_ensemble_arrives_too(store):
    write("metrics/ensemble/metal.json", {"dataset": "metal", "model": "ensemble", "members": ["a", "b", "c"], "mean": {"image_auroc": CELL}})
    track.main()
    _, found = runs(store)
    [run] = [run for run in found if run.data.tags["model"] == "ensemble"]
    assert run.info.run_name == "metal/ensemble" and run.data.metrics["mean.image_auroc"] == CELL["value"]
    assert json.loads(run.data.params["members"]) == ["a", "b", "c"]


def test_a_result_arrives_whole(store, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "empty-tape")
    subprocess.run("git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m first", shell=True, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    track.main()
    client, [run] = runs(store)
    wanted = {
        "dataset": "metal",
        "model": "patchcore",
        "encoder": "lite0",
        "dvc_experiment": "empty-tape",
        "mlflow.source.git.commit": commit,
    }
    assert run.info.status == "FINISHED" and run.info.run_name == "metal/patchcore"
    assert wanted.items() <= run.data.tags.items()
    assert all(len(run.data.tags[f"{name}_hash"]) == 64 for name in ("data", "parameter", "result"))
    assert {
        "model.coreset_ratio": "0.01",
        "model.layers": '["layer2", "layer3"]',
        "encoder.image_size": "224",
    }.items() <= run.data.params.items()
    figures = {
        f"{scope}.image_auroc{end}": CELL[part]
        for scope in ("nut", "mean")
        for end, part in (("", "value"), (".low", "low"), (".high", "high"))
    }
    history = {"history/nut/seed0/train/loss": 0.5, "history/nut/seed1/memory_bank_rows": 784}
    assert run.data.metrics == figures | history
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "history/nut/seed0/train/loss")] == [
        (1, 1),
        (2, 0.5),
    ]
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["nut", "patchcore.json"]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "nut/overlays")] == ["nut/overlays/00.png"]


def test_pictures_lie_beside_the_database_and_not_where_the_stage_ran(store, monkeypatch, tmp_path_factory):
    """What a `dvc exp run --temp` leaves in its working folder is deleted."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(store.parent, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("mlflow.db"))
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(store.parent))
    before = set(copy.rglob("*"))
    track.main()
    assert set(copy.rglob("*")) - before == {copy / "metrics/track", copy / track.MIRRORED}
    assert len(runs(store)[1]) == 1 and list(store.parent.glob("mlartifacts/*/artifacts/nut/overlays/00.png"))


def test_a_result_is_logged_once_until_the_result_its_data_or_its_parameters_change(store):
    changes = [
        ("metrics/metal/patchcore.json", lambda content: content["mean"]["image_auroc"].update(value=0.96)),
        ("data/metal/manifest.json", lambda content: content["samples"].append({"sample_id": "nut/0"})),
    ]
    for number in range(2):
        track.main()
        first = {run.info.run_id for run in runs(store)[1]}
        track.main()
        assert {run.info.run_id for run in runs(store)[1]} == first and len(first) == 1 + number
        edit(*changes[number])
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("coreset_ratio: 0.01", "coreset_ratio: 0.02"))
    track.main()
    track.main()
    assert sorted(run.data.params["model.coreset_ratio"] for run in runs(store)[1]) == ["0.01", "0.01", "0.02"]


def test_a_half_logged_run_is_replaced(store, monkeypatch):
    from mlflow import MlflowClient

    def killed(self, *arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "log_artifact", killed)
        track.main()
    [half] = runs(store)[1]
    assert half.info.status == "RUNNING" and half.data.metrics
    track.main()
    client, [whole] = runs(store)
    assert whole.info.run_id != half.info.run_id and whole.info.status == "FINISHED" and len(client.list_artifacts(whole.info.run_id)) == 2


def test_a_refused_model_and_the_rows_of_a_group_are_runs_of_their_own(store):
    rows = {"brightness": {"model": "brightness", "mean": {"image_auroc": CELL}}, "random": {"model": "random", "refused": "no weights"}}
    write("metrics/metal/floor.json", {"dataset": "metal", "model": "floor", "rows": rows})
    write("models/metal/floor/brightness/nut/seed0/history.json", [{"step": 3, "loss": 2.0}])
    write("metrics/metal/floor/brightness/nut/histogram_scores.png", "a picture")
    track.main()
    client, found = runs(store)
    found = {run.data.tags["model"]: run for run in found}
    assert set(found) == {"patchcore", "brightness", "random"}
    assert found["random"].data.tags["refused"] == "no weights" and found["random"].data.metrics == {}
    assert found["brightness"].data.metrics["history/nut/seed0/loss"] == 2 and "refused" not in found["brightness"].data.tags
    assert found["brightness"].data.params["model.detector"] == "trivial.brightness"
    assert [file.path for file in client.list_artifacts(found["brightness"].info.run_id, "nut")] == ["nut/histogram_scores.png"]
    assert [file.path for file in client.list_artifacts(found["random"].info.run_id)] == ["floor.json"]


def test_any_category_name_and_any_number_of_values_fit(store):
    names = ["Schraube (groß)", "a+b", "a(b", "#1: 50%"]
    history = [Point(f"history/{name}", step, float(step)) for name in names for step in range(700)]
    result = Result(
        "wild", "0" * 64, {}, {f"option{i}": str(i) for i in range(250)}, {f"{name}.image_auroc": 0.5 for name in names}, history, []
    )
    tracking.mirror([result], f"sqlite:///{store}", "assay")
    client, [run] = runs(store)
    assert len(run.data.params) == 250 and len(run.data.metrics) == 8
    assert [len(client.get_metric_history(run.info.run_id, f"history/{tracking.allowed(name)}")) for name in names] == [700] * 4


def _blocked(store):
    store.unlink(missing_ok=True)
    store.mkdir()
    return contextlib.nullcontext()


def _locked(store):
    connection = sqlite3.connect(store)
    connection.execute("BEGIN EXCLUSIVE")
    return contextlib.closing(connection)


def _broken(store):
    store.write_bytes(b"this is no database" * 100)
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (_blocked, "OperationalError: unable to open database file"),
        (_locked, "OperationalError: database is locked"),
        (_broken, "DatabaseError: file is not a database"),
    ],
)
def test_a_tracker_that_fails_is_a_warning_that_says_what_to_do(fault, says, store, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.1)
    with fault(store):
        assert track.main() is None
    warning = capsys.readouterr().err
    assert (
        says in warning
        and f"Check that sqlite:///{store} (tracking.uri in params.yaml)" in warning
        and "run `python -m stages.track`" in warning
    )


def test_without_mlflow_the_stage_ends_well_and_says_how_to_install_it(store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    track.main()
    assert "pip install 'assay[track]'" in capsys.readouterr().err


def test_what_the_stage_writes_is_the_same_with_a_tracker_without_and_with_a_broken_one(store):
    written = set()
    for prepare in (lambda: None, lambda: None, lambda: _broken(store), _disable):
        prepare()
        shutil.rmtree("metrics/track", ignore_errors=True)
        track.main()
        written.add(Path(track.MIRRORED).read_bytes())
    [content] = written
    [entry] = json.loads(content)
    assert (entry["dataset"], entry["model"], len(entry["result"])) == ("metal", "patchcore", 64)


def test_a_tracker_that_is_not_wanted_is_not_touched(project, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    _disable()
    track.main()
    assert capsys.readouterr().err == "" and not list(project.glob("*mlflow*")) and Path(track.MIRRORED).exists()


def _disable():
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("enabled: true", "enabled: false"))
    assert not params.load().tracking.enabled


def test_a_database_appears_whole_or_not_at_all(project):
    def killed(tracking_uri):
        assert Path(tracking_uri.removeprefix("sqlite:///")).exists() and not Path("mlflow.db").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tracking._make_database(project / "mlflow.db", killed)
    assert not list(project.glob("*mlflow.db*"))


def test_a_database_that_another_process_made_meanwhile_is_kept(project):
    class Slow:
        def __init__(self, tracking_uri):
            Path("mlflow.db").write_text("with the runs of the other one")

        def search_experiments(self, max_results):
            return []

    tracking._make_database(project / "mlflow.db", Slow)
    assert Path("mlflow.db").read_text() == "with the runs of the other one" and [path.name for path in project.glob("*mlflow*")] == [
        "mlflow.db"
    ]


@pytest.mark.parametrize(
    "inside", [".dvc/tmp/exps/tmpa1", ".dvc/tmp/exps/standalone/tmpa1", ".dvc/tmp/exps/tmpa1/.dvc/tmp/exps/tmpb2", "."]
)
@pytest.mark.parametrize("variable", [True, False])
def test_the_project_root_is_found_from_the_copies_that_dvc_makes(inside, variable, tmp_path, monkeypatch):
    folder = tmp_path / inside
    monkeypatch.setenv("DVC_ROOT", str(folder)) if variable else monkeypatch.delenv("DVC_ROOT", raising=False)
    assert tracking.project_root(tmp_path if variable else folder) == tmp_path


def test_only_relative_sqlite_paths_are_made_absolute(tmp_path):
    assert tracking.absolute_uri("sqlite:///mlflow.db", tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    for uri in (f"sqlite:///{tmp_path}/elsewhere.db", "https://tracker.example:5000", "postgresql://tracker/runs", "sqlite:///:memory:"):
        assert tracking.absolute_uri(uri, Path("/project")) == uri


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--temp"], ["--queue"], []])
def test_experiments_of_dvc_find_the_project_root(how, tmp_path, root):
    """With DVC itself, as the copy is its own affair."""
    (tmp_path / "stage.py").write_text(
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "import pathlib; from stages.tracking import project_root\n"
        "pathlib.Path('root.txt').write_text(str(project_root(pathlib.Path.cwd())))\n"
    )
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: python stage.py\n    params: [k]\n    outs: [root.txt: {cache: false}]\n")
    (tmp_path / "params.yaml").write_text("k: 1\n")
    git = "git -c user.name=a -c user.email=a@b"
    setup = f"git init -q . && git config user.name a && git config user.email a@b && dvc init -q && git add -A && {git} commit -qm first"
    subprocess.run(setup, shell=True, check=True, cwd=tmp_path)
    subprocess.run(["dvc", "exp", "run", *how, "-n", "trial", "-S", "k=2"], check=True, cwd=tmp_path)
    if how == ["--queue"]:
        subprocess.run(["dvc", "exp", "run", "--run-all"], check=True, cwd=tmp_path)
    reference = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)", "refs/exps"], cwd=tmp_path, capture_output=True, text=True
    ).stdout.split()
    trial = next(name for name in reference if name.endswith("/trial"))
    shown = subprocess.run(["git", "show", f"{trial}:root.txt"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout == str(tmp_path)


@pytest.mark.slow
def test_telemetry_is_off_before_mlflow_is_imported(store):
    script = "from stages import tracking; tracking._client('sqlite:///mlflow.db'); from mlflow.telemetry import client"
    script += "; print(client.get_telemetry_client())"
    environment = {name: value for name, value in os.environ.items() if name not in tracking.SETTINGS and not name.startswith("PYTEST")}
    environment.pop("CI", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
