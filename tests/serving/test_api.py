"""`train` from Python is the pipeline: the same verbs, the same files, the same numbers."""

import inspect
import json

import pytest

from stages.serving import api, verbs
from tests.projects import photograph, run, tiny_project


def test_the_signatures_are_those_that_scripts_call():
    parameters = inspect.signature(api.set_globals).parameters
    assert list(parameters) == [
        "dataset_dir", "backbone_dir", "output_dir", "seed", "num_workers", "pin_memory", "persistent_workers", "show_globals",
    ]  # fmt: skip
    assert [parameters[name].default for name in list(parameters)[3:]] == [42, 8, True, True, True]
    assert list(inspect.signature(api.train).parameters) == [
        "dataset_type", "category", "model_type", "num_epochs", "batch_size", "img_size", "normalize", "schedule", "canvas", "overlap",
    ]  # fmt: skip
    assert list(inspect.signature(api.train_models).parameters)[:3] == ["dataset_type", "categories", "models"]


def test_globals_are_shown_with_what_has_no_effect(capsys, monkeypatch):
    monkeypatch.setattr(api, "_settings", api.Settings())
    api.set_globals("data", "weights", "out", seed=1)
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["seed"] == "1" and shown["dataset_dir"] == "data" and shown["pin_memory"] == "True (no effect)"
    api.set_globals("data", "weights", "out", show_globals=False)
    assert capsys.readouterr().out == "" and api._settings.seed == 42


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tiny_project(tmp_path / "project")
    for category in ("bottle", "cap"):
        photograph(tmp_path / "data/bottles" / category)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(api, "_settings", api.Settings())
    api.set_globals(tmp_path / "data", None, tmp_path / "outputs", seed=0, num_workers=1, show_globals=False)
    return folder


@pytest.mark.slow
def test_training_from_python_is_the_pipeline_and_writes_the_trees(project, tmp_path):
    [patchcore, brightness] = api.train("bottles", "bottle", ["patchcore", "mean-image"])
    assert patchcore.metrics["bottle"]["image_auroc"]["value"] == 1.0 and brightness.refused is None
    assert patchcore.outputs == [tmp_path / "outputs/bottles/bottle/patchcore"]
    assert (patchcore.outputs[0] / "model_bottles_bottle_patchcore_epochs-1.pth").is_file()
    assert (tmp_path / "results/bottles/mean-image/assay/bottle/metrics.csv").is_file()
    # the same by hand, verb by verb
    for line in ("prepare bottles", "extract bottles pixels", "manifest bottles", "train bottles-mean-image", "evaluate bottles-mean-image"):
        verb, *arguments = line.split()
        done = run(patchcore.project, "python", "-m", f"stages.{verb}", *arguments)
        assert done.returncode == 0, done.stderr
    again = json.loads((patchcore.project / "metrics/bottles/mean-image.json").read_text())
    assert again["categories"] == brightness.metrics


@pytest.mark.slow
def test_later_calls_share_what_is_stored_and_predict_finds_the_model(project, tmp_path, capsys):
    api.train_models("bottles", categories=["cap", "bottle"], models=["mean-image"])
    assert "images x" in capsys.readouterr().out
    [second] = api.train("bottles", ["bottle", "cap"], "brightness")
    assert "images x" not in capsys.readouterr().out and set(second.metrics) == {"bottle", "cap"}
    [verdict] = api.predict(tmp_path / "data/bottles/cap/test/square/000.png", "bottles", "cap", "mean-image", out=tmp_path / "pictures")
    assert (verdict.verdict, verdict.category, verdict.model) == ("anomalous", "cap", "mean-image") and verdict.overlay.endswith("000.png")


@pytest.mark.slow
def test_a_verb_that_fails_is_an_error_that_names_it(project, tmp_path, capfd):
    with pytest.raises(api.StageFailed, match="prepare bottles ended with exit code 1"):
        api.train("bottles", "lid", "mean-image")
    assert "no category 'lid'" in capfd.readouterr().err


@pytest.mark.slow
def test_a_model_that_crashes_lets_the_others_finish_and_fails_the_call(project, monkeypatch):
    plain = verbs.run

    def run(verb, *arguments, **options):
        return 2 if arguments == ("bottles-mean-image",) else plain(verb, *arguments, **options)

    monkeypatch.setattr(verbs, "run", run)
    with pytest.raises(api.StageFailed, match="train bottles-mean-image ended with exit code 2") as failure:
        api.train("bottles", "bottle", ["mean-image", "brightness"])
    assert [one.model for one in failure.value.trained] == ["brightness"]
