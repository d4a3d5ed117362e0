"""DVC and the pipeline together: only what changed runs, what was killed ends as if it had not been, the same input gives the same bytes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.projects import run, tiny_project

pytestmark = pytest.mark.slow
TIMED = ("bench", "report")  # their outs hold timings

DETECTOR = '''\
"""The largest feature: a detector in one file."""

from typing import Self

import torch

from stages.types import Batches, Detector, Features, Need, Prediction


class Peak(Detector):
    def __init__(self, *, layers: tuple[str, ...] = ("layer2",)) -> None:
        super().__init__()
        self.needs = Need(layers=tuple(layers))
        self.register_buffer("usual", torch.empty(0))

    def fit(self, train: Batches, val: Batches | None, run) -> Self:
        self.usual = torch.stack([batch.features["layer2"].amax() for batch in train]).mean(dim=0, keepdim=True)
        return self

    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.usual)
        return Prediction(features["layer2"].flatten(1).amax(dim=1) - self.usual, None)
'''
ENTRY = """\
  tiny-peak:
    dataset: tiny
    model: peak
    encoder: net
    pixels: pixels
    code: stages/detectors/density/peak.py
    maths: stages/detectors/density/peak.py
"""


def start(folder: Path) -> Path:
    """A tiny project under git and DVC, everything committed, nothing run."""
    tiny_project(folder)
    for command in (
        ["git", "init", "-q"], ["git", "config", "user.name", "A"], ["git", "config", "user.email", "a@b.c"], ["dvc", "init", "-q"],
        ["dvc", "config", "core.analytics", "false"], ["git", "add", "-A"], ["git", "commit", "-qm", "start"],
    ):  # fmt: skip
        done = run(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder


def repro(folder: Path, *arguments: str) -> list[str]:
    """The stages that ran."""
    done = run(folder, "dvc", "repro", *arguments)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return re.findall(r"Running stage '(.+?)'", done.stdout)


def outs(folder: Path) -> dict[str, str]:
    """Path -> hash of every out in dvc.lock that holds no timing."""
    stages = YAML(typ="safe").load(folder / "dvc.lock")["stages"]
    return {out["path"]: out["md5"] for name, stage in stages.items() if name.split("@")[0] not in TIMED for out in stage["outs"]}


def edit(folder: Path, old: str, new: str) -> None:
    text = (folder / "params.yaml").read_text()
    assert old in text
    (folder / "params.yaml").write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A project after its first `dvc repro`. Never changed: tests copy it."""
    folder = start(tmp_path_factory.mktemp("reproduced") / "project")
    assert len(repro(folder)) == len(YAML(typ="safe").load(folder / "dvc.lock")["stages"])
    return folder


@pytest.fixture
def project(reproduced, tmp_path):
    return shutil.copytree(reproduced, tmp_path / "project", symlinks=True)


def test_a_second_repro_runs_nothing(project):
    assert repro(project) == []


def test_a_parameter_of_one_model_runs_that_model_only(project):
    edit(project, "channels: 5", "channels: 6")
    ran = repro(project)
    assert ran[:2] == ["train@tiny-padim", "evaluate@tiny-padim"] and set(ran[2:]) <= {"ensemble@tiny", "bench@tiny", "report", "track"}


def test_a_new_detector_is_one_file_and_one_entry_and_runs_alone(project):
    (project / "stages/detectors/density/peak.py").write_text(DETECTOR)
    edit(project, "models:\n", "models:\n  peak:\n    detector: density.peak\n")
    edit(project, "runs:\n", f"runs:\n{ENTRY}")
    ran = repro(project)
    assert ran[:2] == ["train@tiny-peak", "evaluate@tiny-peak"] and set(ran[2:]) <= {"ensemble@tiny", "bench@tiny", "report", "track"}
    assert '"image_auroc"' in (project / "metrics/tiny/peak.json").read_text()


def test_two_clones_give_the_same_bytes(reproduced, tmp_path):
    """A second project from nothing, in another folder: every out up to the metrics has the same hash."""
    other = start(tmp_path / "another" / "place")
    ran = repro(other, "ensemble")
    again, first = outs(other), outs(reproduced)
    assert len(ran) >= 11 and again == {path: value for path, value in first.items() if not path.startswith("metrics/track")}


def test_dvc_tells_the_numbers_of_the_leaderboard(project):
    """`dvc metrics diff` and `dvc exp show` read the files that the table reads; what MLflow is given is tested in test_tracking.py."""
    board = json.loads(run(project, "python", "-m", "stages.serving.cli", "leaderboard", "--json").stdout)["tiny"]
    told = {row["model"]: row["metrics"]["image_auroc"]["value"] for row in board}
    diff = json.loads(run(project, "dvc", "metrics", "diff", "--json").stdout)
    shown = json.loads(run(project, "dvc", "exp", "show", "--json").stdout)[0]["data"]["metrics"]
    for model in ("patchcore", "padim"):
        file = f"metrics/tiny/{model}.json"
        assert diff[file]["mean.image_auroc.value"]["new"] == told[model] == shown[file]["data"]["mean"]["image_auroc"]["value"]


def test_git_is_clean_after_a_repro_but_for_the_lock_and_the_metrics(reproduced):
    changed = {line[3:] for line in run(reproduced, "git", "status", "--porcelain", "-uall").stdout.splitlines()}
    assert "dvc.lock" in changed and all(
        name == "dvc.lock" or re.fullmatch(r"metrics/\w+/\w+\.json|.*\.gitignore", name) for name in changed
    ), changed


@pytest.mark.parametrize(("stage", "out"), [("train@tiny-patchcore", "models/tiny/patchcore"), ("extract@tiny-net", "features/tiny/net")])
def test_a_killed_stage_ends_as_a_clean_run(reproduced, project, stage, out):
    """kill -9 of DVC and of everything below it while the stage runs; then repro."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "dvc", "repro", "-f", "-s", stage],
        cwd=project,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert any("Running stage" in line for line in process.stdout)
    while not any(path.is_file() for path in (project / out).glob("**/*")):  # DVC has emptied it: the stage is at its work from its first file on
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    repro(project)
    assert outs(project) == outs(reproduced)


def test_a_lock_that_a_kill_left_torn_is_said_by_doctor_and_costs_no_result(reproduced, project):
    """DVC writes dvc.lock in place: killed at that instant, it leaves a file that DVC itself refuses."""
    (project / "dvc.lock").write_text("")
    assert run(project, "dvc", "repro").returncode != 0
    said = run(project, sys.executable, "-m", "stages.serving.cli", "doctor").stdout
    assert re.search(r"MEND +dvc project +dvc.lock is .*rm dvc.lock", said), said
    (project / "dvc.lock").unlink()
    assert set(repro(project)) <= {"report", "track"}  # what had run comes from DVC's cache
    assert outs(project) == outs(reproduced)


def test_an_experiment_changes_one_parameter(project):
    done = run(project, "dvc", "exp", "run", "-S", "models.padim.channels=4")
    assert done.returncode == 0, done.stderr
    assert "train@tiny-padim" in done.stdout and "train@tiny-patchcore'" not in "".join(re.findall(r"Running stage '.+?'", done.stdout))


def test_a_misspelt_parameter_stops_the_stage_with_its_line(project):
    edit(project, "channels: 5", "chanels: 5")
    done = run(project, "dvc", "repro")
    assert done.returncode != 0
    assert re.search(r"params.yaml:\d+ models.padim.chanels is not a known key; did you mean 'channels'\?", done.stdout + done.stderr)


def test_the_gate_of_pull_requests_needs_no_data_and_sees_a_changed_parameter(project, tmp_path, root):
    """A clone has no features and no models, only code, dvc.lock and the small metrics."""
    text = (root / ".github/workflows/pull-request.yml").read_text()
    named = re.search(r"dvc (repro --allow-missing --dry [a-z_/. ]+?) \|", text).group(1).split()
    gate = [word for word in named if word != "search_series" and not word.startswith("pipelines/")]  # the project here has images only
    for command in (["git", "add", "-A"], ["git", "commit", "-qm", "results"], ["git", "clone", "-q", ".", str(tmp_path / "clone")]):
        assert run(project, *command).returncode == 0
    clone = tmp_path / "clone"
    agreed = run(clone, "dvc", *gate)
    assert agreed.returncode == 0 and "Running stage" not in agreed.stdout, agreed.stderr
    edit(clone, "channels: 5", "channels: 6")
    changed = run(clone, "dvc", *gate)
    assert changed.returncode != 0 or "Running stage" in changed.stdout
