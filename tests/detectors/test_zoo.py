"""The table of configurations: exactly those that were asked for, each of which can be built, with every schedule."""

import pytest

from stages import detectors
from stages.detectors import zoo
from stages.encoders import weights
from stages.encoders.clip import architecture
from stages.params import ParamsError

NAMES = """padim padim-resnet18 patchcore patchcore-resnet18 patchcore-320 dfkde dfkde-resnet18 cflow-resnet18 cflow-resnet50 fastflow-resnet50 fastflow-cait
fastflow-deit csflow csflow-768 uflow-resnet50 uflow-mcait stfpm stfpm-resnet18 fre fre-wide-resnet50 reverse-distillation reverse-distillation-resnet18
efficientad-small efficientad-medium autoencoder ganomaly draem dsr dfm dfm-resnet18 cfa cfa-resnet18 dinomaly-small-224 dinomaly-small-392
dinomaly-small-448 dinomaly-base-224 dinomaly-base-392 dinomaly-base-448 dinomaly-large-224 dinomaly-large-392 dinomaly-large-448 supersimplenet
supersimplenet-supervised uninet""".split()


def test_the_forty_four_configurations_are_there_in_order():
    assert len(NAMES) == 44 and zoo.names() == NAMES


def test_the_twenty_detectors_are_methods_of_the_six_categories():
    methods = {name: method for name, method in zoo.zoo().methods.items() if method.category != "few_shot"}
    assert len(methods) == 20 and set(methods) == {name for name in detectors.known() if not name.startswith(("trivial.", "few_shot.", "zero_shot."))}
    assert {method.category for method in methods.values()} == {
        "memory",
        "flow",
        "distillation",
        "reconstruction",
        "adaptation",
        "foundation",
    }
    assert {zoo.find(name)[1].detector for name in zoo.names()} == set(methods)


def test_every_detector_for_few_images_or_none_has_configurations_beside_the_forty_four():
    found = {name: zoo.find(name)[1] for name in zoo.few_shot_names()}
    assert {one.detector for one in found.values()} == {name for name in detectors.known() if name.startswith(("few_shot.", "zero_shot."))}
    assert [found[f"{model}-{shots}shot"].shots for model in ("winclip", "afclip") for shots in (0, 1, 2, 4)] == [0, 1, 2, 4] * 2
    assert zoo.entries("winclip").model == {"detector": "zero_shot.winclip", "label": "0-shot", "shots": 0}
    assert zoo.entries("anomalydino-4shot", "cpu").model["label"] == "4-shot, cpu" and zoo.entries("winclip-4shot", "cpu").model["label"] == "4-shot"


def test_every_clip_of_the_configurations_gives_the_layers_that_its_detector_reads():
    for name in zoo.few_shot_names():
        entries = zoo.entries(name)
        options = {key: value for key, value in entries.model.items() if key not in ("detector", "label", "shots")}
        needs = detectors.build(entries.model["detector"], options, at=("models", name)).needs
        assert set(needs.layers) <= set(entries.encoder["layers"]), name
        if entries.encoder["kind"] == "clip":
            assert weights.lock()[entries.encoder["weights"]].clip == entries.encoder["backbone"], name
            assert entries.encoder["image_size"] % architecture(entries.encoder["backbone"])["vision_cfg"]["patch_size"] == 0, name


def test_aliases_lead_to_one_configuration_and_are_not_counted():
    known = zoo.aliases()
    assert {name: known[name] for name in ("cflow", "efficientad", "fastflow", "uflow", "dinomaly")} == {
        "cflow": "cflow-resnet50", "efficientad": "efficientad-small", "fastflow": "fastflow-resnet50", "uflow": "uflow-mcait",
        "dinomaly": "dinomaly-base-392",
    }  # fmt: skip
    assert zoo.find("fastflow-wide-resnet50")[0] == "fastflow-resnet50" and not set(known) & set(NAMES)
    with pytest.raises(ParamsError, match="did you mean 'cflow-resnet18'"):
        zoo.find("cflow-resnet-18")


@pytest.mark.parametrize("schedule", zoo.SCHEDULES)
@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_builds_a_detector_whose_encoder_gives_its_layers(name, schedule):
    entries = zoo.entries(name, schedule)
    options = {key: value for key, value in entries.model.items() if key not in ("detector", "label")}
    needs = detectors.build(entries.model["detector"], options, at=("models", name)).needs
    given = entries.encoder.get(
        "layers", [f"{part}.{layer}" for part, one in entries.encoder.get("parts", {}).items() for layer in one["layers"]]
    )
    assert set(needs.layers) <= set(given)
    if needs.backbone is not None:
        assert needs.backbone.split(".")[0] == entries.encoder["backbone"]
    assert entries.pixels == {"kind": "pixels", "image_size": entries.encoder["image_size"]}


@pytest.mark.parametrize("name", NAMES)
def test_the_cpu_schedule_is_small_and_needs_nothing_that_is_not_built_in(name):
    entries = zoo.entries(name, "cpu")
    assert entries.encoder["image_size"] <= 128 and zoo.weights_of(entries.encoder) in ([], ["efficientnet-lite0"])
    assert entries.model["label"] == "cpu" and entries.model.get("steps", 0) <= 300
    known = detectors.load(entries.model["detector"]).__init__.__kwdefaults__
    assert ("steps" in known) == ("steps" in entries.model)


def test_the_seed_s_figures_are_those_of_quick():
    """A few rows of the table that the configurations come from."""
    for name, epochs, batch_size in (
        ("stfpm", 50, 16),
        ("fastflow-cait", 5, 4),
        ("dinomaly-large-448", 10, 4),
        ("draem", 10, 8),
        ("uninet", 20, 4),
    ):
        model = zoo.entries(name, "quick").model
        assert (model["epochs"], model["batch_size"], model["label"]) == (epochs, batch_size, "quick"), name
    assert zoo.entries("padim", "quick").model == zoo.entries("padim").model  # one pass has nothing to shorten
