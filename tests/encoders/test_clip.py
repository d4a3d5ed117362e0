"""CLIP's two towers: open_clip's own embeddings, windows that are small images, and checkpoints of four kinds."""

import copy
import hashlib

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file

from stages import io
from stages.encoders import clip, weights
from stages.encoders.clip import Text, Vision, whole_network
from stages.encoders.encoder import Encoder, Place, text_tower
from stages.encoders.weights import Row, WeightsAltered, WeightsMissing
from stages.params import EncoderEntry, ParamsError

SENTENCES = ["a photo of a perfect tile.", "a photo of a cracked tile, with damage, for visual inspection", "x"]
SIZE = 128


def pixels(count=2, size=SIZE, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_clip(backbone="test-clip", seed=1, **given):
    return whole_network(backbone, "random", seed, weights.Path("nowhere"), **given)[0]


def vision(layers, image_size=SIZE, network=None, **given):
    return Vision(network or random_clip(), layers, image_size, **given)


@pytest.mark.parametrize("backbone", ["test-clip", "TinyCLIP-ViT-8M-16-Text-3M", "ViT-B-16-plus-240"])
def test_both_towers_embed_as_open_clip_does(backbone, monkeypatch):
    """The same random weights in open_clip's own forward pass and in ours; of each tower two blocks, which are all alike."""
    described = copy.deepcopy(clip.architecture(backbone))
    described["vision_cfg"]["layers"] = described["text_cfg"]["layers"] = 2
    monkeypatch.setattr(clip, "architecture", lambda _: described)
    network = random_clip(backbone)
    size = network.visual.image_size[0]
    seen = vision(["image"], size, network)
    levels = pixels(2, size)
    with torch.no_grad():
        torch.testing.assert_close(
            seen(levels)["image"][:, :, 0, 0], network.encode_image((levels.float() / 255 - seen.mean) / seen.std), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(Text(network)(SENTENCES), network.encode_text(open_clip.tokenize(SENTENCES)), atol=1e-5, rtol=1e-5)


def test_the_window_of_the_whole_image_is_the_image():
    found = vision(["image", "window8"])(pixels())
    torch.testing.assert_close(found["window8"], found["image"], atol=1e-6, rtol=1e-5)


def test_windows_are_passes_of_their_own_tokens_one_by_one():
    """The slow way: one pass for each window; and windows that see different patches say different things."""
    seen = vision(["window3"])
    levels = pixels(1)
    embedded = seen.embed((levels.float() / 255 - seen.mean) / seen.std)
    found = seen(levels)["window3"]
    assert found.shape == (1, 64, 6, 6)
    for row, column in ((0, 0), (2, 5), (5, 1)):
        places = [1 + (row + down) * 8 + column + right for down in range(3) for right in range(3)]
        tokens = embedded[:, [0, *places]]
        for block in seen.network.transformer.resblocks:
            tokens = block(tokens)
        torch.testing.assert_close(found[:, :, row, column], seen.project(tokens[:, 0]), atol=1e-5, rtol=1e-5)
    apart = (found.flatten(2)[0].T[:, None] - found.flatten(2)[0].T[None]).norm(dim=2)
    assert (apart + torch.eye(36)).min() > 1e-3


def test_a_window_hears_nothing_of_the_patches_outside():
    seen, levels = vision(["window2", "patches"]), pixels(1)
    changed = levels.clone()
    changed[:, :, 64:, 64:] = 0
    before, after = seen(levels), seen(changed)
    assert torch.equal(before["window2"][:, :, :3, :], after["window2"][:, :, :3, :])
    assert not torch.allclose(before["window2"][:, :, 5, 5], after["window2"][:, :, 5, 5])
    assert not torch.allclose(before["patches"][:, :, 0, 0], after["patches"][:, :, 0, 0])  # which attention does reach


def test_blocks_and_their_class_tokens_lead_to_the_image():
    found = vision(["block3", "block3_extra", "image", "patches"])(pixels())
    seen = vision(["image"])
    torch.testing.assert_close(seen.project(found["block3_extra"][:, :, 0, 0]), found["image"][:, :, 0, 0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        seen.network.ln_post(found["block3"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2), found["patches"], atol=1e-6, rtol=1e-5
    )


def test_the_embedding_of_a_sentence_is_that_of_its_end_and_reads_only_backwards():
    text = Text(random_clip())
    tokens = text.tokens(SENTENCES)
    end = tokens.argmax(dim=1)
    assert tokens[0, 0] == 49406 and (tokens.gather(1, end[:, None]) == 49407).all() and (tokens[0, end[0] + 1 :] == 0).all()
    embedded = text.token_embedding(tokens)
    other = embedded.clone()
    other[0, end[0] + 1 :] = 7.0  # behind the end: never heard
    torch.testing.assert_close(text.read(other, end), text.read(embedded, end))
    assert not torch.allclose(text.read(embedded, end - 1), text.read(embedded, end))


def test_the_order_of_sentences_does_not_matter():
    text = Text(random_clip())
    torch.testing.assert_close(text(SENTENCES[::-1]), text(SENTENCES).flip(0), atol=1e-6, rtol=1e-5)


def test_gelu_and_quick_gelu_are_two_networks():
    one, other = (vision(["image"], network=random_clip(quick_gelu=quick))(pixels())["image"] for quick in (False, True))
    assert not torch.allclose(one, other, atol=1e-4)
    hidden = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(open_clip.transformer.QuickGELU()(hidden), hidden * torch.sigmoid(1.702 * hidden))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_positions_are_interpolated_to_other_sizes(mode):
    """25 x 25 of 15 x 15, as WinCLIP at 400 px; the class token's position stays, and constant positions stay constant."""
    network = random_clip("ViT-B-16-plus-240")
    own = network.visual.positional_embedding.detach().clone()
    own[1:] = own[1]
    network.visual.positional_embedding = torch.nn.Parameter(own)
    seen = vision(["window2"], 400, network, positions=mode)
    assert seen.network.positional_embedding.shape == (1 + 25**2, 896)
    torch.testing.assert_close(seen.network.positional_embedding[[0, 1, 300, 625]], own[[0, 1, 1, 1]], atol=1e-5, rtol=1e-5)


def test_a_layer_or_a_size_that_cannot_be_had_is_said():
    with pytest.raises(ParamsError, match="no layer 'window9'; did you mean 'window"):
        vision(["window9"])
    with pytest.raises(ParamsError, match="no layer 'blok1'; did you mean 'block1'"):
        vision(["blok1"])
    with pytest.raises(ParamsError, match="patches of 16 px, so 100 px cannot be: take 96 or 112"):
        vision(["image"], 100)
    with pytest.raises(ParamsError, match="knows no network 'ViT-B-16-plus-24'; did you mean 'ViT-B-16-plus-240'"):
        random_clip("ViT-B-16-plus-24")
    with pytest.raises(ParamsError, match="no CLIP with open_clip's own two transformers"):
        random_clip("RN50")


# --- checkpoints ---


def open_clip_file(network, path):
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)


def openai_file(network, path):
    state = {name: value.half() for name, value in network.state_dict().items()}
    torch.save(state | {"input_resolution": torch.tensor(128), "context_length": torch.tensor(77), "vocab_size": torch.tensor(49408)}, path)


def tinyclip_file(network, path):
    def name(key):
        return (
            "_logit_scale." + key if key == "logit_scale" else ("_image_encoder." if key.startswith("visual.") else "_text_encoder.") + key
        )

    torch.save({"state_dict": {f"module.{name(key)}": value for key, value in network.state_dict().items()}}, path)


def transformers_file(network, path):
    """A CLIPModel of the same size with weights of its own; returns it."""
    vision_sizes = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 16,
    }
    text_sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1, "eos_token_id": 49407}
    config = transformers.CLIPConfig(
        vision_config=vision_sizes | {"hidden_act": "gelu"}, text_config=text_sizes | {"hidden_act": "gelu"}, projection_dim=64
    )
    torch.manual_seed(5)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return model


@pytest.fixture
def brought(tmp_path, monkeypatch):
    """A name of the lock whose file a test may write in any format."""
    rows = dict(weights.lock())
    rows["brought"] = Row(clip="test-clip", loads="state_dict", file="brought.safetensors", sha256=None, bytes=None, licence="MIT", commercial=True,
                          source="https://huggingface.co/nobody/nothing", used_by=["a test"])  # fmt: skip
    monkeypatch.setattr(weights, "lock", lambda: rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("write", "tolerance"), [(open_clip_file, 0.0), (openai_file, 2e-3), (tinyclip_file, 0.0)])
def test_checkpoints_of_open_clip_openai_and_tinyclip_fill_the_network(brought, write, tolerance):
    original = random_clip(seed=9)
    write(original, brought / "brought.pt")
    network, identity = whole_network("test-clip", "brought", 0, brought)
    assert identity["sha256"] == hashlib.sha256((brought / "brought.pt").read_bytes()).hexdigest() and identity["file"] == "brought.pt"
    for name, value in original.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, atol=tolerance, rtol=tolerance)
        assert network.state_dict()[name].dtype == torch.float32


def test_a_checkpoint_of_transformers_gives_the_embeddings_that_transformers_gives(brought):
    model = transformers_file(None, brought / "brought.safetensors")
    network, _ = whole_network("test-clip", "brought", 0, brought)
    seen, levels = vision(["image"], network=network), pixels()
    tokens = Text(network).tokens(SENTENCES)
    mask = (torch.arange(77)[None] <= tokens.argmax(dim=1)[:, None]).long()
    with torch.no_grad():
        images = model.visual_projection(model.vision_model((levels.float() / 255 - seen.mean) / seen.std).pooler_output)
        texts = model.text_projection(model.text_model(tokens, attention_mask=mask).pooler_output)
    torch.testing.assert_close(seen(levels)["image"][:, :, 0, 0], images, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Text(network)(SENTENCES), texts, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_another_network_is_refused_by_its_first_odd_tensor(brought):
    save_file({"visual.proj": torch.zeros(3, 3)}, brought / "brought.safetensors")
    with pytest.raises(WeightsAltered, match=r"does not fit test-clip: .* missing, 0 unknown, 1 of another shape"):
        whole_network("test-clip", "brought", 0, brought)
    with pytest.raises(ParamsError, match="the weights brought are for test-clip, but the encoder's backbone is ViT-B-16"):
        whole_network("ViT-B-16", "brought", 0, brought)


def test_a_scripted_file_of_openai_is_refused_and_runs_no_code(brought):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), brought / "brought.pt")
    with pytest.raises(io.UnsafeFile, match="not a plain file of tensors"):
        whole_network("test-clip", "brought", 0, brought)


def test_missing_weights_say_which_file_and_where_from(tmp_path):
    with pytest.raises(
        WeightsMissing, match=r"E101 ViT-B-16-plus-240.laion400m_e31 is needed by WinCLIP.*ViT-B-16-plus-240.laion400m_e31.safetensors"
    ):
        whole_network("ViT-B-16-plus-240", "ViT-B-16-plus-240.laion400m_e31", 0, tmp_path)


# --- as an encoder ---


def test_the_kind_clip_gives_what_the_tower_gives_and_can_be_built_again():
    entry = EncoderEntry(kind="clip", image_size=128, backbone="test-clip", weights="random", layers=["image", "window2"], seed=1)
    encoder = Encoder.from_entry("seen", entry, "cpu", 1, weights.Path("nowhere"))
    expected = vision(["image", "window2"])(pixels())
    assert all(torch.equal(value, expected[layer]) for layer, value in encoder.encode(pixels()).items())
    again = Encoder.from_identity(encoder.identity, "cpu", 1, weights.Path("nowhere"))
    assert again.identity == encoder.identity
    assert encoder.row_shapes()["window2"] == ((64, 7, 7), "float32")


def test_sentences_are_read_once_for_weights_and_wording(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorded = {
        "entry": {
            "name": "seen",
            "kind": "clip",
            "image_size": 128,
            "backbone": "test-clip",
            "weights": "random",
            "layers": ["image"],
            "seed": 1,
        }
    }
    read = text_tower(recorded, "cpu", 1, tmp_path)
    torch.testing.assert_close(read(SENTENCES), Text(random_clip())(SENTENCES))
    assert len(list((tmp_path / clip.CACHE).iterdir())) == 1
    monkeypatch.setattr(clip, "Text", None)  # a second reading would fail
    torch.testing.assert_close(
        read(SENTENCES), clip.build_text(Place(128, "cpu", 1, tmp_path), backbone="test-clip", weights="random", seed=1)(SENTENCES)
    )
    for other in (SENTENCES[:1], SENTENCES[::-1], [*SENTENCES[:2], "y"]):
        with pytest.raises(TypeError):
            read(other)
    with pytest.raises(TypeError):
        clip.build_text(Place(128, "cpu", 1, tmp_path), backbone="test-clip", weights="random", seed=2)(SENTENCES)


def test_encoders_that_only_see_have_no_text_tower(tmp_path):
    entry = {"name": "pixels", "kind": "pixels", "image_size": 32}
    assert text_tower({"entry": entry}, "cpu", 1, tmp_path) is None
