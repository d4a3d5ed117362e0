"""Vision transformers read out block by block: timm's own tokens, as maps, at any image size."""

import functools
import json

import pytest
import torch
from torch import nn

from stages.encoders import vit, weights
from stages.encoders.encoder import Encoder
from stages.encoders.vit import ViT, centre_crop, interpolate_positions
from stages.params import EncoderEntry, ParamsError

TINY = "test_vit.r160_in1k"  # 6 blocks of width 64 on patches of 16 px, one class token, native size 160
DINO, DEIT, CAIT = "vit_small_patch14_reg4_dinov2.lvd142m", "deit_tiny_distilled_patch16_224", "cait_xxs24_224"


def pixels(count=2, size=160, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make(backbone=TINY, layers=("block3",), image_size=160, **given):
    return ViT(backbone=backbone, layers=layers, weights="random", image_size=image_size, **given)


@functools.cache
def timm_network(backbone):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return weights.timm().create_model(backbone, pretrained=False).eval()


def overheard(backbone, blocks, levels):
    """The slow way: the whole timm network at its native size, its blocks overheard. (B, N, C) each, then what forward_features gives."""
    network, seen = timm_network(backbone), {}
    hooks = [network.blocks[block].register_forward_hook(lambda _m, _i, out, block=block: seen.update({block: out})) for block in blocks]
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        last = network.forward_features((levels.float() / 255 - mean) / std)
    for hook in hooks:
        hook.remove()
    return [seen[block] for block in blocks], last


def as_map(tokens, extra):
    """(B, P + n^2, C) -> (B, C, n, n), by a loop over rows and columns."""
    side = int((tokens.shape[1] - extra) ** 0.5)
    rows = [[tokens[:, extra + row * side + column] for column in range(side)] for row in range(side)]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


@pytest.mark.parametrize(("backbone", "size", "extra"), [(TINY, 160, 1), (DEIT, 224, 2), (CAIT, 224, 0)])
def test_at_the_native_size_the_maps_are_timms_tokens_row_by_row(backbone, size, extra):
    levels = pixels(1, size)
    features = make(backbone, ("block3", "block1"), size)(levels)
    (third, first), _ = overheard(backbone, (3, 1), levels)
    assert list(features) == ["block3", "block1"] and features["block3"].dtype == torch.float32
    assert torch.equal(features["block3"], as_map(third, extra)) and torch.equal(features["block1"], as_map(first, extra))


def test_blocks_are_counted_from_0_and_the_last_one_normed_is_what_forward_features_gives():
    levels = pixels()
    _, last = overheard(TINY, (), levels)
    features = make(layers=("block5", "block5_extra"), norm=True)(levels)
    torch.testing.assert_close(features["block5"], as_map(last, 1))
    torch.testing.assert_close(features["block5_extra"], last[:, :1].transpose(1, 2).unsqueeze(2))
    with pytest.raises(ParamsError, match=r"block6 asks for block 6 of test_vit.r160_in1k, which has blocks 0\.\.5"):
        make(layers=("block6",))


def test_norm_is_the_networks_own_and_acts_on_every_block():
    levels = pixels()
    (second,), _ = overheard(TINY, (2,), levels)
    expected = as_map(timm_network(TINY).norm(second).detach(), 1)
    assert torch.equal(make(layers=("block2",), norm=True)(levels)["block2"], expected)
    assert not torch.equal(make(layers=("block2",))(levels)["block2"], expected)


def test_norm_is_refused_where_a_network_has_none_behind_its_blocks():
    with pytest.raises(ParamsError, match="has no norm after its last block"):
        make("test_vit2.r160_in1k", norm=True)


def test_tokens_of_no_patch_are_a_layer_of_their_own_in_timms_order():
    """DeiT: class, distillation. DINOv2 with registers: class, then four of them, which have no position."""
    levels = pixels(1, 224)
    features = make(DEIT, ("block4", "block4_extra"), 224)(levels)
    (tokens,), _ = overheard(DEIT, (4,), levels)
    assert features["block4_extra"].shape == (1, 192, 1, 2) and features["block4"].shape == (1, 192, 14, 14)
    assert torch.equal(features["block4_extra"][0, :, 0, 1], tokens[0, 1])
    dino = make(DINO, ("block0_extra", "block0"), 28)(pixels(1, 28))
    assert dino["block0_extra"].shape == (1, 384, 1, 5) and dino["block0"].shape == (1, 384, 2, 2)
    with pytest.raises(ParamsError, match="no class or register tokens within its blocks, so there is no layer 'block3_extra'"):
        make(CAIT, ("block3_extra",), 224)


def test_a_group_is_the_mean_of_its_blocks_and_two_equal_groups_give_the_mean_of_all():
    """What Dinomaly's bottleneck needs: the mean of eight blocks is the mean of the two stored groups of four, extra tokens too."""
    levels = pixels()
    tokens, _ = overheard(TINY, (1, 2, 3, 4), levels)
    groups = {"early": [1, 2], "late": [3, 4]}
    features = make(layers=("early", "late", "early_extra", "late_extra"), groups=groups)(levels)
    torch.testing.assert_close(features["early"], as_map((tokens[0] + tokens[1]) / 2, 1))
    everything = torch.stack(tokens).mean(dim=0)
    torch.testing.assert_close((features["early"] + features["late"]) / 2, as_map(everything, 1))
    torch.testing.assert_close((features["early_extra"] + features["late_extra"])[:, :, 0, 0] / 2, everything[:, 0])


def test_nothing_behind_the_deepest_block_is_kept():
    names = [key for key in make(layers=("block2",)).state_dict() if key.startswith("network")]
    assert any(".blocks.2." in name for name in names)
    assert not [name for name in names if ".blocks.3." in name or "head" in name or ".norm." in name]
    assert not [name for name in make(CAIT, ("block2",), 224).state_dict() if "token_only" in name]


def cubic(distance):
    """Keys' kernel with a = -0.75."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def rows_of(native, grid, offset):
    """(grid, native) weights of plain bicubic interpolation along one axis, by its definition."""
    matrix = torch.zeros(grid, native, dtype=torch.float64)
    for cell in range(grid):
        place = (cell + 0.5) * native / (grid + offset) - 0.5
        for near in range(int(place // 1) - 1, int(place // 1) + 3):
            matrix[cell, min(max(near, 0), native - 1)] += cubic(place - near)
    return matrix


@pytest.mark.parametrize(("grid", "offset"), [(28, 0.1), (16, 0.1), (32, 0.1), (28, 0.0), (40, 0.0)])
def test_dinomaly_g_positions_are_interpolated_bicubically_without_antialiasing_and_with_dinov2s_offset(grid, offset):
    """From DINOv2's 37 x 37 to the grids of 224, 392 and 448 px, against the kernel written out."""
    native = 37
    positions = torch.randn(1, 1 + native**2, 4, generator=torch.Generator().manual_seed(1))
    got = interpolate_positions(positions, native, grid, offset)
    rows, plane = rows_of(native, grid, offset), positions[0, 1:].double().view(native, native, 4)
    expected = torch.einsum("ai,bj,ijc->abc", rows, rows, plane).flatten(0, 1)
    assert torch.equal(got[:, :1], positions[:, :1])
    torch.testing.assert_close(got[0, 1:].double(), expected, rtol=1e-3, atol=1e-4)


def test_at_the_native_grid_positions_stay_bit_for_bit_in_spite_of_an_offset():
    positions = torch.randn(1, 2 + 49, 3)
    assert interpolate_positions(positions, 7, 7, 0.1) is positions


def test_dinov2_has_the_offset_and_others_have_none():
    given = {"layers": ("block0",), "image_size": 56}
    free, offset, none = (make(DINO, **given, position_offset=value).network.pos_embed for value in (None, 0.1, 0.0))
    assert torch.equal(free, offset) and not torch.equal(free, none)
    assert torch.equal(make(image_size=64).network.pos_embed, make(image_size=64, position_offset=0.0).network.pos_embed)


def test_another_size_is_the_network_with_interpolated_positions_and_nothing_else():
    """Against timm told to take any size, with the positions put into it by hand."""
    levels = pixels(2, 96)
    network = weights.whole_network(TINY, "random", 0, None)[0]
    network.set_input_size((96, 96))
    network.pos_embed = nn.Parameter(interpolate_positions(timm_network(TINY).pos_embed.detach(), 10, 6, 0.0))
    seen = {}
    network.blocks[3].register_forward_hook(lambda _m, _i, out: seen.update(out=out))
    with torch.no_grad():
        network((levels.float() / 255 - 0.5) / 0.5)
    assert torch.equal(make(image_size=96)(levels)["block3"], as_map(seen["out"], 1))


def test_levels_are_normalised_with_the_backbones_own_mean_and_std():
    assert make().mean.flatten().tolist() == [0.5] * 3
    assert make(DINO, ("block0",), 28).std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_frozen_means_no_gradient_and_evaluation_mode_whatever_the_owner_does():
    network = make()
    nn.ModuleList([network]).train()
    assert not network.network.training and not any(parameter.requires_grad for parameter in network.parameters())
    assert not network(pixels())["block3"].requires_grad


def entry(kind="vit", image_size=160, **given):
    options = {"backbone": TINY, "weights": "random", "layers": ["early", "early_extra", "block4"], "groups": {"early": [1, 2]}, **given}
    return EncoderEntry(kind=kind, image_size=image_size, **options)


def encoder(tmp_path, **given):
    return Encoder.from_entry("net", entry(**given), "cpu", 1, tmp_path)


def test_onnx_runtime_agrees_with_torch_to_1e5_relative_for_any_batch(tmp_path):
    fast, plain = (encoder(tmp_path, image_size=96, runtime=runtime) for runtime in ("onnxruntime", "torch"))
    assert (fast.identity["runtime"], plain.identity["runtime"]) == ("onnxruntime", "torch") and fast.identity["onnx_sha256"]
    ours, theirs = fast.encode(pixels(5, 96)), plain.encode(pixels(5, 96))
    for layer, value in theirs.items():
        assert ours[layer].shape == value.shape
        assert (ours[layer] - value).abs().max() <= 1e-5 * value.abs().max()


@pytest.mark.parametrize("backbone", [DEIT, CAIT, "vit_small_patch14_dinov2.lvd142m"])
def test_every_family_can_be_exported(tmp_path, backbone):
    size = 28 if "14" in backbone else 32
    fast, plain = (
        encoder(tmp_path, backbone=backbone, layers=["block1"], groups=None, image_size=size, runtime=runtime)
        for runtime in ("onnxruntime", "torch")
    )
    ours, theirs = (one.encode(pixels(2, size))["block1"] for one in (fast, plain))
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_an_image_has_the_same_features_alone_and_in_a_batch():
    network = make()
    batch = network(pixels(3))["block3"]
    alone = torch.cat([network(pixels(3)[place : place + 1])["block3"] for place in range(3)])
    assert (alone - batch).abs().max() <= 1e-5 * batch.abs().max()


def test_an_encoder_rebuilt_from_its_identity_gives_the_same_bits(tmp_path):
    first = encoder(tmp_path, image_size=128, crop=112, norm=True)
    recorded = json.loads(json.dumps(first.identity))
    again = Encoder.from_identity(recorded, "cpu", 1, tmp_path)
    assert again.identity == recorded
    ours, theirs = first.encode(pixels(2, 128)), again.encode(pixels(2, 128))
    assert all(torch.equal(ours[layer], theirs[layer]) for layer in ours)


def test_without_being_asked_nothing_is_cropped_and_a_crop_is_the_centre(tmp_path):
    """The paper's 448 -> 392, in small: 128 -> 112 leaves 8 pixels on each side."""
    whole, centre = encoder(tmp_path, image_size=128), encoder(tmp_path, image_size=128, crop=112)
    levels = pixels(1, 128)
    inside = encoder(tmp_path, image_size=112).encode(levels[:, :, 8:120, 8:120].contiguous())
    assert torch.equal(centre.encode(levels)["block4"], inside["block4"])
    assert whole.encode(levels)["block4"].shape[2:] == (8, 8) and centre.encode(levels)["block4"].shape[2:] == (7, 7)
    assert torch.equal(centre_crop(torch.arange(25).view(1, 1, 5, 5), 3).flatten(), torch.tensor([6, 7, 8, 11, 12, 13, 16, 17, 18]))


def test_resize_comes_before_the_crop_and_works_on_levels_as_decoding_does(tmp_path):
    from stages.datasets.images import resize_image

    levels = pixels(1, 160)
    smaller = torch.from_numpy(resize_image(levels[0].permute(1, 2, 0).contiguous().numpy(), 128)).permute(2, 0, 1)[None]
    got = encoder(tmp_path, resize=128, crop=112).encode(levels)
    assert torch.equal(got["block4"], encoder(tmp_path, image_size=128, crop=112).encode(smaller)["block4"])
    with pytest.raises(ParamsError, match=r"crop must be in 1\.\.128, the pixels that there are, got 144"):
        encoder(tmp_path, resize=128, crop=144)


def test_wrong_names_and_sizes_are_refused_with_what_would_do(tmp_path):
    with pytest.raises(ParamsError, match=r"no layer 'blok3'"):
        make(layers=("blok3",))
    with pytest.raises(ParamsError, match="patches of 16 px, so 100 px cannot be: take 96 or 112"):
        make(image_size=100)
    with pytest.raises(ParamsError, match="resnet18 is a ResNet; the encoder kind vit takes"):
        make("resnet18")
    with pytest.raises(ParamsError, match="groups.block2 is no usable group"):
        make(layers=("block2",), groups={"block2": [1]})
    with pytest.raises(weights.WeightsMissing, match=r"E101 vit_small_patch14_reg4_dinov2\.lvd142m"):
        ViT(backbone=DINO, layers=("block2",), weights=DINO, image_size=56, backbones=tmp_path)


def test_local_weights_are_the_ones_that_are_read(tmp_path):
    from safetensors.torch import save_file

    other = weights.whole_network(TINY, "random", 7, tmp_path)[0]
    save_file({key: value.contiguous() for key, value in other.state_dict().items()}, tmp_path / f"{TINY}.safetensors")
    network = ViT(backbone=TINY, layers=("block3",), weights=TINY, image_size=160, backbones=tmp_path)
    assert network.weights_identity["name"] == TINY and len(network.weights_identity["sha256"]) == 64
    assert torch.equal(network(pixels())["block3"], make(seed=7)(pixels())["block3"])


def test_dinomalys_layers_of_dinov2_small_with_registers():
    """The configuration itself, on a small image: blocks 2-5 and 6-9, tokens kept, no norm."""
    groups = {"group1": [2, 3, 4, 5], "group2": [6, 7, 8, 9]}
    layers = ("group1", "group2", "group1_extra", "group2_extra")
    network = make(DINO, layers, 56, groups=groups)
    assert {name: tuple(value.shape[1:]) for name, value in network(pixels(1, 56)).items()} == {
        "group1": (384, 4, 4),
        "group2": (384, 4, 4),
        "group1_extra": (384, 1, 5),
        "group2_extra": (384, 1, 5),
    }
    assert len(network.network.blocks) == 10 and vit.DINOV2_OFFSET == 0.1
