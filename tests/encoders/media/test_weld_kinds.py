"""The kinds that see a weld: sensors, sound, film of the arc and photographs, all on the clock of the arc."""

import shutil

import numpy as np
import pytest
import torch

from stages.datasets.media import Sound
from stages.datasets.weld_files import NOMINAL
from stages.encoders import media
from stages.encoders.media.encoder import Place
from stages.params import ParamsError
from tests.datasets.weld_trees import arc_sound, log_rows, write_log, write_weld
from tests.encoders.media.test_contract import holds

SMALL = {"backbone": "test_efficientnet", "weights": "random", "image_size": 64}
KINDS = {
    "sensor_steps": ({"clock_s": 4.0}, "series", 6),
    "sensor_steps-spline": ({"interpolation": "spline", "onset": False}, "series", 6),
    "arc_sound": ({"clock_s": 4.0, "windows": 8}, "audio", 96),
    "arc_sound-whole": ({"onset": False, "bands": 16, "windows": 5}, "audio", 32),
    "arc_film": ({**SMALL, "clock_s": 4.0, "frames": 5}, "video", 64),
    "arc_film-whole": ({**SMALL, "onset": False, "frames": 5, "together": True}, "video", 64),
    "views": (SMALL, "image", 64),
}


@pytest.fixture(scope="module")
def welds(tmp_path_factory):
    """Three welds whose arc begins at 0.5, 1 and 1.5 s of every clock."""
    root, files = tmp_path_factory.mktemp("welds"), {kind: [] for kind in ("series", "audio", "video", "image")}
    for number, start in enumerate((0.5, 1.0, 1.5)):
        place = write_weld(root, "s", f"p{number}", number, seconds=start + 2, arc=(start, start + 1.75), photos=5 - number)
        for kind, ending in (("series", ".csv"), ("audio", ".flac"), ("video", ".avi")):
            files[kind].append(place / f"{place.name}{ending}")
        files["image"].append(place / "images")
    return files


def _encoder(kind, **options):
    return media.build("w", kind, options, Place("cpu", 1, None))


def _steps(**options):
    return _encoder("sensor_steps", nominal={name: (0.0, 1.0) for name in NOMINAL}, rate_hz=8.0, **{"limit": 1e6, **options})


@pytest.mark.parametrize("name", KINDS)
def test_what_every_kind_promises(name, welds):
    options, reads, width = KINDS[name]
    encoder = _encoder(name.split("-")[0], **options)
    holds(encoder, welds, reads, width)
    assert media.rebuild(encoder.identity, Place("cpu", 1, None)).identity == encoder.identity


def test_sensors_are_on_the_clock_of_the_arc(welds):
    aligned = _steps(clock_s=4.0)(welds["series"])
    for tokens in aligned:
        assert tokens.time[0] == 0 and tokens.values[0, 3] > 100, "the first token has current"
        torch.testing.assert_close(tokens.time.diff(), torch.full((len(tokens.time) - 1,), 1 / 32.0))
    plain = _steps(onset=False)(welds["series"])
    assert [int((tokens.values[:, 3] > 5).int().argmax()) for tokens in plain] == [4, 8, 12]
    assert plain[0].time[-1] == 1


def test_sensors_are_interpolated_cut_and_never_padded(tmp_path):
    rows = log_rows(4.0, (0.0, 4.0))
    rows[:, 1] = rows[:, 0] * 10  # a straight line
    rows[4:9, 1] = np.nan
    rows[:, 5] = np.nan
    whole = _steps()([write_log(tmp_path / "a.csv", rows)])[0]
    torch.testing.assert_close(whole.values[:, 0], torch.arange(32) / 8 * 10, rtol=0, atol=1e-2)
    assert (whole.values[:, 4] == 0).all(), "a sensor that says nothing stays at its nominal value"
    assert len(_steps(steps=10)([tmp_path / "a.csv"])[0].values) == 10
    half = _steps()([write_log(tmp_path / "b.csv", np.delete(rows, slice(1, None, 2), 0))])[0]
    torch.testing.assert_close(half.values[:, 0], whole.values[:31, 0], rtol=0, atol=1e-2)


def test_nothing_is_made_up_within_a_gap_of_the_clock(tmp_path):
    rows = log_rows(4.0, (0.0, 4.0))
    rows[16:, 0] += 14
    tokens = _steps(clock_s=20.0)([write_log(tmp_path / "a.csv", rows)])[0]
    assert len(tokens.values) == 32
    torch.testing.assert_close(tokens.time[15:17] * 20, torch.tensor([1.875, 16.0]))
    assert len(_steps(clock_s=20.0, gap_s=20.0)([tmp_path / "a.csv"])[0].values) == 32 + 14 * 8


def test_relative_tokens_do_not_know_the_setting_but_what_changes(tmp_path):
    paths = []
    for number, setting in enumerate((1.0, 1.5)):
        rows = log_rows(4.0, (0.5, 3.5))
        rows[:, 4] *= setting
        rows[16:20, 4] += 40
        paths.append(write_log(tmp_path / f"{number}.csv", rows))
    first, second = (tokens.values[:, 3] for tokens in _steps(relative=True)(paths))
    burning = slice(0, 23)
    assert (first[burning] - second[burning]).abs().max() < 3 < 30 < first[12:16].min(), "only the burst is left"
    plain = [tokens.values[burning, 3].mean() for tokens in _steps()(paths)]
    assert plain[1] - plain[0] > 80
    short = write_log(tmp_path / "short.csv", log_rows(4.0, (2.5, 3.5)))
    assert _steps(relative=True)([short])[0].values[0, 3].abs() < 5, "its level is that of the arc, not of the time without one"
    assert _steps(relative=True, limit=8.0)(paths)[0].values.abs().max() == 8


def test_nominal_figures_choose_scale_and_order_and_a_missing_sensor_is_named(welds):
    encoder = _encoder("sensor_steps", nominal={"Secondary Weld Voltage": (24.0, 2.0), "feed": (70.0, 10.0)})
    tokens = encoder(welds["series"])[0]
    assert encoder.width == 2 and abs(float(tokens.values[:10, 0].mean())) < 0.6 and (tokens.values[:10, 1] == 0).all()
    with pytest.raises(ValueError, match=r"E434 .*has no sensor 'arc_length'; it has pressure"):
        _encoder("sensor_steps", nominal={"arc_length": (0, 1)})(welds["series"])


def test_the_same_moment_of_two_welds_is_the_same_token_of_sound():
    encoder = _encoder("arc_sound", clock_s=4.0, windows=8)
    early, late = (arc_sound(start + 2.5, (start, start + 2.0), 0).astype(np.float32) for start in (0.5, 1.5))
    first, second = encoder.encode([Sound(early, 16000), Sound(late, 16000)])
    assert torch.equal(first.time[:4], second.time[:4]) and first.time[0] == pytest.approx(0.0625, abs=0.01)
    mean = [tokens.values[:, :48].mean(1) for tokens in (first, second)]
    for levels in mean:
        assert levels[:4].min() - levels[4:].max() > 1, "four windows of half a second have the arc in them"
    assert (mean[0][:4] - mean[1][:4]).abs().max() < 0.5


def test_a_film_begins_with_the_arc(welds):
    aligned = _encoder("arc_film", **SMALL, clock_s=4.0, frames=9)(welds["video"])
    assert [len(tokens.values) for tokens in aligned] == [4, 4, 4] and all(tokens.time[0] == 0 for tokens in aligned)
    read = _encoder("arc_film", **SMALL, clock_s=4.0, frames=9).read(welds["video"][1])
    assert read.frames.shape == (4, 64, 64, 3) and (read.frames[..., 0] == read.frames[..., 2]).all() and read.frames[0].mean() > 40
    moving = _encoder("arc_film", **SMALL, clock_s=4.0, frames=9, together=True).read(welds["video"][1])
    assert moving.frames[0, ..., 0].mean() < 40 < moving.frames[0, ..., 1].mean(), "the frame before the arc is dark"


def test_a_photograph_that_is_missing_is_no_token_and_moves_no_other(welds, tmp_path):
    encoder = _encoder("views", **SMALL)
    whole = encoder(welds["image"])
    assert [len(tokens.values) for tokens in whole] == [5, 4, 3]
    folder = tmp_path / "images"
    shutil.copytree(welds["image"][0], folder)
    (folder / "view_1.jpg").unlink()
    rest = encoder([folder])[0]
    assert rest.time.tolist() == [0, 0.5, 0.75, 1]
    torch.testing.assert_close(rest.values, whole[0].values[[0, 2, 3, 4]], rtol=0, atol=1e-5)
    alone = encoder([folder / "view_2.jpg"])[0]
    torch.testing.assert_close(alone.values, rest.values[1:2], rtol=0, atol=1e-5)


def test_a_label_at_the_border_is_cut_off(welds, tmp_path):
    from PIL import Image

    draw = np.random.default_rng(0)
    for name, code in (("a", 20), ("b", 230)):
        pixels = np.full((60, 100, 3), 128, np.uint8)
        pixels[20:40, 20:70] = np.random.default_rng(1).integers(0, 255, (20, 50, 3))
        pixels[:, 80:] = code if code < 100 else draw.integers(200, 255, (60, 20, 3))
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    seen, cut = _encoder("views", **SMALL)(paths), _encoder("views", **SMALL, crop=(0.0, 0.0, 0.2, 0.0))(paths)
    assert not torch.allclose(seen[0].values, seen[1].values, atol=1e-3) and torch.equal(cut[0].values, cut[1].values)
    with pytest.raises(ParamsError, match="leaves nothing of a photograph"):
        _encoder("views", **SMALL, crop=(0.6, 0.0, 0.4, 0.0))


def test_frames_take_a_folder_of_pictures_as_well(welds):
    tokens = _encoder("frames", **SMALL)(welds["image"])
    assert [len(one.values) for one in tokens] == [5, 4, 3]


@pytest.mark.slow
def test_dinov2_takes_a_folder_and_ast_windows_with_a_stride(welds, tmp_path):
    from tests.encoders.media import networks

    networks.dinov2(tmp_path / "d")
    views = media.build("d", "dinov2", {"weights": "d"}, Place("cpu", 1, tmp_path))(welds["image"])
    assert [len(tokens.values) for tokens in views] == [5, 4, 3]
    networks.ast(tmp_path / "a")
    said = {"weights": "a", "stride_s": 0.6, "windows": 3}  # of 0.64 s
    encoder = media.build("a", "ast", said, Place("cpu", 1, tmp_path))
    sounds = [Sound(np.random.default_rng(0).normal(size=round(seconds * 16000)).astype(np.float32), 16000) for seconds in (0.5, 1.3, 1.84, 2.4)]
    assert [len(tokens.values) for tokens in encoder.encode(sounds)] == [1, 3, 3, 3]
