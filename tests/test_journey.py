"""A newcomer with a folder of good and bad photos, and nothing but the commands of README's "Your own images"; then every command of docs/, in the
same project: a block that is fenced as `sh` or `python` is run as it stands."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from tests.projects import ROOT, run, tiny_project

pytestmark = pytest.mark.slow
SIDE = 96


def take_photos(folder, good: int = 20, bad: int = 5) -> None:
    """JPEGs of a grey plate; a bad one has a dark spot."""
    rng = np.random.default_rng(1)
    for kind, count in (("good", good), ("bad", bad)):
        for number in range(count):
            plate = rng.integers(140, 160, (SIDE, SIDE, 3), dtype=np.uint8)
            if kind == "bad":
                top, left = rng.integers(8, SIDE - 32, 2)
                plate[top : top + 24, left : left + 24] = 10
            path = folder / kind / f"IMG_{number:04d}.JPG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(plate).save(path, quality=92)


def commands() -> list[list[str]]:
    section = (ROOT / "README.md").read_text().split("## Your own images\n", 1)[1].split("\n## ", 1)[0]
    return lines_of(re.search(r"```\n(.*?)```", section, re.DOTALL).group(1))


def lines_of(block: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


def blocks(page: str) -> list[tuple[str, str]]:
    """The language and the text of every block of a page that is meant to be run, in order."""
    return re.findall(r"```(sh|python)\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def execute(project, command: list[str]):
    """`assay` is this checkout's."""
    done = run(project, *(["python", "-m", "stages.serving.cli", *command[1:]] if command[0] == "assay" else command))
    may_fail = command[:2] == ["assay", "doctor"]  # this machine may have too little memory, or no git
    assert done.returncode == 0 or may_fail, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tiny_project(tmp_path_factory.mktemp("journey"))
    (folder / "photos").rename(folder / "others")
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("source: photos", "source: others"))
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "config", "core.analytics", "false"]):
        assert run(folder, *command).returncode == 0, command
    take_photos(folder / "photos")
    take_photos(folder / "new", good=1, bad=1)
    (folder / "new/bad/IMG_0000.JPG").rename(folder / "new.png")  # whatever the suffix says, it is read as what it is
    return folder


@pytest.fixture(scope="module")
def said(project) -> dict[str, str]:
    """What each command of README printed."""
    return {" ".join(command[:2]): execute(project, command) for command in commands()}


def test_the_newcomers_way_is_doctor_check_add_repro_leaderboard_predict():
    assert [" ".join(command[:2]) for command in commands()] == [
        "assay doctor", "assay data", "assay add", "dvc repro", "assay leaderboard", "assay predict",
    ]  # fmt: skip


def test_check_says_what_lies_there_and_add_what_to_do_next(said):
    assert "bad 5, good 20" in said["assay data"] and "no problems" in said["assay data"]
    assert "photos-patchcore" in said["assay add"] and "next:\n  dvc repro" in said["assay add"]


def test_every_model_is_ranked_and_the_page_shows_the_new_data_set(said, project):
    assert "photos: mean over categories" in said["assay leaderboard"]
    page = project / "metrics/report/index.html"
    assert str(page) in said["assay leaderboard"] and "photos" in page.read_text()
    result = json.loads((project / "metrics/photos/patchcore.json").read_text())
    assert result["mean"]["image_auroc"]["value"] == 1.0


def test_a_new_bad_part_is_called_bad_and_a_new_good_one_good(said, project):
    assert "new.png: anomalous" in said["assay predict"] and "false alarms expected per 1,000 good parts" in said["assay predict"]
    assert (project / "predictions/new.png").is_file()
    done = run(project, "python", "-m", "stages.serving.cli", "predict", "--dataset", "photos", "new/good/IMG_0000.JPG", "--json")
    [verdict] = json.loads(done.stdout)
    assert verdict["verdict"] == "good" and verdict["margin"] <= 0 and verdict["good_parts"] >= 10


def test_nothing_is_left_to_do(said, project):
    done = run(project, "dvc", "repro")
    assert done.returncode == 0 and "Running stage" not in done.stdout, done.stdout


def test_getting_started_has_the_commands_of_readme():
    shell = [command for language, block in blocks("getting_started.md") if language == "sh" for command in lines_of(block)]
    assert shell == commands()


@pytest.mark.parametrize("page", ["getting_started.md", "training.md", "inference.md", "thresholds.md", "offline.md"])
def test_every_block_of_the_docs_runs_as_it_stands(said, project, committed, page):
    found = blocks(page)
    assert found
    for language, block in found:
        if language == "python":
            assert execute(project, ["python", "-c", block])
            continue
        for command in lines_of(block):
            if command not in commands():  # those have been run
                execute(project, command)


@pytest.fixture(scope="module")
def committed(said, project):
    """An experiment needs a commit to compare with."""
    for name, value in (("user.name", "newcomer"), ("user.email", "newcomer@example.org")):
        assert run(project, "git", "config", name, value).returncode == 0
    assert run(project, "git", "add", ".").returncode == 0
    assert run(project, "git", "commit", "-qm", "First run").returncode == 0


def test_no_page_has_a_block_that_is_run_nowhere():
    run_here = {"getting_started.md", "training.md", "inference.md", "thresholds.md", "offline.md"}
    elsewhere = {"configurations.md", "series_data.md"}  # tests/serving/test_experiment.py, tests/datasets/test_series_docs.py
    assert {path.name for path in (ROOT / "docs").glob("*.md") if blocks(path.name)} == run_here | elsewhere
