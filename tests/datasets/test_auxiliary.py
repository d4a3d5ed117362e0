"""Auxiliary images: from a folder, or made without one; always the same from the same seed, and said by name."""

import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from PIL import Image

from stages.datasets import auxiliary
from stages.datasets.auxiliary import AuxiliaryBatches, penalty, textures
from stages.datasets.images import UnreadableImage
from stages.datasets.samples import DataError
from tests.arrays import noise_pixels, normal_pixels


@pytest.fixture
def folder(tmp_path):
    """Five images of one level each, at two depths, between files that are none."""
    (tmp_path / "dtd" / "banded").mkdir(parents=True)
    for index in range(5):
        place = tmp_path / "dtd" / ("banded" if index % 2 else "")
        Image.fromarray(np.full((20, 30, 3), 50 * index, np.uint8)).save(place / f"{index}.png")
    (tmp_path / "dtd" / "readme.txt").write_text("no image")
    (tmp_path / "dtd" / "._0.png").write_bytes(b"no image either")
    return tmp_path / "dtd"


@pytest.fixture(autouse=True)
def without_scikit_image(monkeypatch):
    monkeypatch.setattr(auxiliary, "photographs", lambda size: torch.zeros(0, 3, size, size, dtype=torch.uint8))


def test_a_folder_gives_all_its_images_whole_in_the_order_of_their_paths(folder):
    images, name = textures(16, folder)
    assert images.shape == (5, 3, 16, 16) and images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == [0, 100, 200, 50, 150] and name == "folder dtd (5 images)"
    assert torch.equal(penalty(16, folder, normal=normal_pixels(2)).images, images)  # a folder goes before the substitute


def test_of_a_large_folder_as_many_as_asked_for_are_read_and_the_seed_says_which(folder):
    images, name = textures(16, folder, most=3, seed=1)
    assert len(images) == 3 and name == "folder dtd (3 of 5 images, seed 1)"
    assert torch.equal(images, textures(16, folder, most=3, seed=1).images)
    assert any(not torch.equal(images, textures(16, folder, most=3, seed=seed).images) for seed in (2, 3, 4))


def test_a_folder_without_images_or_with_a_broken_one_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no folder. Correct the path"):
        textures(16, tmp_path / "absent")
    with pytest.raises(DataError, match="holds no image"):
        textures(16, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(UnreadableImage, match="broken.png"):
        textures(16, tmp_path)


def test_generated_textures_are_the_same_from_the_same_seed_and_named():
    before = torch.random.get_rng_state()
    images, name = textures(32, count=6, seed=3)
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.uint8 and name == "generated textures (6 images, seed 3)"
    assert torch.equal(images, textures(32, count=6, seed=3).images) and not torch.equal(images, textures(32, count=6, seed=4).images)
    assert torch.equal(before, torch.random.get_rng_state())


def test_generated_textures_differ_in_colour_brightness_and_grain():
    images = textures(64, count=48).images.float() / 255
    means, deviations = images.mean(dim=(2, 3)), images.std(dim=(2, 3)).amax(dim=1)
    grain = images.diff(dim=3).abs().mean(dim=(1, 2, 3)) / deviations
    assert means.std(dim=0).min() > 0.15  # no colour is the same in all
    assert (means.amax(dim=1) - means.amin(dim=1)).median() > 0.2  # few are grey
    assert deviations.min() > 0.01 and deviations.max() > 0.2  # none is flat, some are strong
    assert grain.max() > 4 * grain.min()  # fine and coarse


def test_scikit_images_photographs_are_read_from_the_package_alone_and_named(tmp_path, monkeypatch):
    """A package with two of the three files: nothing asks for the third."""
    monkeypatch.undo()
    (tmp_path / "skimage" / "data").mkdir(parents=True)
    for name, level in (("brick", 10), ("gravel", 200)):
        Image.fromarray(np.full((40, 40), level, np.uint8)).save(tmp_path / "skimage" / "data" / f"{name}.png")
    spec = ModuleSpec("skimage", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "skimage")]
    module = types.ModuleType("skimage")
    module.__spec__ = spec
    monkeypatch.setitem(sys.modules, "skimage", module)
    images, name = textures(16, count=2)
    assert len(images) == 12 and images[2:, 0, 0, 0].tolist() == [10] * 5 + [200] * 5
    assert name == "generated textures (2 images, seed 0) and scikit-image's photographs (10 images)"


def test_penalty_images_are_made_of_the_training_images_and_look_like_none_of_them():
    """Further from the nearest training image than those are from each other."""
    normal = normal_pixels(8)
    images, name = penalty(32, normal=normal, count=40, seed=0)
    assert images.shape == (40, 3, 32, 32) and images.dtype == torch.uint8
    assert name == "training images under strong augmentation (40 images, seed 0)"
    distances = torch.cdist(images.flatten(1).float(), normal.flatten(1).float()).amin(dim=1)
    own = torch.cdist(normal.flatten(1).float(), normal.flatten(1).float()).max()
    assert distances.min() > 2 * own


def test_penalty_images_are_the_same_from_the_same_seed_and_leave_the_training_images_alone():
    normal = noise_pixels(4)
    before = normal.clone()
    one, again, other = (penalty(24, normal=normal, count=5, seed=seed).images for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other) and torch.equal(normal, before)


def test_penalty_without_folder_and_training_images_is_refused():
    for normal in (None, normal_pixels(0)):
        with pytest.raises(DataError, match="got neither"):
            penalty(16, normal=normal)


def test_as_batches_they_are_pixels_without_a_label():
    batches = AuxiliaryBatches(textures(16, count=40))
    taken = batches.take([3, 1, 3])
    assert batches.samples == 40 and list(taken.features) == ["pixels"] and taken.label.tolist() == [-1, -1, -1]
    assert torch.equal(taken.features["pixels"], batches.images[[3, 1, 3]])
    assert torch.equal(torch.cat([batch.features["pixels"] for batch in batches]), batches.images)
    assert batches.name == "generated textures (40 images, seed 0)"


def test_sizes_down_to_one_pixel_can_be_had():
    assert textures(1, count=1).images.shape == (1, 3, 1, 1) and textures(7, count=1).images.shape == (1, 3, 7, 7)
    assert penalty(5, normal=normal_pixels(1), count=1).images.shape == (1, 3, 5, 5)
