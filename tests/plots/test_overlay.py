"""Pictures: one fixed scale for all images of a category, anchored at the threshold."""

import numpy as np
from PIL import Image

from stages.plots.gallery import Choice, choose, file_name, fitted
from stages.plots.overlay import CAPTION, GAP, OUTLINE, Scale, colour, overlay, scale_of

SCALE = Scale(typical=1.0, threshold=3.0)


def test_a_quiet_map_stays_without_colour_however_small_its_range():
    """A good part: per-image stretching would paint its largest value red."""
    _, opacity = colour(np.linspace(0.5, 1.9, 64).reshape(8, 8), SCALE)
    assert opacity.max() == 0


def test_opacity_is_full_from_the_threshold_on_and_colour_goes_on_beyond():
    rgb, opacity = colour(np.array([[2.0, 3.0, 5.0]]), SCALE)
    assert opacity[0].tolist() == [0, 0.75, 0.75]
    assert rgb[0, 1].tolist() == [255, 140, 40] and rgb[0, 2].tolist() == [120, 0, 60]


def test_the_same_value_has_the_same_colour_whatever_else_the_map_holds():
    alone, among = colour(np.array([[2.5]]), SCALE), colour(np.array([[2.5, 100.0]]), SCALE)
    assert np.array_equal(alone[0][0, 0], among[0][0, 0]) and alone[1][0, 0] == among[1][0, 0]


def test_the_threshold_of_the_scale_is_reached_by_the_promised_share_of_good_maps():
    maps = np.zeros((100, 4, 4))
    maps[:, 0, 0] = np.arange(100)
    assert scale_of(maps, 0.05) == Scale(0.0, 95.0)


def test_the_outline_runs_inside_the_mask_and_covers_nothing_else():
    image = np.full((16, 16, 3), 100, dtype=np.uint8)
    mask = np.zeros((16, 16), dtype=bool)
    mask[4:9, 5:11] = True
    sheet = np.asarray(overlay(image, np.zeros((16, 16)), SCALE, mask, ""))
    panel = sheet[CAPTION:, 2 * (16 + GAP) :]
    outlined = (panel == OUTLINE).all(axis=2)
    assert outlined.sum() == 5 * 6 - 3 * 4 and not (outlined & ~mask).any()
    assert np.array_equal(sheet[CAPTION:, :16], image)


def test_the_worst_misses_and_false_alarms_come_first():
    score = np.array([0.1, 0.9, 0.2, 0.8, 0.95, 0.05])
    label = np.array([1, 1, 1, 0, 0, 0])
    assert choose(score, label, 0.5, 6) == [
        Choice(0, "miss"), Choice(4, "false-alarm"), Choice(1, "found"), Choice(5, "passed"), Choice(2, "miss"), Choice(3, "false-alarm"),
    ]  # fmt: skip


def test_file_names_are_safe_on_every_system():
    assert file_name(3, Choice(0, "miss"), 'a/<b>:"c"\\é|?*') == "03-miss-a_b_c_.png"
    assert len(file_name(0, Choice(0, "miss"), "x" * 500)) < 120


def test_a_small_map_is_enlarged_by_repeating():
    assert fitted(np.array([[1, 2], [3, 4]]), (4, 4)).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_a_histogram_is_a_picture_of_the_same_bytes_each_time():
    import io

    from stages.plots.histogram import score_histogram

    rng = np.random.default_rng(0)
    arguments = (rng.normal(0, 1, 50), rng.normal(3, 1, 20), rng.normal(0, 1, 30), 2.0, "x")
    png = score_histogram(*arguments)
    assert png == score_histogram(*arguments) and Image.open(io.BytesIO(png)).size[0] > 500
