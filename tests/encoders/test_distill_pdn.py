"""A small network learns what a deep one says about each patch; measured on images that it never saw, against the best constant."""

import json
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open

from stages import io
from stages.encoders import distill_pdn, pdn, pretraining, weights, weights_bundle
from stages.errors import UserError
from stages.params import ParamsError
from tests.arrays import TinyCNN, noise_pixels

FAST = {"encoder": "a.tag", "image_size": 16, "batch_size": 4, "learning_rate": 3e-3, "device": "cpu"}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A tiny teacher of the teacher, a tiny teacher, and a folder of our own for what a stopped run leaves."""

    class Deep(TinyCNN):
        weights_identity = weights.random_identity(seed=3)

        def __init__(self, *, backbone, layers, weights, backbones):
            super().__init__(layers=("layer2", "layer3"), seed=3, trainable=False)
            self.eval()

    module = types.ModuleType("stages.encoders.cnn")
    module.CNN = Deep
    monkeypatch.setitem(sys.modules, "stages.encoders.cnn", module)
    monkeypatch.setitem(pdn.TEACHERS, "pdn-tiny", {"size": "small", "outputs": 6, "width": 0.04})
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(tmp_path):
    return draw(tmp_path / "pictures", 20)


def draw(folder, count):
    folder.mkdir(parents=True)
    for number, pixels in enumerate(noise_pixels(count, seed=5)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


def test_what_is_learnt_beats_the_best_constant_on_images_it_never_saw(tmp_path, pictures):
    made = distill_pdn.make("pdn-tiny", pictures, tmp_path / "backbones", steps=120, **FAST)
    assert made.constant == pytest.approx(1, abs=0.5), "channels have deviation 1 over the training images"
    assert made.loss < 0.75 * made.constant and (made.images, made.held_out) == (18, 2)


def test_the_file_is_noted_by_its_checksum_and_fills_the_network_without_padding(tmp_path, pictures):
    folder = tmp_path / "backbones"
    made = distill_pdn.make("pdn-tiny", pictures, folder, steps=60, **FAST)
    assert weights.records(folder)["pdn-tiny.safetensors"]["sha256"] == made.sha256 == io.file_hash(folder / "pdn-tiny.safetensors")
    network = pdn.PDN(**pdn.TEACHERS["pdn-tiny"])
    assert weights.load_or_refuse(network, "pdn-tiny", folder)["sha256"] == made.sha256
    assert torch.equal(network.conv1.weight, io.read_model(folder / "pdn-tiny.safetensors")["conv1.weight"])
    assert {row["name"]: row["status"] for row in weights_bundle.verify(folder)}["pdn-tiny"] == "ok"
    with safe_open(folder / "pdn-tiny.safetensors", "pt") as file:
        about = json.loads(file.metadata()["assay"])
    assert about["encoder"] == weights.random_identity(3) and about["loss"] == made.loss and str(tmp_path) not in json.dumps(about)
    assert [path.name for path in folder.iterdir() if path.name not in ("pdn-tiny.safetensors", "weights.json")] == []


def test_a_file_made_here_under_a_name_of_the_lock_is_read_by_its_tensors_names(tmp_path, pictures, monkeypatch):
    """safetensors keeps no order, so a row whose published files are matched by order must not be when the names are our own."""
    monkeypatch.setitem(pdn.TEACHERS, "pdn-small", {"size": "small", "outputs": 6, "width": 0.04})
    distill_pdn.make("pdn-small", pictures, tmp_path / "backbones", steps=60, **FAST)
    network = pdn.PDN(**pdn.TEACHERS["pdn-small"])
    weights.load_or_refuse(network, "pdn-small", tmp_path / "backbones")
    stored = io.read_model(tmp_path / "backbones/pdn-small.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())


def test_a_training_that_is_stopped_goes_on_to_the_same_file(tmp_path, pictures, monkeypatch):
    whole = distill_pdn.make("pdn-tiny", pictures, tmp_path / "whole", steps=60, **FAST)
    real, taken = distill_pdn.Distillation.loss, []

    def killed(self, batch, generator):
        taken.append(0)
        if len(taken) == 31:
            raise KeyboardInterrupt
        return real(self, batch, generator)

    run_of = pretraining.run_of

    def saving_often(*args):
        run = run_of(*args)
        run.checkpoint_s = 0
        return run

    monkeypatch.setattr(pretraining, "run_of", saving_often)
    monkeypatch.setattr(distill_pdn.Distillation, "loss", killed)
    with pytest.raises(KeyboardInterrupt):
        distill_pdn.make("pdn-tiny", pictures, tmp_path / "resumed", steps=60, **FAST)
    assert not (tmp_path / "resumed").exists() and list(pretraining.RESUME.iterdir())
    resumed = distill_pdn.make("pdn-tiny", pictures, tmp_path / "resumed", steps=60, **FAST)
    assert resumed.sha256 == whole.sha256 and len(taken) == 31 + 30 and not list(pretraining.RESUME.iterdir())


def test_a_network_no_better_than_a_constant_is_not_written(tmp_path, pictures):
    with pytest.raises(UserError, match="after 1 steps the loss on held-out images is .* nothing was learnt, and nothing is written"):
        distill_pdn.make("pdn-tiny", pictures, tmp_path / "backbones", steps=1, **{**FAST, "learning_rate": 1e-9})
    assert not (tmp_path / "backbones").exists()


def test_a_patch_is_the_mean_over_neighbouring_places_and_channels():
    """By brute force at one place: 3 x 3 neighbours of each channel, in that order, pooled to 1024 and then, both layers together, to 5."""
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(1, 4, 6, 7, generator=generator), torch.randn(1, 3, 6, 7, generator=generator)
    got = distill_pdn.patch_embedding({"layer2": one, "layer3": two}, 5)
    assert got.shape == (1, 5, 6, 7)
    place = (slice(None), slice(1, 4), slice(2, 5))  # around row 2, column 3
    pooled = [F.adaptive_avg_pool1d(value[0][place].reshape(1, 1, -1), 1024) for value in (one, two)]
    torch.testing.assert_close(got[0, :, 2, 3], F.adaptive_avg_pool1d(torch.cat(pooled, dim=2), 5).flatten(), rtol=1e-5, atol=1e-6)


def test_the_small_network_and_its_target_lie_on_one_grid_whatever_the_size():
    for size in (16, 18, 21):
        levels = torch.zeros(1, 3, 2 * size, 2 * size)
        deep = types.SimpleNamespace(
            network=types.SimpleNamespace(outputs=4), deep=TinyCNN(layers=("layer2", "layer3"), seed=0, trainable=False)
        )
        deep.deep.eval()
        target = distill_pdn.Distillation._embedding(deep, levels)
        assert target.shape[2:] == pdn.PDN(outputs=4, width=0.02, padding=True)(F.avg_pool2d(levels, 2)).shape[2:]


def test_held_out_images_are_not_learnt_from(pictures):
    learnt, measured = pretraining.divided(pictures, 16, 4, seed=1)
    assert not set(learnt.paths) & set(measured.paths) and sorted(learnt.paths + measured.paths) == pictures
    assert [path.name for path in measured.paths] != [path.name for path in pretraining.divided(pictures, 16, 4, seed=3)[1].paths]


def test_of_a_prepared_data_set_only_training_images_are_learnt_from(tmp_path):
    draw(tmp_path / "raw", 6)
    ids = [f"c/{number}" for number in range(6)]
    io.write_json(tmp_path / "data/set/dataset.json", {"root": "raw"})
    io.write_table(tmp_path / "data/set/samples.parquet", {"sample_id": ids, "image_path": [f"{number:02}.png" for number in range(6)]})
    splits = ("train", "test", "train", "val", "train", "test")
    io.write_json(
        tmp_path / "data/set/manifest.json", {"samples": [{"sample_id": a, "split": b} for a, b in zip(ids, splits, strict=True)]}
    )
    assert [path.name for path in pretraining.find_pictures([], ["set"])] == ["00.png", "02.png", "04.png"]


def test_fewer_than_two_images_and_unknown_names_are_refused(tmp_path, pictures):
    with pytest.raises(UserError, match="nowhere is no folder"):
        pretraining.find_pictures([tmp_path / "nowhere"], [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="0 images found: at least 2"):
        pretraining.find_pictures([tmp_path / "empty"], [])
    with pytest.raises(ParamsError, match="did you mean 'pdn-small'"):
        distill_pdn.make("pdn-smal", pictures, tmp_path, **FAST)
    with pytest.raises(ParamsError, match="pdn-small are weights of no timm network"):
        distill_pdn.make("pdn-small", pictures, tmp_path, **{**FAST, "encoder": "pdn-small"})


def test_grey_images_are_one_in_ten_for_both_networks(pictures, monkeypatch):
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (400, 3, 8, 8)).astype("float32"))
    seen = []
    fake = types.SimpleNamespace(
        network=lambda value: seen.append(value) or value, _target=lambda value: seen.append(value) or F.avg_pool2d(value, 2)
    )
    loss = distill_pdn.Distillation.loss(fake, types.SimpleNamespace(features={"pixels": levels}), torch.Generator().manual_seed(0))
    assert loss == 0
    for value in seen:
        grey = (value[:, 0] - value[:, 1]).abs().amax(dim=(1, 2)) < 1e-3
        assert 20 <= grey.sum() <= 60
