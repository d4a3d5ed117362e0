"""`assay run`: a configuration goes through the pipeline and ends as the tree that it names, or in one line with nothing written."""

import csv
import json
import re
import sys

import pytest
from ruamel.yaml import YAML

from stages.encoders.weights import WeightsMissing
from stages.errors import Missing, UserError
from stages.params import ParamsError
from stages.serving import cli, experiment
from tests.projects import ROOT, photograph, run, tiny_project

PATCHCORE = {
    "experiment": {"name": "tiny", "output_root": "results/mvtec/patchcore"},
    "data": {"dataset": "mvtec", "root": "data/mvtec", "k_shot": None},
    "model": {"name": "patchcore", "device": "cpu", "backbone": "tf_efficientnet_lite0", "weights": "random", "resolution": 64},
    "evaluation": {"metrics": {"compute_pro": False}, "latency": {"warmup_iters": 2, "measure_iters": 3, "max_seconds": 20}},
    "visualization": {"num_examples": 3},
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tiny_project(tmp_path / "project")
    for category in ("bottle", "cap"):
        photograph(folder / "data/mvtec" / category)
    monkeypatch.chdir(folder)
    return folder


def configured(project, **sections):
    """PATCHCORE in a file, with keys of some sections replaced."""
    content = {section: keys | sections.get(section, {}) for section, keys in PATCHCORE.items()} | {
        section: keys for section, keys in sections.items() if section not in PATCHCORE
    }
    (project / "configs").mkdir(exist_ok=True)
    with (project / "configs/tiny.yaml").open("w") as file:
        YAML(typ="safe").dump(content, file)
    return project / "configs/tiny.yaml"


def untouched(project) -> bool:
    return not (project / "results").exists() and not (project / ".assay").exists()


def test_weights_that_are_absent_end_the_run_before_anything_is_written(project):
    path = configured(project, model={"backbone": "wide_resnet50_2", "weights": None})
    with pytest.raises(WeightsMissing, match=r"E101.*wide_resnet50_2.tv_in1k"):
        experiment.run(path)
    assert untouched(project)


@pytest.mark.parametrize("given", [None, "cuda", "cuda:0"])
def test_a_device_that_is_not_here_is_said_in_one_line_with_the_way_out(project, monkeypatch, given):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = configured(project, model={"device": "cuda"})
    with pytest.raises(ParamsError) as error:
        experiment.run(path, given)
    said = str(error.value)
    assert "torch finds no CUDA device here. Say --device cpu" in said and "\n" not in said and untouched(project)
    assert said.startswith("--device is" if given else f"{path}:")


@pytest.mark.parametrize(("given", "visible", "seen"), [
    ("cuda:1", None, ("cuda", {"CUDA_VISIBLE_DEVICES": "1"})), ("cuda:1", "5,7", ("cuda", {"CUDA_VISIBLE_DEVICES": "7"})),
    ("cuda", "5,7", ("cuda", {})), ("auto", None, ("auto", {})), ("cpu", None, ("cpu", {})),
])  # fmt: skip
def test_a_numbered_gpu_is_the_only_one_that_the_verbs_see(monkeypatch, given, visible, seen):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert experiment._device(None, given) == seen


@pytest.mark.parametrize("given", ["gpu", "cuda:", "cuda:x", "cpu:0", "auto:1"])
def test_a_device_of_no_known_name_is_an_error(given):
    with pytest.raises(ParamsError, match="--device must be auto, cpu, cuda or cuda:<number>"):
        experiment._device(None, given)


def test_a_gpu_beyond_the_last_is_an_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ParamsError, match="--device is cuda:2, but torch finds 2 CUDA devices here"):
        experiment._device(None, "cuda:2")


def test_data_that_are_not_there_are_named_with_the_key(project):
    with pytest.raises(Missing, match=r"tiny.yaml:\d+ data.root: data/visa is not here. Unpack the data set there"):
        experiment.run(configured(project, data={"root": "data/visa"}))
    assert untouched(project)


def test_only_methods_with_weights_of_their_own_can_be_trained(project, monkeypatch):
    monkeypatch.setattr(experiment.Work, "prepare", lambda self: pytest.fail("prepared"))
    with pytest.raises(ParamsError, match="only afclip and afclip_tiny have weights to train"):
        experiment.run(configured(project, training={"checkpoint": "x"}))
    assert untouched(project)


def test_the_command_ends_with_one_line_and_exit_code_1_for_a_mistake(project, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["assay", "run", str(configured(project, data={"k_shots": 1}))])
    monkeypatch.setenv("ASSAY_DEBUG", "")
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1 and "data.k_shots is not a known key; did you mean 'k_shot'?" in capsys.readouterr().err


def test_a_training_is_the_command_with_what_the_section_says(project, monkeypatch):
    """The verbs are not run: what they would be told is looked at."""
    ran = []
    monkeypatch.setattr(experiment.Work, "run", lambda self, *words: ran.append(words))
    training = experiment.Training(checkpoint="afclip-mvtec", epochs=2, learning_rate=0.001)
    work = experiment.Work(experiment.Workspace(project, "mvtec", [], {}))
    done = experiment._trained(training, 3, work, "clip-64", "cpu", project / "backbones")
    assert ran == [(
        "serving.cli", "train-afclip", "mvtec", "--encoder", "clip-64", "--name", "afclip-mvtec", "--epochs", "2",
        "--learning-rate", "0.001", "--seed", "3", "--device", "cpu",
    )]  # fmt: skip
    assert done.folder == project / "backbones" and "name it in model.checkpoint" in done.summary


@pytest.mark.slow
def test_a_run_ends_as_the_tree_and_a_second_one_of_its_name_replaces_it(project, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["assay", "run", str(configured(project)), "--json"])
    monkeypatch.setenv("ASSAY_DEBUG", "")
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    folder = project / "results/mvtec/patchcore/tiny"
    assert printed["folder"] == "results/mvtec/patchcore/tiny" and printed["mean"]["image_auroc"]["value"] == 1.0
    assert "RANDOM WEIGHTS" in printed["summary"] and "2 + 3 (batch 1), 2 + 3 (batch 16)\n" in printed["summary"]

    with (folder / "summary_metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == ["bottle", "cap", "mean"]
    assert {"image_auroc", "image_f1_max", "pixel_auroc", "pixel_f1_max"} <= set(rows[0]) and not {"aupro", "aupro_005"} & set(rows[0])
    assert "aupro" not in (folder / "bottle/metrics.csv").read_text() + (folder / "summary_metrics_pretty.md").read_text()
    assert len(list((folder / "cap/overlays").glob("*.png"))) == 3 and (folder / "summary_metrics_pretty.csv").is_file()

    latency = json.loads((folder / "latency.json").read_text())
    assert (latency["warmup_iters"], latency["measured_iters"], latency["vram_peak_mb"]) == (2, 3, None)
    assert min(latency[key] for key in ("latency_ms", "throughput_fps", "total_parameters", "flops")) > 0
    with (folder / "latency.csv").open() as file:
        assert {key: value or None for key, value in next(csv.DictReader(file)).items()} == {
            key: None if value is None else str(value) for key, value in latency.items()
        }
    about = json.loads((folder / "experiment.json").read_text())
    assert (
        about["weights"] == "random" and about["configuration"]["experiment"]["seed"] == 2025 and about["categories"] == ["bottle", "cap"]
    )

    (folder / "notes.txt").write_text("mine")
    again = experiment.run(configured(project, data={"categories": ["cap"], "k_shot": 4}, visualization={"save_overlay": False}))
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["cap"] and not (folder / "cap/overlays").exists()
    assert (folder / "notes.txt").read_text() == "mine" and "| bottle |" not in again.summary
    assert json.loads((folder / "experiment.json").read_text())["model"]["shots"] == 4


@pytest.mark.slow
def test_winclip_runs_from_its_configuration_without_seeing_a_good_image(project):
    about = {"name": "winclip", "backbone": "test-clip", "resolution": 64, "temperature": 0.1}
    done = experiment.run(configured(project, data={"k_shot": 0, "categories": ["cap"]}, model=about))
    fitted = json.loads(next((project / ".assay/projects").glob("*/models/mvtec/winclip/cap/seed2025/history.json")).read_text())
    assert fitted == [{"images": 0, "patches": 0}] and 0 <= done.mean["image_auroc"]["value"] <= 1
    assert done.latency["trainable_parameters"] == 0


@pytest.mark.slow
def test_the_data_set_and_the_method_of_the_docs_run_from_their_files_alone(project, monkeypatch):
    """Nothing is registered: the blocks of docs/configurations.md are written where the page says, and its experiment runs."""
    page = (ROOT / "docs/configurations.md").read_text()
    for place in ("stages/datasets/line.py", "stages/detectors/memory_bank/mean_patch.py", "configs/line_mean_patch.yaml"):
        block = re.search(rf"`{re.escape(place)}`:\n\n```(?:python|yaml)\n(.*?)```", page, re.DOTALL).group(1)
        (project / place).parent.mkdir(exist_ok=True)
        (project / place).write_text(block)
    (project / "data/line").mkdir()
    for kind, photos in (("ok", "train/good"), ("ng", "test/square")):
        for path in (project / "data/mvtec/bottle" / photos).iterdir():
            path.rename(project / "data/line" / f"{kind}_{path.name}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests/offline"))  # the code is the project's, not this checkout's
    done = run(project, "python", "-m", "stages.serving.cli", "run", "configs/line_mean_patch.yaml", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["mean"]["image_auroc"]["value"] == 1.0
    assert len(list((project / "results/line/mean_patch/first/line/overlays").glob("*.png"))) > 2


@pytest.mark.slow
def test_afclip_is_trained_from_one_configuration_and_judged_zero_shot_by_another_but_not_on_its_own_data(project):
    photograph(project / "data/nuts/nut", normal=6, anomalous=3)
    model = {"name": "afclip", "backbone": "test-clip", "resolution": 128}
    made = experiment.run(
        configured(project, data={"dataset": "nuts", "root": "data/nuts"}, model=model, training={"checkpoint": "afclip-nuts"})
    )
    assert made.folder == project / "backbones" and (made.folder / "afclip-nuts.safetensors").is_file()
    judged = model | {"checkpoint": "afclip-nuts"}
    done = experiment.run(configured(project, data={"k_shot": 0, "categories": ["cap"]}, model=judged))
    about = json.loads((done.folder / "experiment.json").read_text())
    assert 0 <= done.mean["image_auroc"]["value"] <= 1 and about["model"]["shots"] == 0 and "nuts" in json.dumps(about["auxiliary"])
    leaking = configured(project, experiment={"name": "leak"}, data={"dataset": "nuts", "root": "data/nuts", "k_shot": 0}, model=judged)
    with pytest.raises(UserError, match="nuts"):
        experiment.run(leaking)
    assert not done.folder.with_name("leak").exists()
