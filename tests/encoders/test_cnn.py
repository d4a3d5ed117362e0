"""One network for every layer asked for: cut where it should be, normalised inside, frozen or trainable."""

import pytest
import torch
from torch import nn

from stages.encoders import cnn, weights
from stages.encoders.cnn import CNN
from stages.params import ParamsError

LITE = "tf_efficientnet_lite0"


def pixels(count=2, size=64, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_cnn(backbone="resnet18", layers=("layer1", "layer2"), **given):
    return CNN(backbone=backbone, layers=layers, weights="random", **given)


def hooked(backbone, modules, levels, seed=0):
    """The slow way: the whole timm network, its modules overheard."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = weights.timm().create_model(backbone, pretrained=False).eval()
    seen = {}
    for name in modules:
        network.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.clone()}))
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        network((levels.float() / 255 - mean) / std)
    return [seen[name] for name in modules]


@pytest.mark.parametrize(
    ("backbone", "modules"),
    [
        ("resnet18", ("layer1", "layer2", "layer3", "layer4")),
        (LITE, ("blocks.1", "blocks.2", "blocks.4", "blocks.6")),
        ("convnext_atto", ("stages.0", "stages.1", "stages.2", "stages.3")),
    ],
)
def test_canonical_layers_are_the_last_stage_of_strides_4_8_16_32_in_every_family(backbone, modules):
    levels = pixels(1)
    features = random_cnn(backbone, tuple(cnn.STRIDES))(levels)
    for (layer, stride), expected in zip(cnn.STRIDES.items(), hooked(backbone, modules, levels), strict=True):
        assert features[layer].shape[2:] == (64 // stride, 64 // stride)
        assert torch.equal(features[layer], expected)


def test_a_raw_module_name_is_a_layer_too_and_is_not_overwritten_by_an_in_place_activation():
    """In ResNet the ReLU `act1` works in place on what `bn1` gave."""
    levels = pixels(1)
    features = random_cnn(layers=("bn1", "layer1.0"))(levels)
    expected = hooked("resnet18", ("bn1", "layer1.0"), levels)
    assert torch.equal(features["bn1"], expected[0]) and torch.equal(features["layer1.0"], expected[1])
    assert features["bn1"].min() < 0


def test_nothing_after_the_last_layer_is_kept():
    shallow, deep = random_cnn(layers=("layer1",)), random_cnn(layers=("layer4", "layer1"))
    assert sum(p.numel() for p in shallow.parameters()) == 64 * 3 * 49 + 128 + 4 * (64 * 64 * 9 + 128)
    assert "chain.layer4.1.conv2.weight" in deep.state_dict() and not [key for key in deep.state_dict() if "fc" in key]


def test_levels_are_divided_by_255_and_normalised_with_the_backbones_own_mean_and_std():
    network = random_cnn(LITE, ("conv_stem",))
    white = network(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8))["conv_stem"]
    assert torch.equal(white, network.chain.conv_stem(torch.ones(1, 3, 32, 32)))  # (255/255 - 0.5) / 0.5
    assert random_cnn().mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_pretrained_lite0_differs_from_random_and_says_whose_weights_it_has(tmp_path):
    network = CNN(backbone=LITE, layers=("layer1",), weights="efficientnet-lite0", backbones=tmp_path)
    assert network.weights_identity["sha256"] == weights.lock()["efficientnet-lite0"].sha256
    assert random_cnn(LITE, ("layer1",), seed=3).weights_identity == {
        "name": "random",
        "seed": 3,
        "sha256": None,
        "licence": "none (random initialisation)",
    }
    stored = torch.load(weights.resolve("efficientnet-lite0", tmp_path).path, weights_only=True)
    assert torch.equal(network.chain.conv_stem.weight, stored["_conv_stem.weight"])


def test_the_seed_decides_random_weights_and_the_callers_random_state_is_left_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = (random_cnn(seed=seed)(pixels())["layer2"] for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_frozen_means_no_gradient_and_batch_statistics_that_never_move():
    network = random_cnn()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    nn.ModuleList([network]).train()
    features = network(pixels())
    assert not features["layer1"].requires_grad and not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_student_learns_and_moves_its_batch_statistics_in_training_alone():
    student = random_cnn(LITE, trainable=True, seed=1)
    before = student.chain.bn1.running_mean.clone()
    student(pixels())["layer2"].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    moved = student.chain.bn1.running_mean.clone()
    assert not torch.equal(moved, before)
    student.eval()(pixels())
    assert torch.equal(student.chain.bn1.running_mean, moved)


def test_a_student_with_its_teachers_state_is_its_teacher():
    """The identity STFPM rests on: equal weights give equal features."""
    teacher, student = random_cnn(seed=1), random_cnn(seed=2, trainable=True).eval()
    student.load_state_dict(teacher.state_dict())
    ours, theirs = student(pixels()), teacher(pixels())
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in theirs)


def test_an_image_has_the_same_features_alone_and_in_a_batch():
    network = random_cnn(LITE)
    batch = network(pixels(5))
    alone = [network(pixels(5)[position : position + 1]) for position in range(5)]
    for layer, value in batch.items():
        difference = torch.cat([one[layer] for one in alone]) - value
        assert difference.abs().max() <= 1e-5 * value.abs().max()


def test_wrong_names_are_refused_with_what_exists(tmp_path):
    with pytest.raises(ParamsError, match=r"no network 'resnet81'"):
        random_cnn("resnet81")
    with pytest.raises(ParamsError, match=r"no layer 'layer5'. Known: layer1, layer2, layer3, layer4"):
        random_cnn(layers=("layer5",))
    with pytest.raises(ParamsError, match="are for tf_efficientnet_lite0, but the encoder's backbone is resnet18"):
        CNN(backbone="resnet18", layers=("layer1",), weights="efficientnet-lite0", backbones=tmp_path)


def test_a_network_that_is_no_chain_of_its_children_is_refused_rather_than_cut_wrongly():
    with pytest.raises(ParamsError, match="selecsls42b is not a plain chain"):
        random_cnn("selecsls42b", ("layer1",))
