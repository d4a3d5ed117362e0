"""Names of methods become the entries that params.yaml would hold."""

import pytest

from stages.params import ParamsError
from stages.serving import methods, workspace
from stages.serving.configuration import Configuration, Read

TEMPLATE, _ = workspace.template_of()


def planned(name: str, k_shot: int | None = 0, options: dict | None = None, **model) -> workspace.Plan:
    content = Configuration.model_validate({
        "experiment": {"name": "x", "output_root": "r"},
        "data": {"dataset": "mvtec", "root": "data/mvtec", "k_shot": k_shot},
        "model": {"name": name, **model},
    })  # fmt: skip
    return methods.plan(Read(content, options or {}, [workspace.CODE.parent / "configs/base.yaml"]), TEMPLATE)


def test_winclip_is_a_clip_with_windows_and_learns_from_no_image():
    plan = planned("winclip", backbone="ViT-B-16-plus-240", resolution=400)
    assert plan.entry == {"detector": "zero_shot.winclip", "shots": 0}
    assert plan.encoder_entry == {
        "kind": "clip", "image_size": 400, "backbone": "ViT-B-16-plus-240", "weights": "ViT-B-16-plus-240.laion400m_e31",
        "layers": ["image", "patches", "window2", "window3"],
    }  # fmt: skip
    assert plan.pixels_entry == {"kind": "pixels", "image_size": 400}


def test_options_of_the_method_decide_which_layers_the_encoder_gives():
    plan = planned("winclip", 4, {"scales": [2]}, weights="random")
    assert plan.entry == {"detector": "zero_shot.winclip", "scales": [2], "shots": 4}
    assert plan.encoder_entry["layers"] == ["image", "patches", "window2"] and plan.encoder_entry["weights"] == "random"


def test_patchcore_takes_all_images_for_null_and_refuses_none():
    plan = planned("patchcore", None, {"coreset_ratio": 0.01}, backbone="resnet18")
    assert plan.entry == {"detector": "memory_bank.patchcore", "coreset_ratio": 0.01}
    assert (plan.encoder_entry["weights"], plan.encoder_entry["layers"], plan.encoder_entry["image_size"]) == (
        "resnet18.tv_in1k", ["layer2", "layer3"], 224,
    )  # fmt: skip
    with pytest.raises(ParamsError, match=r"base.yaml:\d+ data.k_shot is 0, but patchcore learns from normal images"):
        planned("patchcore", 0)


def test_the_networks_of_openai_are_found_by_the_name_that_people_know():
    plan = planned("winclip", backbone="ViT-L-14-336", resolution=336)
    assert (plan.encoder_entry["backbone"], plan.encoder_entry["weights"]) == ("ViT-L-14-336-quickgelu", "ViT-L-14-336.openai")
    assert planned("winclip", backbone="ViT-L-14").encoder_entry["weights"] == "ViT-L-14.laion2b_s32b_b82k"
    assert planned("winclip", backbone="ViT-L-14", weights="ViT-L-14.openai").encoder_entry["backbone"] == "ViT-L-14-quickgelu"


def test_weights_of_another_network_and_backbones_without_any_are_errors():
    with pytest.raises(ParamsError, match=r"ViT-L-14.openai are weights of ViT-L-14-quickgelu, not of ViT-B-16-plus-240"):
        planned("winclip", weights="ViT-L-14.openai")
    with pytest.raises(ParamsError, match=r"no weights of 'ViT-B-16-plus-24' are known; .* did you mean 'ViT-B-16-plus-240'\?"):
        planned("winclip", backbone="ViT-B-16-plus-24")
    with pytest.raises(ParamsError, match=r"no weights of 'resnet18' are known"):
        planned("winclip", backbone="resnet18")


def test_any_other_model_comes_with_its_own_encoder():
    plan = planned("stfpm-resnet18", None, {"epochs": 3}, resolution=128)
    assert plan.entry["detector"] == "distillation.stfpm" and plan.entry["epochs"] == 3 and "shots" not in plan.entry
    assert (plan.encoder_entry["backbone"], plan.encoder_entry["image_size"], plan.pixels_entry["image_size"]) == ("resnet18", 128, 128)
    with pytest.raises(ParamsError, match="stfpm-resnet18 brings an encoder of its own"):
        planned("stfpm-resnet18", None, backbone="resnet50")


def test_configurations_for_few_images_take_the_number_that_is_asked_for():
    plan = planned("anomalydino-4shot", 2)
    assert (plan.entry["detector"], plan.entry["shots"], plan.entry["label"]) == ("few_shot.anomalydino", 2, "2-shot")
    assert planned("anomalydino-4shot", None).entry["shots"] == 4
    assert planned("musc", 0).entry["detector"] == "zero_shot.musc"


@pytest.mark.parametrize(("backbone", "blocks"), [
    ("ViT-L-14-336", [5, 11, 17, 23]), ("ViT-B-16", [2, 5, 8, 11]), ("TinyCLIP-ViT-8M-16-Text-3M", [1, 4, 7, 9]),
])  # fmt: skip
def test_afclip_reads_the_last_block_of_each_quarter_of_its_network(backbone, blocks):
    assert methods._quarters(backbone) == [f"block{number}" for number in blocks]


def test_afclip_and_its_tiny_sister_are_one_detector_on_two_networks():
    large, tiny = (planned(name, 0, {"checkpoint": "afclip-visa"}) for name in ("afclip", "afclip_tiny"))
    assert large.entry["detector"] == tiny.entry["detector"] == methods.AFCLIP and large.entry["checkpoint"] == "afclip-visa"
    assert (large.encoder_entry["backbone"], large.encoder_entry["image_size"]) == ("ViT-L-14-336-quickgelu", 518)
    assert (tiny.encoder_entry["backbone"], tiny.entry["layers"]) == (
        "TinyCLIP-ViT-8M-16-Text-3M",
        ["block1", "block4", "block7", "block9"],
    )
    assert {"block9", "block9_extra"} <= set(tiny.encoder_entry["layers"])
