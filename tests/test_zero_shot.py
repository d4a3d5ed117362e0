"""Zero-shot runs through the verbs, with the real architecture at small size and random weights: no training image is looked at."""

import importlib

import pytest
import torch

from stages import io, params
from stages.detectors import artefact
from stages.encoders.clip import CACHE
from stages.serving.pipeline import Pipeline
from tests.projects import SIZE, tiny_project

ENCODER = f"""\
  seen:
    kind: clip
    image_size: {SIZE}
    backbone: test-clip
    weights: random
    layers:
      - image
      - patches
      - window2
      - window3
extracts:
  tiny-seen:
    dataset: tiny
    encoder: seen
    reads: features/tiny/pixels
    code: stages/encoders/clip.py
"""
MODELS = """\
  winclip:
    detector: zero_shot.winclip
    label: 0-shot
    shots: 0
  winclip-plus:
    detector: zero_shot.winclip
    label: 3-shot
    shots: 3
  blind:
    detector: memory_bank.patchcore
    shots: 0
    layers:
      - patches
runs:
"""
RUN = """\
  tiny-{model}:
    dataset: tiny
    model: {model}
    encoder: {encoder}
    pixels: pixels
    code: stages/detectors/zero_shot
    maths: stages/detectors/zero_shot/maths
"""


def call(verb, *names):
    assert not importlib.import_module(f"stages.{verb}").main(*names)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tiny_project(tmp_path_factory.mktemp("zero"))
    text = (folder / "params.yaml").read_text()
    runs = "".join(RUN.format(model=model, encoder="seen") for model in ("winclip", "winclip-plus", "blind"))
    text = text.replace("extracts:\n", ENCODER, 1).replace("runs:\n", MODELS + runs, 1)
    (folder / "params.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb in ("prepare tiny", "extract tiny pixels", "extract tiny seen", "manifest tiny"):
            call(*verb.split())
        for model in ("winclip", "winclip-plus", "blind"):
            call("train", f"tiny-{model}")
            call("evaluate", f"tiny-{model}")
    return folder


def model_bytes(model):
    return {
        seed: (artefact.folder("tiny", model, model, "photos", seed) / "model.safetensors").read_bytes()
        for seed in params.load().protocol.seeds
    }


def test_all_seeds_of_zero_shots_are_one_model_and_few_shots_are_drawn(project, monkeypatch):
    monkeypatch.chdir(project)
    assert len(set(model_bytes("winclip").values())) == 1 < len(set(model_bytes("winclip-plus").values()))


def test_zero_shots_learn_the_same_where_there_is_no_training_image_at_all(project, monkeypatch):
    """Nothing of train or val is left in the manifest: the same bytes. With three shots there would be nothing to learn from."""
    monkeypatch.chdir(project)
    before = model_bytes("winclip")
    manifest = io.read_json(project / "data/tiny/manifest.json")
    bare = manifest | {"samples": [sample for sample in manifest["samples"] if sample["split"] == "test"]}
    try:
        io.write_json(project / "data/tiny/manifest.json", bare)
        call("train", "tiny-winclip")
        call("train", "tiny-winclip-plus")
        assert model_bytes("winclip") == before
        assert "3 normal images are asked for, photos has 0" in artefact.refusal(
            artefact.folder("tiny", "winclip-plus", "winclip-plus", "photos", 0)
        )
    finally:
        io.write_json(project / "data/tiny/manifest.json", manifest)


def test_a_model_that_needs_images_says_so_when_it_gets_none(project):
    assert "PatchCore cannot do without normal images: shots must be at least 1" in io.read_json(project / "metrics/tiny/blind.json")["refused"]


def test_rows_have_metrics_and_say_how_many_shots(project):
    for model, label in (("winclip", "0-shot"), ("winclip-plus", "3-shot")):
        result = io.read_json(project / f"metrics/tiny/{model}.json")
        assert (
            result["label"] == label
            and 0 <= result["mean"]["image_auroc"]["value"] <= 1
            and 0 <= result["mean"]["pixel_auroc"]["value"] <= 1
        )
        assert result["weights"] == "random"


def test_sentences_of_a_category_are_read_once_by_all_models(project):
    assert len(list((project / CACHE).iterdir())) == 1


def test_a_live_image_scores_as_its_stored_features_do(project, monkeypatch):
    monkeypatch.chdir(project)
    settings = params.load()
    place = artefact.folder("tiny", "winclip-plus", "winclip-plus", "photos", 0)
    pipeline = Pipeline.load(place, "cpu", 1, settings.backbones_folder)
    row = next(
        row
        for row in io.read_table(project / "metrics/tiny/winclip-plus/predictions.parquet")
        if row["split"] == "test" and row["seed"] == 0
    )
    sample = next(row_ for row_ in io.read_table(project / "data/tiny/samples.parquet") if row_["sample_id"] == row["sample_id"])
    from stages.datasets.images import read_image
    from stages.datasets.samples import root_of

    image = read_image(root_of(project / "data/tiny/dataset.json") / sample["image_path"])
    torch.testing.assert_close(pipeline([image]).image_score[0].item(), row["image_score"], atol=1e-6, rtol=1e-5)
