"""Any image file becomes the pixels that its author saw, or a refusal that names the file."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.datasets import images
from stages.datasets.images import UnreadableImage, read_image, read_mask, resize_image, resize_mask
from tests.datasets.trees import texture


def _save(path, picture, **options):
    picture.save(path, **options)
    return path


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    deep = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for suffix in ("png", "tiff"):
        image = read_image(_save(tmp_path / f"deep.{suffix}", Image.fromarray(deep)))
        assert image.shape == (1, 4, 3)
        assert image[0, :, 0].tolist() == [0, 1, 128, 255]


def test_values_beyond_sixteen_bits_are_refused(tmp_path):
    path = _save(tmp_path / "int.tiff", Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)))
    with pytest.raises(UnreadableImage, match="70000"):
        read_image(path)
    with pytest.raises(UnreadableImage, match="floating-point"):
        read_image(_save(tmp_path / "float.tiff", Image.fromarray(np.zeros((2, 2), dtype=np.float32))))


def test_palette_grey_and_one_bit_show_their_colours(tmp_path):
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    assert read_image(_save(tmp_path / "p.png", palette)).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert read_image(_save(tmp_path / "l.png", Image.new("L", (1, 1), 77))).tolist() == [[[77] * 3]]
    assert read_image(_save(tmp_path / "1.png", Image.new("1", (1, 1), 1))).tolist() == [[[255] * 3]]


def test_transparency_is_laid_on_black(tmp_path):
    clear = Image.fromarray(np.array([[[200, 100, 50, 0], [200, 100, 50, 255]]], dtype=np.uint8))
    assert read_image(_save(tmp_path / "rgba.png", clear)).tolist() == [[[0, 0, 0], [200, 100, 50]]]
    grey = Image.merge("LA", (Image.new("L", (1, 1), 90), Image.new("L", (1, 1), 0)))
    assert read_image(_save(tmp_path / "la.png", grey)).max() == 0
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 250, 250, 250])
    assert read_image(_save(tmp_path / "pt.png", palette, transparency=1)).max() == 0


def test_cmyk_becomes_the_rgb_it_prints(tmp_path):
    path = _save(tmp_path / "cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    red, green, blue = read_image(path)[4, 4].tolist()
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_exif_orientation_is_applied_to_images_and_masks_alike(tmp_path, read):
    wide = np.zeros((4, 8), dtype=np.uint8)
    wide[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn 90 degrees clockwise
    upright = read(_save(tmp_path / "turned.png", Image.fromarray(wide), exif=exif))
    assert upright.shape[:2] == (8, 4)
    assert upright[0, 3].any() and upright.sum() == upright[0, 3].sum()


def test_masks_keep_small_values_and_drop_what_lies_below_the_threshold(tmp_path):
    path = _save(tmp_path / "m.png", Image.fromarray(np.array([[0, 1, 14, 127, 128, 255]], dtype=np.uint8)))
    assert read_mask(path).tolist() == [[False, True, True, True, True, True]]
    assert read_mask(path, 127).tolist() == [[False, False, False, False, True, True]]
    deep = _save(tmp_path / "deep.png", Image.fromarray(np.array([[0, 200, 65535]], dtype=np.uint16)))
    assert read_mask(deep).tolist() == [[False, True, True]]
    assert read_mask(deep, 127).tolist() == [[False, False, True]]


def test_a_coloured_mask_counts_by_its_brightest_channel(tmp_path):
    path = _save(tmp_path / "m.png", Image.fromarray(np.array([[[0, 0, 255], [0, 0, 0]]], dtype=np.uint8)))
    assert read_mask(path, 127).tolist() == [[True, False]]


def test_too_many_pixels_are_an_error_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 99)
    with pytest.raises(UnreadableImage, match="10 x 10 pixels"):
        read_image(_save(tmp_path / "big.png", Image.new("L", (10, 10))))


def test_formats_outside_the_list_are_refused(tmp_path):
    path = tmp_path / "document.png"
    Image.new("RGB", (4, 4)).save(path, format="PDF")
    with pytest.raises(UnreadableImage, match=r"document\.png"):
        read_image(path)


def _encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(texture(1)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_a_file_cut_in_half_is_unreadable(tmp_path, kind):
    path = tmp_path / "half.png"
    path.write_bytes(_encoded(kind)[: len(_encoded(kind)) // 2])
    with pytest.raises(UnreadableImage):
        read_image(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP"]), st.integers(0, 10**6), st.binary(max_size=24), st.booleans())
def test_damaged_bytes_give_an_image_or_unreadable_and_never_a_crash(tmp_path, kind, at, garbage, cut):
    content = _encoded(kind)
    at %= len(content)
    damaged = content[:at] + garbage + (b"" if cut else content[at + len(garbage) :])
    path = tmp_path / "damaged.png"
    path.write_bytes(damaged)
    for read, shape in ((read_image, 3), (read_mask, 2)):
        try:
            assert read(path).ndim == shape
        except UnreadableImage as error:
            assert error.path == path and error.cause


def test_the_resizer_keeps_borders_and_differs_from_pillow_by_at_most_two_levels():
    image = texture(3, side=64)[:, :48]
    resized = resize_image(image, 32)
    oracle = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    assert resized.shape == (32, 32, 3) and resized.dtype == np.uint8
    assert np.abs(resized.astype(int) - oracle.astype(int)).max() <= 2


def test_an_image_of_the_right_size_is_unchanged_by_the_resizer():
    assert np.array_equal(resize_image(texture(3), 96), texture(3))


def test_masks_are_resized_by_the_nearest_pixel_centre():
    mask = np.array([[True, False], [False, False]])
    assert resize_mask(mask, 4).tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    assert resize_mask(resize_mask(mask, 6), 2).tolist() == mask.tolist()
