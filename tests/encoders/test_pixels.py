"""Pixels are decoded by the one reader and resizer, and masks lie beside them."""

import numpy as np
import pytest
import torch
from PIL import Image

from stages import io
from stages.datasets.images import read_image, resize_image
from stages.encoders.encoder import Encoder
from stages.encoders.pixels import Decoded, load_mask, load_pixels
from stages.params import EncoderEntry

SIZE = 32


def picture(path, size=(50, 40), seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def table(folder, rows, threshold=0):
    columns = {key: [row.get(key) for row in rows] for key in ("sample_id", "category", "image_path", "mask_path")}
    io.write_table(folder / "data/set/samples.parquet", columns)
    io.write_json(folder / "data/set/dataset.json", {"root": "raw", "mask_threshold": threshold})
    return folder / "data/set/samples.parquet"


def test_pixels_are_channels_first_uint8_of_the_whole_image(tmp_path):
    path = picture(tmp_path / "a.png")
    pixels = load_pixels(path, SIZE)
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), resize_image(read_image(path), SIZE))


def test_a_mask_is_binarised_before_it_is_resized_and_by_the_data_sets_threshold(tmp_path):
    """A grey level of 40 is noise for one data set and a defect for another."""
    values = np.zeros((64, 64), dtype=np.uint8)
    values[:, :32], values[:, 48:] = 40, 200
    Image.fromarray(values).save(tmp_path / "m.png")
    low, high = load_mask(tmp_path / "m.png", SIZE, 0), load_mask(tmp_path / "m.png", SIZE, 100)
    assert low[:, :16].all() and low[:, 24:].all() and not low[:, 16:24].any()
    assert not high[:, :24].any() and high[:, 24:].all()


def test_a_data_set_with_one_mask_has_masks_for_all_and_one_without_has_none(tmp_path):
    (tmp_path / "raw").mkdir()
    picture(tmp_path / "raw/good.png"), picture(tmp_path / "raw/bad.png", seed=1)
    Image.fromarray(np.full((40, 50), 255, dtype=np.uint8)).save(tmp_path / "raw/mask.png")
    good = {"sample_id": "good", "category": "c", "image_path": "good.png"}
    bad = {"sample_id": "bad", "category": "c", "image_path": "bad.png"}
    with_masks = Decoded(table(tmp_path, [good, {**bad, "mask_path": "mask.png"}], threshold=128), SIZE)
    read = with_masks.read(["bad", "good"], ["pixels", "mask"])
    assert read["mask"][0].all() and not read["mask"][1].any()
    without = Decoded(table(tmp_path, [good, bad]), SIZE)
    assert list(without.read(["good"], ["pixels", "mask"])) == ["pixels"]


def test_rows_come_in_the_order_asked_for(tmp_path):
    (tmp_path / "raw").mkdir()
    rows = [{"sample_id": f"s{n}", "category": "c", "image_path": f"{n}.png"} for n in range(3)]
    paths = [picture(tmp_path / f"raw/{n}.png", seed=n) for n in range(3)]
    read = Decoded(table(tmp_path, rows), SIZE).read(["s2", "s0"], ["pixels"])["pixels"]
    assert torch.equal(read, torch.stack([load_pixels(paths[2], SIZE), load_pixels(paths[0], SIZE)]))


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/broken.png").write_bytes(b"not an image")
    source = Decoded(table(tmp_path, [{"sample_id": "s", "category": "c", "image_path": "broken.png"}]), SIZE)
    with pytest.raises(ValueError, match=r"E204 .*broken\.png"):
        source.read(["s"], ["pixels"])


def test_the_pixels_encoder_hands_on_what_it_is_given(tmp_path):
    built = Encoder.from_entry("pixels", EncoderEntry(kind="pixels", image_size=SIZE), "cpu", 1, tmp_path, "uint8")
    given = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    assert torch.equal(built.encode(given)["pixels"], given)
