"""`assay pipeline`: the stages of the root, two folders deeper, for every configuration of the zoo; DVC runs them."""

import re
import shlex
import shutil

import pytest
from ruamel.yaml import YAML

from stages import params
from stages.detectors import zoo
from stages.params import ParamsError
from stages.serving import pipelines
from tests.projects import photograph, run
from tests.test_dvc import start


def load(path):
    return YAML(typ="safe").load(path)


@pytest.fixture
def written(root, tmp_path, monkeypatch):
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, tmp_path)
    pipelines.write("mvtec", "../../datasets/mvtec", "mvtec", "full", tmp_path)
    return tmp_path / "pipelines/mvtec"


def test_every_configuration_has_a_run_whose_code_lies_where_it_says(written, root):
    settings = params.load(written / "params.yaml")
    assert {run.model for run in settings.runs.values()} == {*zoo.names(), "trivial"}
    place = root / "pipelines/mvtec"  # these paths are seen from there
    for run_ in settings.runs.values():
        assert (place / run_.code).resolve().exists() and (place / run_.maths).resolve().exists(), run_
        assert settings.encoders[run_.pixels].kind == "pixels" and f"mvtec-{run_.encoder}" in settings.extracts
    for extract in settings.extracts.values():
        assert (place / extract.code).resolve().exists(), extract


def test_each_file_is_small_enough_for_one_lock_and_names_only_its_own_data(written):
    settings = params.load(written / "params.yaml")
    assert 2 + len(settings.extracts) <= 60 and 2 * len(settings.runs) + 4 <= 110
    for file in ("dvc.yaml", "runs/dvc.yaml"):
        text = (written / file).read_text()
        assert "solar" not in text and "/parts" not in text
        for stage in load(written / file)["stages"].values():
            deps = stage.get("do", stage)["deps"]
            assert all(not dep.startswith("stages/") for dep in deps) and len(deps) == len(set(deps))


def test_the_page_and_the_tracker_read_every_folder_of_results(written):
    """Also those that belong to no data set, which keep their names."""
    stages = load(written / "runs/dvc.yaml")["stages"]
    assert {"metrics/mvtec", "metrics/bench", "metrics/ensemble"} <= set(stages["report"]["deps"])
    assert {"metrics/mvtec", "metrics/ensemble", "models/mvtec"} <= set(stages["track"]["deps"])


def test_the_same_call_writes_the_same_bytes(written, tmp_path):
    before = {path: path.read_bytes() for path in written.rglob("*.yaml")}
    pipelines.write("mvtec", "../../datasets/mvtec", "mvtec", "full", tmp_path)
    assert before == {path: path.read_bytes() for path in written.rglob("*.yaml")}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("a.b", "/x", "mvtec", "full"), "cannot name a pipeline"),
        (("records", "/x", "mvtec", "full"), "belongs to the default run"),
        (("ab", "/x", "mvtek", "full"), "did you mean 'mvtec'"),
        (("ab", "/x", "mvtec", "quik"), "did you mean 'quick'"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(written, tmp_path, asked, said):
    with pytest.raises(ParamsError, match=said):
        pipelines.write(*asked, tmp_path)
    assert [path.name for path in written.parent.iterdir()] == ["mvtec"]


def test_the_commands_of_docs_datasets_run_as_they_stand(root, tmp_path, assay):
    """`dvc repro` itself is run below, on a smaller pipeline; here the stages that it is asked for are those that were written."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, tmp_path)
    for name in ("panels", "strips"):
        photograph(tmp_path / "photos" / name)
    code = "".join(re.findall(r"^```\w*\n(.*?)^```", (root / "docs/datasets.md").read_text(), re.DOTALL | re.MULTILINE))
    lines = [shlex.split(line, comments=True) for line in code.splitlines() if line.startswith(("assay ", "dvc "))]
    assert len(lines) == 5
    for program, verb, *arguments in lines:
        if program == "assay":
            status, said, complaint = assay(verb, *arguments)
            assert status == 0 and said, complaint
            continue
        [file, *stage] = arguments[0].split(":")
        stages, runs = load(tmp_path / file)["stages"], params.load(tmp_path / "pipelines/mvtec/params.yaml").runs
        assert all(verb in stages and run in runs for verb, run in (name.split("@") for name in stage))
    assert {"panels", "strips"} <= set(params.load(tmp_path / "params.yaml").datasets)


@pytest.mark.slow
def test_dvc_runs_one_of_its_models_from_raw_images_to_metrics(tmp_path):
    folder = start(tmp_path / "project")
    done = run(folder, "python", "-m", "stages.serving.cli", "pipeline", "big", "../../photos", "--adapter", "folder", "--schedule", "quick")
    assert done.returncode == 0 and "dvc repro pipelines/big/runs/dvc.yaml" in done.stdout, done.stderr
    done = run(folder, "dvc", "repro", "pipelines/big/runs/dvc.yaml:evaluate@big-trivial", "pipelines/big/runs/dvc.yaml:evaluate@big-padim")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "prepare@big" in done.stdout and "extract@big-pixels-256" in done.stdout
    result = load(folder / "pipelines/big/metrics/big/trivial.json")
    assert result["rows"]["mean-image"]["mean"]["image_auroc"]["value"] is not None
    assert "wide_resnet50_2" in load(folder / "pipelines/big/metrics/big/padim.json")["refused"]  # no weights: a row with its reason
    again = run(folder, "dvc", "repro", "pipelines/big/runs/dvc.yaml:evaluate@big-trivial")
    assert "Running stage" not in again.stdout
