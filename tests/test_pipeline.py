"""The verbs one after another on a dozen images, in this process: from photos to a leaderboard."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.projects import run, tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project that has been through every verb but track."""
    folder = tiny_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, *arguments in (
            ["prepare", "tiny"], ["extract", "tiny", "pixels"], ["extract", "tiny", "net"], ["manifest", "tiny"],
            ["train", "tiny-patchcore"], ["train", "tiny-padim"], ["train", "tiny-trivial"],
            ["evaluate", "tiny-patchcore"], ["evaluate", "tiny-padim"], ["evaluate", "tiny-trivial"],
            ["bench", "tiny"], ["report"],
        ):  # fmt: skip
            assert not importlib.import_module(f"stages.{verb}").main(*arguments), verb
    return folder


def result(project: Path, model: str) -> dict:
    return json.loads((project / "metrics/tiny" / f"{model}.json").read_text())


@pytest.mark.parametrize("model", ["patchcore", "padim"])
def test_a_bright_square_is_found_and_located(project, model):
    mean = result(project, model)["mean"]
    assert mean["image_auroc"]["value"] == 1.0
    assert mean["pixel_auroc"]["value"] > 0.7 and mean["aupro"]["value"] > 0.25  # a random encoder on an 8 x 8 grid; chance is .5 and .15


def test_metrics_keep_their_names_and_their_bounds(project):
    names = ["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_005"]
    for model in ("patchcore", "padim"):
        cells = result(project, model)["categories"]["photos"]
        assert list(cells)[:8] == names
        assert all(0 <= cells[name]["low"] <= cells[name]["value"] <= cells[name]["high"] <= 1 for name in names)


def test_a_group_has_a_row_for_each_of_its_models(project):
    rows = result(project, "trivial")["rows"]
    assert list(rows) == ["mean-image", "random-score"]
    assert rows["mean-image"]["mean"]["image_auroc"]["value"] == 1.0
    assert rows["random-score"]["weights"] == "none"


def test_thresholds_come_from_every_good_training_image_and_promise_no_more_than_they_can(project):
    stored = json.loads((project / "metrics/tiny/patchcore/thresholds.json").read_text())["photos"]
    conformal = stored["thresholds"]["conformal"]
    assert conformal["achieved"]["n_normal"] == 12  # 10 out of fold, 2 of val
    assert conformal["achieved"]["smallest_reachable_rate"] == pytest.approx(1 / 13) and "cannot promise less than" in conformal["note"]
    assert stored["thresholds"]["f1_percentile"]["value"] is None and "E401" in stored["thresholds"]["f1_percentile"]["reason"]
    assert len(stored["suspicious_training_images"]) == 10


def test_the_files_that_people_know_by_name_are_there(project):
    folder = project / "metrics/tiny/patchcore"
    for name in (
        "summary_metrics.csv",
        "summary_metrics_pretty.csv",
        "summary_metrics_pretty.md",
        "photos/metrics.csv",
        "photos/thresholds.txt",
    ):
        assert (folder / name).read_text().count("\n") >= 2, name
    assert "RANDOM WEIGHTS" not in (folder / "summary_metrics_pretty.md").read_text()
    assert len(list((folder / "photos/overlays").glob("*.png"))) == 8


def test_predictions_hold_every_image_once_a_seed_and_training_images_out_of_fold(project):
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(project / "metrics/tiny/patchcore/predictions.parquet").to_pylist()
    count = {split: sum(row["split"] == split for row in rows) for split in ("train", "val", "test")}
    assert count == {"train": 10, "val": 2 * 2, "test": 8 * 2}


def test_random_weights_are_named_in_every_table_they_touch(project, monkeypatch):
    from stages import params
    from stages.serving import leaderboard

    monkeypatch.chdir(project)
    printed = leaderboard.render(leaderboard.leaderboard(params.load()), width=300)
    lines = {line.split("│")[2].strip(): line for line in printed.splitlines() if line.count("│") > 3}
    assert "patchcore RANDOM WEIGHTS" in lines and "mean-image" in lines
    page = (project / "metrics/report/index.html").read_text()
    assert page.count("RANDOM WEIGHTS") == 2


def test_the_curves_that_dvc_plots_run_from_corner_to_corner(project):
    import csv

    with (project / "metrics/report/roc.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "random-score"]
    assert {row["category"] for row in rows} == {"tiny photos"}
    ends = [(float(row["false_alarm_rate"]), float(row["recall"])) for row in (rows[0], rows[-1])]
    assert ends == [(0, 0), (1, 1)] and [int(row["place"]) for row in rows] == list(range(len(rows)))


def test_the_leaderboard_command_prints_json_with_the_same_figures(project, monkeypatch, capsys):
    from stages.serving import cli

    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "argv", ["assay", "leaderboard", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    rows = json.loads(capsys.readouterr().out)["tiny"]
    assert end.value.code == 0 and [row["rank"] for row in rows] == [1, 2, 3, 4]
    mean = {row["model"]: row["metrics"]["image_auroc"] for row in rows}
    assert mean["padim"] == result(project, "padim")["mean"]["image_auroc"]


def test_a_live_image_scores_as_its_stored_features_did(project, monkeypatch):
    import numpy as np
    import pyarrow.parquet

    from stages.datasets.images import read_image
    from stages.detectors import artefact
    from stages.serving.pipeline import Pipeline

    monkeypatch.chdir(project)
    rows = pyarrow.parquet.read_table("metrics/tiny/patchcore/predictions.parquet").to_pylist()
    stored = {row["sample_id"]: row["image_score"] for row in rows if row["split"] == "test" and row["seed"] == 0}
    pipeline = Pipeline.load(artefact.folder("tiny", "patchcore", "patchcore", "photos", 0), "cpu", 1, Path("backbones"))
    live = {
        name: float(pipeline([read_image(Path("photos/test/square") / f"{name[-3:]}.png")]).image_score)
        for name in stored
        if "square" in name
    }
    assert len(live) == 4
    assert np.allclose([stored[name] for name in live], list(live.values()), rtol=1e-5)


def test_absent_weights_become_a_row_with_the_reason(tmp_path, monkeypatch, capsys):
    folder = tiny_project(tmp_path)
    text = (folder / "params.yaml").read_text()
    text = text.replace("backbone: tf_efficientnet_lite0\n    weights: random", "backbone: resnet18\n    weights: resnet18.tv_in1k")
    (folder / "params.yaml").write_text(text)
    monkeypatch.chdir(folder)
    for verb, *arguments in (
        ["prepare", "tiny"], ["extract", "tiny", "pixels"], ["extract", "tiny", "net"], ["manifest", "tiny"],
        ["train", "tiny-patchcore"], ["evaluate", "tiny-patchcore"],
    ):  # fmt: skip
        assert not importlib.import_module(f"stages.{verb}").main(*arguments), verb
    refused = result(folder, "patchcore")["refused"]
    assert refused.startswith("E101") and "resnet18.tv_in1k.safetensors" in refused and "assay weights pack" in refused


def test_a_student_of_another_network_than_its_teacher_is_refused(project, tmp_path, monkeypatch):
    import shutil

    from stages.params import ParamsError, load
    from stages.train import fit

    folder = shutil.copytree(project, tmp_path / "project")
    text = (folder / "params.yaml").read_text()
    student = "  padim:\n    detector: distillation.stfpm\n    backbone: resnet18\n    steps: 1\n"
    (folder / "params.yaml").write_text(text.replace("  padim:\n    detector: density.padim\n    channels: 5\n", student))
    monkeypatch.chdir(folder)
    with pytest.raises(ParamsError, match="models.padim.backbone is resnet18, but encoders.net.backbone is tf_efficientnet_lite0"):
        fit(load(), "tiny-padim", "padim", "photos", 0)


def test_a_misspelt_option_is_one_line_and_exit_code_1(project, tmp_path):
    import shutil

    folder = shutil.copytree(project, tmp_path / "project")
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("    channels: 5\n", "    chanels: 5\n"))
    done = run(folder, "python", "-m", "stages.train", "tiny-padim")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "chanels" in done.stderr and "did you mean 'channels'" in done.stderr


def test_one_training_image_gives_a_model_without_out_of_fold_scores(project, tmp_path, monkeypatch, capsys):
    """Nothing can be held out, so validation images speak alone; that is said and is no failure."""
    import shutil

    from stages import evaluate, train

    folder = shutil.copytree(project, tmp_path / "project")
    manifest = json.loads((folder / "data/tiny/manifest.json").read_text())
    kept = next(sample for sample in manifest["samples"] if sample["split"] == "train")
    manifest["samples"] = [sample for sample in manifest["samples"] if sample["split"] != "train" or sample == kept]
    (folder / "data/tiny/manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(folder)
    shutil.rmtree("models/tiny/patchcore")
    assert train.main("tiny-patchcore") == 0 and evaluate.main("tiny-patchcore") == 0
    assert "no out-of-fold scores. out-of-fold scores need at least 2 groups of training images, got 1" in capsys.readouterr().out
    stored = json.loads((folder / "metrics/tiny/patchcore/thresholds.json").read_text())["photos"]
    assert stored["thresholds"]["conformal"]["achieved"]["n_normal"] == 2 and stored["suspicious_training_images"] == []


def test_a_train_stage_on_stored_features_imports_torch_and_little_else(project):
    """timm, mlflow, matplotlib, scikit-learn and torchvision would each cost it seconds."""
    code = (
        "import sys; from stages import train; train.main('tiny-padim'); "
        "print([name for name in ('timm', 'torchvision', 'mlflow', 'matplotlib', 'sklearn', 'transformers', 'onnxruntime') "
        "if name in sys.modules])"
    )
    done = run(project, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
