"""tiny-clip: pairs that differ by their defect alone, the frozen stem, and zero-shot verdicts on a category that it never saw."""

import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_dilation

from stages import io
from stages.datasets.scenes.pairs import draw_pair
from stages.datasets.scenes.picture import defect_types
from stages.encoders import train_tiny_clip, weights
from stages.encoders.clip import Text, Vision, whole_network
from stages.encoders.clip_stem import LAYERS
from stages.encoders.cnn import CNN
from stages.encoders.train_tiny_clip import Learner
from stages.params import ParamsError
from stages.types import Batch

PARAMS = """\
datasets:
  parts:
    adapter: parts
    source: stages/datasets/scenes
    categories:
      - weave
    train_normal: 8
    shift_normal: 0
    shift_anomalous: 0
encoders:
  pixels:
    kind: pixels
    image_size: 224
  clip:
    kind: clip
    image_size: 224
    backbone: tiny-clip
    weights: tiny-clip
    layers:
      - image
      - patches
      - window2
      - window3
extracts:
  parts-pixels: {dataset: parts, encoder: pixels, reads: data/parts/samples.parquet, code: stages/encoders/pixels.py}
  parts-clip: {dataset: parts, encoder: clip, reads: features/parts/pixels, code: stages/encoders/clip.py}
models:
  tiny-clip:
    detector: zero_shot.winclip
    label: trained on other parts
    shots: 0
runs:
  parts-tiny-clip:
    dataset: parts
    model: tiny-clip
    encoder: clip
    pixels: pixels
    code: stages/detectors/zero_shot
    maths: stages/detectors/zero_shot/maths
"""


def network():
    return whole_network("tiny-clip", "random", 0, weights.Path("nowhere"))[0]


def test_the_two_of_a_pair_differ_where_the_defect_is_and_nowhere_else():
    good, bad = draw_pair("terrazzo", seed=3, index=1)
    assert bad.defect_type == defect_types("terrazzo")[1] and good.defect_type == "good" and not good.mask.any() and bad.mask.any()
    difference = np.abs(good.image.astype(int) - bad.image.astype(int)).max(axis=2)
    around = binary_dilation(bad.mask, iterations=12)
    assert difference[bad.mask].mean() > 10 * max(difference[~around].mean(), 0.1)


def test_the_stem_says_what_the_convolutions_say_brought_to_one_grid():
    stem = network().visual.conv1
    levels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    seen = CNN(backbone="tf_efficientnet_lite0", layers=LAYERS, weights="random")(levels)
    wanted = torch.cat([F.adaptive_avg_pool2d(value, 4) for value in seen.values()], dim=1)
    torch.testing.assert_close(stem.see(levels), wanted, atol=1e-5, rtol=1e-5)
    images = (levels / 255 - stem.clip_mean) / stem.clip_std
    torch.testing.assert_close(stem(images), stem.mix(wanted), atol=1e-4, rtol=1e-4)


def test_one_window_of_each_image_is_that_of_all_windows():
    vision = Vision(network(), ["window3"], 224)
    tokens = vision.embed(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)))
    chosen = vision._blocks(vision.chosen(tokens, 3, torch.tensor([0, 40])))[:, 0]  # 12 x 12 windows
    everything = vision.windows(tokens, 3).flatten(2)
    torch.testing.assert_close(vision.project(chosen), torch.stack([everything[0, :, 0], everything[1, :, 40]]), atol=1e-5, rtol=1e-5)


def test_a_step_teaches_the_transformers_and_leaves_the_convolutions():
    learner, generator = Learner(network()), torch.Generator().manual_seed(0)
    seen = torch.randn(4, 176, 14, 14, generator=generator)
    marked = torch.zeros(4, 14, 14)
    marked[:, 3:6, 3:6] = 100
    bad = seen + 3 * (marked > 0)[:, None]
    batch = Batch({"good": seen, "bad": bad, "marked": marked}, torch.zeros(4), None, list("abcd"), ["washer"] * 4)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    before = {name: value.clone() for name, value in learner.vision.network.conv1.cnn.state_dict().items()}
    optimiser, losses = torch.optim.Adam(trained, lr=1e-3), []
    for _ in range(12):
        loss = learner.loss(batch, torch.Generator().manual_seed(5))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in learner.vision.network.conv1.cnn.state_dict().items())


def test_shorter_sentences_are_read_as_in_the_full_length():
    """The trainer cuts what stands behind the last end."""
    text = Text(network())
    tokens = text.tokens(["a photo of a cracked washer.", "x"])
    end = tokens.argmax(dim=1)
    cut = text.read(text.token_embedding(tokens[:, : end.max() + 1]), end)
    torch.testing.assert_close(cut, text.read(text.token_embedding(tokens), end), atol=1e-6, rtol=1e-5)


def test_an_unknown_category_is_refused(tmp_path):
    with pytest.raises(ParamsError, match="parts has no category 'weav'; did you mean 'weave'"):
        train_tiny_clip.make(tmp_path, leave_out="weav")


@pytest.mark.slow
def test_zero_shot_tells_good_from_bad_on_a_category_that_was_left_out(tmp_path, monkeypatch, root):
    """The recipe from nothing to a row: about three minutes."""
    monkeypatch.chdir(tmp_path)
    made = train_tiny_clip.make(tmp_path / "backbones", leave_out="weave", device="cpu")
    assert made.loss < 0.6 * made.constant
    protocol = (root / "params.yaml").read_text().split("\nprotocol:", 1)[1].replace("    - 1\n    - 2\n", "")
    (tmp_path / "params.yaml").write_text(f"{PARAMS}protocol:{protocol}")
    for verb in (
        "prepare parts",
        "extract parts pixels",
        "extract parts clip",
        "manifest parts",
        "train parts-tiny-clip",
        "evaluate parts-tiny-clip",
    ):
        name, *arguments = verb.split()
        assert not importlib.import_module(f"stages.{name}").main(*arguments)
    result = io.read_json(tmp_path / "metrics/parts/tiny-clip.json")
    assert (result["model"], result["label"], result["weights"]) == ("tiny-clip", "trained on other parts", "tiny-clip")
    assert result["categories"]["weave"]["image_auroc"]["value"] >= 0.8
