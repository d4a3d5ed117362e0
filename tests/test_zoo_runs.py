"""Models that ask more of the verbs than one category and its own images: one model for all categories, and auxiliary images."""

import importlib
import shutil

import pytest
from ruamel.yaml import YAML

from stages import io, params
from stages.serving.predict import predict
from stages.serving.reference import choose
from tests.projects import photograph, tiny_project

pytestmark = pytest.mark.slow
MODELS = {
    "dinomaly": {
        "detector": "distillation.dinomaly", "layers": ["layer3"], "extra": [], "head_width": 8, "depth": 2, "steps": 6, "batch_size": 4,
        "warmup": 1, "easy_steps": 2, "multi_class": True,
    },
    "draem": {"detector": "reconstruction.draem", "width": 4, "marking_width": 4, "levels": 3, "steps": 2, "batch_size": 2},
}  # fmt: skip
ENCODER = {"dinomaly": "net", "draem": "pixels"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tiny_project(tmp_path_factory.mktemp("project"))
    shutil.rmtree(folder / "photos")
    for category in ("bolt", "nut"):
        photograph(folder / "photos" / category, normal=8, anomalous=2)
    yaml = YAML(typ="safe")
    content = yaml.load(folder / "params.yaml")
    content["protocol"]["seeds"] = [0]
    content["models"] |= MODELS
    for model, entry in MODELS.items():
        code = f"stages/detectors/{entry['detector'].replace('.', '/')}.py"
        run = {"dataset": "tiny", "model": model, "encoder": ENCODER[model], "pixels": "pixels", "code": code, "maths": code}
        content["runs"][f"tiny-{model}"] = run
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(content, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, *arguments in (
            ["prepare", "tiny"], ["extract", "tiny", "pixels"], ["extract", "tiny", "net"], ["manifest", "tiny"],
            ["train", "tiny-dinomaly"], ["evaluate", "tiny-dinomaly"], ["train", "tiny-draem"], ["evaluate", "tiny-draem"], ["bench", "tiny"],
        ):  # fmt: skip
            assert not importlib.import_module(f"stages.{verb}").main(*arguments), verb
    return folder


def test_one_model_serves_all_categories_and_each_is_judged(project, monkeypatch):
    monkeypatch.chdir(project)
    places = sorted(path.parent for path in (project / "models/tiny/dinomaly").rglob("model.safetensors"))
    assert [place.relative_to(project / "models/tiny/dinomaly").as_posix() for place in places] == ["_every/seed0"]
    assert set(io.read_json(project / "metrics/tiny/dinomaly.json")["categories"]) == {"bolt", "nut"}
    for category in ("bolt", "nut"):
        chosen = choose(params.load(), dataset="tiny", category=category, model="dinomaly")
        assert chosen.place == places[0].relative_to(project)
        [verdict] = predict(params.load(), chosen, [project / f"photos/{category}/test/good/000.png"])
        assert verdict.image_score is not None and verdict.category == category


def test_it_learns_from_the_images_of_all_categories(project):
    """Its data hash is that of both categories' samples together, so an image more in either is another model."""
    config = io.read_json(project / "models/tiny/dinomaly/_every/seed0/config.json")
    samples = [one for one in io.read_json(project / "data/tiny/manifest.json")["samples"] if one["split"] in ("train", "val")]
    assert {one["category"] for one in samples} == {"bolt", "nut"}
    ordered = [one for split in ("train", "val") for one in samples if one["split"] == split]
    assert config["data"] == io.content_hash(ordered)


def test_auxiliary_images_are_named_in_the_model_and_in_its_result(project):
    used = {"textures": "generated textures (128 images, seed 0) and scikit-image's photographs (15 images)"}
    for category in ("bolt", "nut"):
        assert io.read_json(project / f"models/tiny/draem/{category}/seed0/config.json")["auxiliary"] == used
    assert io.read_json(project / "metrics/tiny/draem.json")["auxiliary"] == used
    assert "auxiliary" not in io.read_json(project / "metrics/tiny/dinomaly.json")


def test_the_bench_measures_both(project):
    measured = io.read_json(project / "metrics/bench/tiny.json")["models"]
    assert measured["dinomaly"]["parameters"] > 0 and measured["draem"]["latency_ms_p50"] > 0


def test_a_run_that_is_named_is_measured_alone_and_the_others_keep_their_figures(project, monkeypatch):
    monkeypatch.chdir(project)
    path = project / "metrics/bench/tiny.json"
    before = io.read_json(path)["models"]
    importlib.import_module("stages.bench").main("tiny", "tiny-draem")
    after = io.read_json(path)["models"]
    assert after["dinomaly"] == before["dinomaly"] and after["draem"] != before["draem"] and after["draem"]["batch"] == 16
