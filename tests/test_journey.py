"""A newcomer with a folder of good and bad photos, and nothing but the commands of README's "Your own images"."""

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
    block = re.search(r"```\n(.*?)```", section, re.DOTALL).group(1)
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


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
    """What each command of README printed; `assay` is this checkout's."""
    printed = {}
    for command in commands():
        name = " ".join(command[:2])
        done = run(project, *(["python", "-m", "stages.serving.cli", *command[1:]] if command[0] == "assay" else command))
        assert done.returncode == 0 or name == "assay doctor", f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        printed[name] = done.stdout
    return printed


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
