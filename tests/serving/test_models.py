"""`assay models`: what is known, what it needs, and the entries it becomes."""

import json
import shutil

from stages import params
from stages.detectors import zoo


def test_the_list_as_json_has_all_that_a_choice_needs(assay):
    code, out, _ = assay("models", "list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and list(rows) == [*zoo.names(), *zoo.few_shot_names()]
    padim = rows["padim"]
    assert (padim["family"], padim["category"], padim["paper"]) == ("density", "memory", "arXiv:2011.08785")
    assert (padim["backbone"], padim["image_size"], padim["layers"]) == ("wide_resnet50_2", 256, ["layer1", "layer2", "layer3"])
    assert padim["weights"] == [{"name": "wide_resnet50_2.tv_in1k", "present": False, "licence": "BSD-3-Clause"}]
    assert rows["stfpm"]["schedules"]["full"] == {"epochs": 100, "steps": None, "batch_size": 32, "learning_rate": 0.4, "patience": 20}
    assert rows["stfpm"]["schedules"]["cpu"]["encoder"] == "lite0-128" and "quick" not in rows["stfpm-resnet18"]["schedules"]
    assert rows["autoencoder"]["normalize"] is False and rows["autoencoder"]["weights"] == []
    assert rows["uflow-mcait"]["backbone"] == "cait_m48_448 + cait_s24_224" and rows["dinomaly-large-448"]["model_size"] == "large"


def test_the_layers_listed_are_those_that_the_detector_asks_for():
    from pathlib import Path

    from stages import detectors
    from stages.serving import models

    for name in ("dfm", "dinomaly-small-224", "autoencoder", "uflow-mcait", "cflow-resnet18"):
        _, configuration = zoo.find(name)
        needs = detectors.build(configuration.detector, configuration.options, at=("models", name)).needs
        assert models.described(name, Path("nowhere"))["layers"] == list(needs.layers), name


def test_weights_in_the_local_folder_are_here(assay, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w/resnet18.tv_in1k.safetensors").write_bytes(b"")
    _, out, _ = assay("models", "list", "--json", "--backbones", str(tmp_path / "w"))
    here = {row["name"] for row in json.loads(out) if row["weights"] and all(one["present"] for one in row["weights"])}
    assert "stfpm-resnet18" in here and "padim" not in here


def test_the_table_names_every_configuration_with_its_aliases(assay, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = assay("models", "list")
    assert code == 0 and all(name in out for name in zoo.names()) and "cflow-resnet50 (cflow)" in out


def test_the_page_of_models_is_what_the_files_say(root):
    """`assay models page > docs/models.md` makes it again."""
    from stages.serving import models

    written = (root / "docs/models.md").read_text()
    assert written == models.page()
    assert all(f"`{name}`" in written for name in zoo.names()) and written.count("\n## ") == 24


def test_show_answers_to_an_alias_with_its_entries(assay):
    code, out, _ = assay("models", "show", "dinomaly")
    shown = json.loads(out)
    assert code == 0 and shown["name"] == "dinomaly-base-392" and shown["entries"]["encoder_name"] == "dinov2-base-392"
    assert assay("models", "show", "dinomaly-base-393")[0] == 1


def test_add_writes_runs_that_params_yaml_understands(assay, root, tmp_path):
    shutil.copy(root / "params.yaml", tmp_path)
    code, out, _ = assay("models", "add", "cflow-resnet18", "autoencoder", "--dataset", "parts", "--schedule", "cpu")
    assert code == 0 and "parts-cflow-resnet18" in out and "next: dvc repro" in out
    settings = params.load(tmp_path / "params.yaml")
    run, pixels = settings.runs["parts-cflow-resnet18"], settings.runs["parts-autoencoder"]
    assert (run.encoder, run.pixels, pixels.encoder) == ("lite0-128", "pixels-128", "pixels-128")
    assert settings.extracts["parts-lite0-128"].reads == "features/parts/pixels-128"
    assert settings.extracts["parts-pixels-128"].reads == "data/parts/samples.parquet"
    assert settings.encoders["pixels-128"].image_size == settings.encoders["lite0-128"].image_size == 128
    assert settings.rows("cflow-resnet18")["cflow-resnet18"].label == "cpu" and (root / run.code).is_file() and (root / run.maths).exists()
    assert (
        (tmp_path / "params.yaml")
        .read_text()
        .startswith((root / "params.yaml").read_text().split("\nextracts:")[0].split("\nencoders:")[0])
    )


def test_a_name_that_the_project_has_already_is_refused(assay, root, tmp_path):
    shutil.copy(root / "params.yaml", tmp_path)
    code, _, err = assay("models", "add", "padim", "--dataset", "parts")
    assert code == 1 and "has a model or run of the name 'padim' already" in err
    assert "did you mean 'solar'" in assay("models", "add", "fre", "--dataset", "solr")[2]
    assert "did you mean 'quick'" in assay("models", "add", "fre", "--dataset", "solar", "--schedule", "quik")[2]
