"""What a call from Python asks for is what stands in the params.yaml of its workspace."""

import os
from pathlib import Path

import pytest

from stages import params
from stages.params import ParamsError
from stages.serving import workspace
from stages.serving.workspace import Overrides, Settings, make, registry
from tests.projects import photograph


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    for category in ("cap", "bottle"):
        photograph(tmp_path / "data/bottles" / category)
    return Settings(tmp_path / "data", None, tmp_path / "out", seed=7, num_workers=64)


def written(settings: Settings, *models: str, dataset: str = "bottles", categories=None, **overrides) -> params.Params:
    return params.load(make(settings, dataset, categories, models, Overrides(**overrides)).folder / "params.yaml")


def test_seed_workers_and_folders_are_where_the_verbs_look_for_them(settings, root):
    found = written(settings, "patchcore", categories=["cap"])
    assert found.seeds(found.runs["bottles-patchcore"]) == [7] and found.protocol.split_seed == 7
    assert found.compute.processes == os.cpu_count()  # 64 were asked for
    assert (
        found.datasets["bottles"].source == (settings.dataset_dir / "bottles").as_posix() and found.datasets["bottles"].adapter == "mvtec"
    )
    assert found.datasets["bottles"].categories == ["cap"]
    assert found.backbones_folder == root / "backbones"
    assert written(settings._replace(num_workers=0, backbone_dir=Path("/weights")), "padim").backbones == "/weights"


def test_overrides_reach_the_parameters_of_the_detector(settings, capsys):
    found = written(settings, "stfpm", num_epochs=50, batch_size=8, img_size=128)
    options = found.rows("stfpm")["stfpm"].options
    assert (options["epochs"], options["steps"], options["batch_size"]) == (50, None, 8) and found.rows("stfpm")["stfpm"].label == ""
    assert {entry.image_size for entry in found.encoders.values()} == {128}
    assert capsys.readouterr().out == ""


def test_an_override_that_a_model_has_no_use_for_is_said(settings, capsys):
    before = written(settings, "padim").rows("padim")["padim"]
    assert written(settings, "padim", num_epochs=50).rows("padim")["padim"] == before
    assert "padim: num_epochs=50 changes nothing" in capsys.readouterr().out


def test_a_frozen_network_keeps_its_normalisation(settings):
    with pytest.raises(ParamsError, match="normalize=False: the encoder lite0 is a frozen network"):
        written(settings, "padim", normalize=False)
    written(settings, "padim", normalize=True)
    written(settings, "brightness", normalize=False)


def test_models_of_the_same_data_share_a_workspace_and_all_stay_in_it(settings):
    first, second = (
        make(settings, "bottles", None, ["padim"], Overrides()),
        make(settings, "bottles", None, ["patchcore", "brightness"], Overrides()),
    )
    assert (
        first.folder == second.folder
        and first.extracts == ["pixels", "lite0"]
        and list(second.runs) == ["bottles-patchcore", "bottles-brightness"]
    )
    found = params.load(second.folder / "params.yaml")
    assert sorted(found.runs) == ["bottles-brightness", "bottles-padim", "bottles-patchcore"]


def test_other_images_splits_or_sizes_start_afresh(settings):
    def folder(changed: Settings = settings, categories=None, **overrides) -> Path:
        return make(changed, "bottles", categories, ["padim"], Overrides(**overrides)).folder

    plain = folder()
    others = [folder(img_size=64), folder(categories=["cap"]), folder(settings._replace(seed=8))]
    photograph(settings.dataset_dir / "bottles/lid")
    others.append(folder())
    assert len({plain, *others}) == 5
    assert folder(batch_size=2) == others[-1] == folder(settings._replace(num_workers=1))


def test_rows_of_groups_configurations_and_detectors_without_either_are_models_too(settings, monkeypatch):
    from stages.detectors import zoo

    default = params.load(Path(workspace.CODE.parent, "params.yaml"))
    own = {row for model in default.models for row in default.rows(model)}
    assert {*own, *zoo.names()} == set(registry()) and "few-shot" not in registry()
    template, _ = workspace.template_of()
    template["models"]["trivial"]["rows"].pop("brightness")
    assert registry(template)[-1] == "brightness"  # found in its folder, as any new one will be


def test_a_configuration_brings_its_encoder_and_the_pixels_that_it_reads(settings):
    space = make(settings, "bottles", None, ["cflow-resnet18", "autoencoder", "padim"], Overrides(), "cpu")
    found = params.load(space.folder / "params.yaml")
    assert sorted(space.extracts[:2]) == ["pixels", "pixels-128"] and sorted(space.extracts[2:]) == ["lite0", "lite0-128"]
    run = found.runs["bottles-cflow-resnet18"]
    assert (run.encoder, run.pixels, found.extracts["bottles-lite0-128"].reads) == (
        "lite0-128",
        "pixels-128",
        "features/bottles/pixels-128",
    )
    assert found.runs["bottles-autoencoder"].encoder == "pixels-128" and found.runs["bottles-padim"].encoder == "lite0"
    assert found.rows("cflow-resnet18")["cflow-resnet18"].label == "cpu" and found.rows("padim")["padim"].label == ""


def test_a_canvas_gives_every_model_tiles_and_another_overlap_another_workspace(settings):
    def made(**tiles):
        return make(settings, "bottles", None, ["padim", "autoencoder", "mean-image"], Overrides(**tiles), "cpu")

    space = made(canvas=(300, 400), overlap=20)
    found = params.load(space.folder / "params.yaml")
    tiles = found.encoders["pixels-in-300x400"]
    assert (tiles.image_size, tiles.options) == (224, {"canvas": [300, 400], "overlap": 20})
    assert {found.runs[run].pixels for run in space.runs} == {"pixels-in-300x400", "pixels-128-in-300x400"}
    assert found.runs["bottles-autoencoder"].encoder == "pixels-128-in-300x400" and found.runs["bottles-padim"].encoder == "lite0"
    assert found.extracts["bottles-lite0"].reads == "features/bottles/pixels-in-300x400"
    assert len({made(canvas=(300, 400), overlap=20).folder, made(canvas=(300, 400), overlap=30).folder, made().folder, space.folder}) == 3


def test_another_image_size_reaches_every_part_of_a_configuration_s_encoder(settings):
    found = params.load(make(settings, "bottles", None, ["uflow"], Overrides(img_size=224)).folder / "params.yaml")
    parts = found.encoders["mcait-448"].options["parts"]
    assert found.encoders["mcait-448"].image_size == 224 and {name: part["image_size"] for name, part in parts.items()} == {
        "m48": 224,
        "s24": 112,
    }
    assert found.runs["bottles-uflow"].pixels == "pixels-224" and found.encoders["pixels-224"].image_size == 224


def test_a_model_that_no_run_uses_gets_the_first_encoder_that_fits(settings):
    template, _ = workspace.template_of()
    template["runs"] = {}
    assert workspace._encoder(template, "padim", {"detector": "density.padim", "channels": 5}) == "lite0"
    assert workspace._encoder(template, "brightness", {"detector": "trivial.brightness"}) == "pixels"
    with pytest.raises(ParamsError, match="needs layer7 of any backbone"):
        workspace._encoder(template, "padim", {"detector": "density.padim", "layers": ["layer7"]})


@pytest.mark.parametrize(
    ("asked", "said"), [({"dataset": "botles"}, "did you mean 'bottles'"), ({"models": ["patchcor"]}, "did you mean 'patchcore'")]
)
def test_unknown_names_are_answered_with_the_nearest(settings, asked, said):
    with pytest.raises(ParamsError, match=said):
        make(settings, asked.get("dataset", "bottles"), None, asked.get("models", ["padim"]), Overrides())
    assert not (settings.output_dir / ".assay").exists()


def test_without_dataset_dir_the_data_sets_of_params_yaml_are_known(settings, root):
    found = written(settings._replace(dataset_dir=None), "padim", dataset="parts")
    assert found.datasets["parts"].source == (root / "stages/datasets/scenes").as_posix() and found.datasets["parts"].adapter == "parts"
