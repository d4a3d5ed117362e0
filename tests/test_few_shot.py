"""k-shot runs through the verbs: no more than k images are learnt from, the same for every model."""

import importlib
from pathlib import Path

import pytest

from stages import io, params
from stages.datasets.shots import references
from stages.detectors import artefact
from stages.types import Batches
from tests.projects import tiny_project

FEW = """\
  few:
    detector: few_shot.anomalydino
    label: 3-shot
    shots: 3
    layers:
      - layer2
  bank:
    detector: memory_bank.patchcore
    label: 3-shot
    shots: 3
    coreset_ratio: 0.5
  starved:
    detector: memory_bank.patchcore
    shots: 500
runs:
"""
RUN = """\
  tiny-{model}:
    dataset: tiny
    model: {model}
    encoder: net
    pixels: pixels
    code: stages/detectors/few_shot/anomalydino.py
    maths: stages/detectors/few_shot/anomalydino.py
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tiny_project(tmp_path_factory.mktemp("few"))
    text = (folder / "params.yaml").read_text()
    runs = "".join(RUN.format(model=model) for model in ("few", "bank", "starved"))
    (folder / "params.yaml").write_text(text.replace("runs:\n", FEW + runs, 1))
    seen: list[tuple[str, list[str], bool]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb in ("prepare tiny", "extract tiny pixels", "extract tiny net", "manifest tiny"):
            name, *arguments = verb.split()
            assert not importlib.import_module(f"stages.{name}").main(*arguments)
        for module, name in (("few_shot.anomalydino", "AnomalyDINO"), ("memory_bank.patchcore", "PatchCore")):
            detector = getattr(importlib.import_module(f"stages.detectors.{module}"), name)
            patch.setattr(detector, "fit", _watched(detector.fit, seen))
        for model in ("few", "bank", "starved"):
            assert not importlib.import_module("stages.train").main(f"tiny-{model}")
            assert not importlib.import_module("stages.evaluate").main(f"tiny-{model}")
    return folder, seen


def _watched(fit, seen):
    def watched(self, train: Batches, val, run):
        seen.append((type(self).__name__, [name for batch in train for name in batch.sample_id], val is None))
        return fit(self, train, val, run)

    return watched


def test_every_model_learns_from_the_same_three_images_and_sees_no_others(project, monkeypatch):
    folder, seen = project
    monkeypatch.chdir(folder)
    train = [row for row in io.read_json(Path("data/tiny/manifest.json"))["samples"] if row["split"] == "train"]
    seeds = params.load().protocol.seeds
    drawn = [[row["sample_id"] for row in references(train, 3, seed)] for seed in seeds]
    assert drawn[0] != drawn[1] and all(len(names) == 3 for names in drawn)
    for detector in ("AnomalyDINO", "PatchCore"):  # one fit a seed, none for folds, and no held-out images to look at
        assert [(names, alone) for name, names, alone in seen if name == detector] == [(names, True) for names in drawn]


def test_the_rows_say_so_and_the_thresholds_are_those_of_held_out_images(project):
    folder, _ = project
    result = io.read_json(folder / "metrics/tiny/few.json")
    assert result["label"] == "3-shot" and result["mean"]["image_auroc"]["value"] > 0.9
    assert not list((folder / "models/tiny/few").rglob("out_of_fold.parquet"))
    promised = io.read_json(folder / "metrics/tiny/few/thresholds.json")["photos"]["thresholds"]["conformal"]
    assert promised["achieved"]["n_normal"] == 2  # those of val


def test_more_shots_than_there_are_images_is_a_row_with_its_reason(project):
    folder, _ = project
    assert "500 normal images are asked for, photos has 10" in io.read_json(folder / "metrics/tiny/starved.json")["refused"]
    place = folder / artefact.folder("tiny", "starved", "starved", "photos", 0)
    assert artefact.refusal(place)
