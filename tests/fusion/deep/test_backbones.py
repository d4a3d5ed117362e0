"""Encoders inside a model: frozen in all three ways, of the right shapes, blind to what is masked, and the same as the encoders that store tokens."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stages.encoders import media
from stages.encoders.media.encoder import Place
from stages.encoders.weights import WeightsAltered, WeightsMissing
from stages.fusion.deep.maths import lora
from stages.fusion.deep.maths.backbones import AudioEncoder, ImageEncoder, VideoEncoder, held, parameters
from tests.encoders.media import networks

DRAW = torch.Generator().manual_seed(0)
FILM = torch.rand(2, 16, 1, 32, 32, generator=DRAW)
VIEWS = torch.rand(2, 5, 3, 48, 32, generator=DRAW)
MEL = torch.randn(2, 1, 64, 200, generator=DRAW) - 5
SOUND = 0.1 * torch.randn(2, 2, 16000, generator=DRAW)
TWINS = [(VideoEncoder, FILM, (2, 8, 192)), (ImageEncoder, VIEWS, (2, 5, 192)), (AudioEncoder, MEL, (2, 16, 192)), (AudioEncoder, SOUND, (2, 16, 192))]
each_twin = pytest.mark.parametrize(("kind", "given", "shape"), TWINS, ids=["film", "views", "mel", "samples"])


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """A folder with the three real architectures at small size."""
    folder = tmp_path_factory.mktemp("backbones")
    for name, make in {"film": networks.vjepa2, "picture": networks.dinov2, "sound": networks.ast}.items():
        make(folder / name)
    return folder


@each_twin
def test_a_twin_gives_the_tokens_of_its_shape_and_the_same_ones_for_the_same_seed(kind, given, shape):
    tokens = kind()(given)
    assert tokens.shape == shape and tokens.isfinite().all() and tokens.std() > 0
    assert torch.equal(tokens, kind()(given)) and not torch.equal(tokens, kind(seed=1)(given))


def test_a_twin_takes_films_pictures_and_sounds_of_any_size():
    assert VideoEncoder()(torch.rand(1, 5, 1, 40, 24)).shape == (1, 8, 192)
    assert ImageEncoder()(torch.rand(1, 2, 3, 224, 224)).shape == (1, 2, 192)
    assert AudioEncoder()(torch.randn(1, 1, 128, 37)).shape == (1, 16, 192)


@each_twin
def test_frozen_is_frozen_in_all_three_ways(kind, given, shape):
    """[W-62] No parameter learns, `train()` does not reach the backbone, and no graph is kept."""
    encoder = kind(freeze=True).train()
    assert not any(one.requires_grad for one in encoder.parameters())
    assert encoder.training and not any(module.training for module in encoder.network.modules())
    outer = nn.Sequential(encoder).train()
    assert outer.training and not encoder.network.training
    assert not encoder(given.clone().requires_grad_()).requires_grad


@each_twin
def test_what_is_not_frozen_learns_all_of_it(kind, given, shape):
    encoder = kind(freeze=False).train()
    assert parameters(encoder)[0] == parameters(encoder)[1] and encoder.network.training
    encoder(given).square().mean().backward()
    assert all(one.grad is not None for one in encoder.parameters())


@pytest.mark.parametrize("last", [1, 2, 3])
def test_the_last_layers_alone_may_learn(last):
    encoder = ImageEncoder(unfreeze_last=last).train()
    encoder(VIEWS).square().mean().backward()
    learning = {name.split(".")[2] for name, one in encoder.named_parameters() if one.grad is not None}
    assert learning == {str(number) for number in range(4 - last, 4)}
    assert [block.training for block in encoder.network.blocks] == [number >= 4 - last for number in range(4)]


def test_more_than_three_layers_or_a_part_of_what_is_not_frozen_is_refused():
    with pytest.raises(ValueError, match=r"unfreeze_last must be in 0\.\.3, got 4"):
        VideoEncoder(unfreeze_last=4)
    with pytest.raises(ValueError, match="already"):
        VideoEncoder(freeze=False, lora_rank=4)


def test_adapters_learn_in_a_frozen_backbone():
    encoder = VideoEncoder(lora_rank=4).train()
    encoder(FILM).square().mean().backward()
    assert all(layer.up.grad.abs().sum() > 0 for _, layer in lora.adapters(encoder))
    assert not any(module.training for module in encoder.network.modules())


@each_twin
def test_what_is_masked_is_not_looked_at(kind, given, shape):
    """Whatever stands under the mask, not even NaN there, changes a token that is known."""
    encoder, along = kind(), {5: 1, 4: 3, 3: 2}[given.ndim]
    mask = torch.ones(2, given.shape[along], dtype=torch.bool)
    first = mask.shape[1] // 2 + 1  # of a film in the middle of a token
    mask[1, first:] = False
    other = given.transpose(1, along).clone()
    other[1, first:] = math.nan
    known = encoder.known(mask, shape[1], **({"samples": given.ndim == 3} if kind is AudioEncoder else {}))
    assert known.shape == shape[:2] and known[0].all() and not known[1].all() and known[1].any()
    assert torch.equal(encoder(other.transpose(1, along), mask)[known], encoder(given, mask)[known])
    assert torch.equal(encoder(given, torch.ones_like(mask)), encoder(given))


def test_a_frame_that_is_none_is_as_the_one_before_it_or_the_first_that_is_one():
    film = torch.arange(5.0)[None].repeat(3, 1)
    mask = torch.tensor([[0, 1, 0, 0, 1], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert held(film, mask).tolist() == [[1, 1, 1, 1, 4], [0, 1, 1, 3, 3], [0, 0, 0, 0, 0]]


def test_pictures_give_the_tokens_that_dinov2_stores(backbones, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (2, 56, 56, 3), np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, one in zip(paths, pixels, strict=True):
        Image.fromarray(one).save(path)
    stored = media.build("d", "dinov2", {"weights": "picture"}, Place("cpu", 1, backbones))(paths)
    live = ImageEncoder("picture", backbones=backbones)(torch.from_numpy(pixels).permute(0, 3, 1, 2)[None] / 255)
    torch.testing.assert_close(live[0], torch.cat([one.values for one in stored]), rtol=1e-4, atol=1e-5)


def test_grey_films_give_the_tokens_that_vjepa2_stores(backbones):
    from stages.datasets.media import Clip

    grey = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 1), np.uint8)
    kind = media.build("v", "vjepa2", {"weights": "film", "frames": 8}, Place("cpu", 1, backbones))
    stored = kind.encode([Clip(grey.repeat(3, 3), np.arange(8.0))])[0].values
    live = VideoEncoder("film", backbones=backbones)(torch.from_numpy(grey).permute(0, 3, 1, 2)[None] / 255)
    assert live.shape == (1, 4, 48)
    torch.testing.assert_close(live[0], stored, rtol=1e-4, atol=1e-5)


def test_sounds_give_the_tokens_that_ast_stores(backbones):
    from stages.datasets.media import Sound

    kind = media.build("a", "ast", {"weights": "sound", "stride_s": 10, "windows": 3}, Place("cpu", 1, backbones))
    encoder = AudioEncoder("sound", backbones=backbones)
    for count, windows in ((10240, 1), (300, 1), (330000, 3), (800000, 3)):  # windows have 64 columns here
        samples = 0.1 * torch.randn(1, 1, count, generator=torch.Generator().manual_seed(count))
        stored = kind.encode([Sound(samples[0, 0].numpy(), 16000)])[0].values
        assert encoder(samples).shape == (1, windows, 32)
        torch.testing.assert_close(encoder(samples)[0], stored, rtol=1e-4, atol=1e-5)
    samples = SOUND[:1, :1, :10240]
    assert torch.equal(encoder(samples), encoder(encoder.network.spectrogram(samples[:, 0]).transpose(1, 2)[:, None]))


def test_a_long_sound_is_cut_into_windows_ten_seconds_apart(backbones):
    encoder = AudioEncoder("sound", backbones=backbones)
    assert encoder(torch.randn(1, 1, 32, 2064)).shape == (1, 3, 32)
    with pytest.raises(ValueError, match="32 mel bands, these have 40"):
        encoder(torch.randn(1, 1, 40, 64))
    encoder.network.model.config.max_length = 1024  # as in the published weights
    assert [encoder.network.starts(columns) for columns in (64, 1024, 1025, 2500, 3800)] == [[0], [0], [0, 1000], [0, 1000, 2000], [0, 1000, 2000]]
    assert encoder.network.starts(1025 * 160, 160) == [0, 160000]
    mask = torch.arange(2500) < 1010
    assert encoder.known(mask[None], 3).tolist() == encoder.known(mask.repeat_interleave(160)[None], 3, samples=True).tolist() == [[True, True, False]]


def test_layers_and_adapters_of_real_architectures_learn(backbones):
    made = {
        "film": partial(VideoEncoder, "film"),
        "picture": partial(ImageEncoder, "picture"),
        "sound": partial(AudioEncoder, "sound"),
    }
    given = {"film": torch.rand(1, 4, 1, 32, 32), "picture": VIEWS[:1], "sound": torch.randn(1, 1, 32, 64)}
    for name, make in made.items():
        frozen, last, adapted = (make(backbones=backbones, **options).train() for options in ({}, {"unfreeze_last": 1}, {"lora_rank": 2}))
        assert parameters(frozen)[1] == 0 < parameters(last)[1] and not frozen(given[name]).requires_grad, name
        torch.testing.assert_close(adapted(given[name]), frozen(given[name]), rtol=1e-4, atol=1e-5)
        adapted(given[name]).square().mean().backward()
        found = [layer for _, layer in lora.adapters(adapted)]
        assert len(found) == 2 * 2 and all(layer.up.grad.abs().sum() > 0 for layer in found), name


def test_a_folder_stands_under_its_address_on_the_hub_or_under_its_name(backbones, tmp_path):
    assert ImageEncoder("facebook/picture", backbones=backbones).width == 32
    with pytest.raises(WeightsMissing, match=r"E101 dinov2-base .*hf download facebook/dinov2-base"):
        ImageEncoder("facebook/dinov2-base", backbones=tmp_path)


def test_a_clone_whose_large_files_were_not_fetched_says_so(backbones, tmp_path):
    networks.dinov2(place := tmp_path / "cloned")
    (place / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 346345912\n")
    with pytest.raises(WeightsAltered, match=r"E102 .*git lfs pull"):
        ImageEncoder("cloned", backbones=tmp_path)
