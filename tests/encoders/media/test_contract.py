"""What every kind of encoder promises, checked on each of them; those of local weights with the real architecture at small size."""

import pytest
import torch

from stages.encoders import media
from stages.encoders.media.encoder import Place
from stages.params import ParamsError
from tests.encoders.media import networks

SMALL = {"backbone": "test_efficientnet", "weights": "random", "image_size": 64}
BUILT_IN = {
    "frames-image": ("frames", {**SMALL, "layers": ["layer2", "layer4"]}, "image", 96),
    "frames-grid": ("frames", {**SMALL, "grid": 2}, "image", 64),
    "frames-vit": ("frames", {**SMALL, "network": "vit", "backbone": "test_vit", "layers": ["block5_extra"]}, "image", 64),
    "frames-video": ("frames", {**SMALL, "reads": "video", "frames": 6}, "video", 64),
    "log_mel": ("log_mel", {"window_s": 0.3, "hop_s": 0.15}, "audio", 120),
    "windows": ("windows", {"nominal": {"heat": [0, 2], "force": [1, 0.5]}}, "series", 28),
}
LOCAL = {
    "sentences": ("sentences", "bert", {}, "text", 32),
    "sentences-tokens": ("sentences", "bert", {"pool": "tokens"}, "text", 32),
    "sentences-cls": ("sentences", "bert", {"pool": "cls"}, "text", 32),
    "dinov2": ("dinov2", "dinov2", {}, "image", 32),
    "dinov2-video": ("dinov2", "dinov2", {"reads": "video", "frames": 3, "pool": "both"}, "video", 64),
    "clip-image": ("clip", "clip", {}, "image", 24),
    "clip-text": ("clip", "clip", {"reads": "text"}, "text", 24),
    "vjepa2": ("vjepa2", "vjepa2", {"frames": 8}, "video", 48),
    "ast": ("ast", "ast", {}, "audio", 32),
    "ast-overlapping": ("ast", "ast", {"stride_s": 0.5, "windows": 3}, "audio", 32),
    "wav2vec2": ("wav2vec2", "wav2vec2", {"window_s": 0.25}, "audio", 32),
}


def holds(encoder, files, reads, width):
    """Shape, order of time, and the same tokens alone, in a batch, in another order, and again."""
    assert (encoder.reads, encoder.width) == (reads, width)
    together = encoder(files[reads])
    for tokens in together:
        assert tokens.values.shape == (len(tokens.time), width) and len(tokens.time) >= 1
        assert tokens.values.dtype == tokens.time.dtype == torch.float32
        assert tokens.values.isfinite().all() and not tokens.values.requires_grad
        assert tokens.time.min() >= 0 and tokens.time.max() <= 1 and (tokens.time.diff() >= 0).all()
    assert all(torch.equal(one.values, other.values) for one, other in zip(together, encoder(files[reads]), strict=True))
    turned = encoder(files[reads][::-1])[::-1]
    for path, tokens, other in zip(files[reads], together, turned, strict=True):
        torch.testing.assert_close(encoder([path])[0].values, tokens.values, rtol=0, atol=1e-5)
        torch.testing.assert_close(other.values, tokens.values, rtol=0, atol=1e-5)
    assert not torch.allclose(together[0].values[:1], together[1].values[:1], atol=1e-3), "two different files look the same"


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_kinds(name, media_files, tmp_path):
    kind, options, reads, width = BUILT_IN[name]
    place = Place("cpu", 1, tmp_path)
    encoder = media.build(name, kind, options, place)
    holds(encoder, media_files, reads, width)
    again = media.rebuild(encoder.identity, place)
    assert again.identity == encoder.identity
    assert torch.equal(again(media_files[reads])[2].values, encoder(media_files[reads])[2].values)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
def test_kinds_of_local_weights(name, media_files, tmp_path):
    kind, network, options, reads, width = LOCAL[name]
    getattr(networks, network)(tmp_path / "mine")
    encoder = media.build(name, kind, {"weights": "mine", **options}, Place("cpu", 1, tmp_path))
    holds(encoder, media_files, reads, width)
    assert encoder.identity["weights"]["name"] == "mine" and len(encoder.identity["weights"]["sha256"]) == 64


def test_options_out_of_range_and_unknown_kinds_are_named(tmp_path):
    place, at = Place("cpu", 1, tmp_path), ("records", "encoders", "mine")
    with pytest.raises(ParamsError, match=r"records.encoders.mine.steps.*greater than or equal to 4"):
        media.build("mine", "windows", {"steps": 2}, place, at)
    with pytest.raises(ParamsError, match=r"records.encoders.mine.step is not a known key; did you mean 'steps'"):
        media.build("mine", "windows", {"step": 8}, place, at)
    with pytest.raises(ParamsError, match=r"records.encoders.mine.kind: no kind of encoder 'window'; did you mean 'windows'"):
        media.build("mine", "window", {}, place, at)


def test_every_file_that_defines_build_is_a_kind():
    assert media.known() == ["arc_film", "arc_sound", "ast", "clip", "dinov2", "frames", "log_mel", "sensor_residual", "sensor_steps", "sentences", "views",
                             "vjepa2", "wav2vec2", "windows", "yamnet"]  # fmt: skip
