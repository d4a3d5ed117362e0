"""Logs of sensors in every spelling that was met, and what is refused in them."""

from pathlib import Path

import numpy as np
import pytest

from stages.datasets.media import read_grey_film, read_header, read_pictures
from stages.datasets.samples import DataError
from stages.datasets.weld_files import SENSORS, angles, cropped, photos, read_log
from tests.datasets.weld_trees import HEADER, arc_sound, log_rows, write_arc_film, write_flac, write_log


def test_a_log_gives_its_sensors_and_seconds_from_the_first_row(tmp_path):
    rows = log_rows()
    log = read_log(write_log(tmp_path / "a.csv", rows))
    assert log.variables == SENSORS
    np.testing.assert_allclose(log.time_s, rows[:, 0] - rows[0, 0], atol=1e-3)
    np.testing.assert_allclose(log.values, rows[:, 1:], atol=1e-4)


@pytest.mark.parametrize("header", [HEADER.upper(), HEADER.replace(",", " , "), HEADER.replace("CO2 Weld Flow", "CO2_Weld_Flow")])
@pytest.mark.parametrize("separator", [",", ";"])
def test_spellings_do_not_matter(tmp_path, header, separator):
    rows = log_rows()
    rows[3, 4] = np.nan
    expected = read_log(write_log(tmp_path / "a.csv", rows))
    log = read_log(write_log(tmp_path / "b.csv", rows, header=header, separator=separator))
    assert log.variables == expected.variables and np.isnan(log.values[3, 3])
    np.testing.assert_array_equal(log.values, expected.values)


@pytest.mark.parametrize(
    ("clocks", "seconds"),
    [
        (["23:59:59.5", "00:00:00.0", "0:00:00.5"], [0, 0.5, 1.0]),
        (["9:00:00", "9:00:00", "9:00:01"], [0, 0.5, 1.0]),
        (["11:59:59 AM", "12:00:00 PM", "12:00:02 pm"], [0, 1, 3]),
        (["12:00:00:250", "12:00:00:500", "12:00:01:000"], [0, 0.25, 0.75]),
        (["5.5", "6.0", "8.5"], [0, 0.5, 3.0]),
    ],
    ids=["midnight", "whole-seconds", "twelve-hours", "milliseconds", "numbers"],
)
def test_clocks(tmp_path, clocks, seconds):
    (tmp_path / "a.csv").write_text("Time,Feed\n" + "".join(f"{clock},1\n" for clock in clocks))
    np.testing.assert_allclose(read_log(tmp_path / "a.csv").time_s, seconds, atol=1e-9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "E430 .*empty"),
        ("Feed\n1\n", "E434 .*its columns are feed, 1 rows"),
        ("Time,Feed,feed\n1,1,1\n", "E434 .*each once"),
        ("Time,Feed\n", "E434 .*0 rows"),
        ("Time,Feed\n9:00:00,fast\n", "E434 .*row 0 of feed holds 'fast'"),
        ("Time,Feed\n9:00:00,inf\n", "E434 .*infinite value in feed"),
        ("Time,Feed\n9:00:00,1e39\n", "E434 .*infinite value in feed"),
        ("Time,Feed\nnoon,1\n", "E434 .*has the time 'noon'"),
        ("Time,Feed\n1,1\nnan,1\n", "E434 .*row 1 has the time 'nan'"),
        ("Time,Feed\n1,1\n1e999,1\n", "E434 .*row 1 has the time '1e999'"),
        ("Time,Feed\n9:00:05,1\n9:00:04,1\n", r"E434 .*runs backwards at row 1 \(9:00:04\)"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_log(tmp_path / "a.csv")


def test_angles_are_told_by_numbers_in_names_else_by_order():
    assert angles([Path("v_0.jpg"), Path("v_2.jpg")], 5) == [0, 2]
    assert angles([Path("v1.jpg"), Path("v5.jpg")], 5) == [0, 4]
    assert angles([Path("20230315.jpg"), Path("20230316.jpg")], 5) == [0, 1]
    assert angles([Path("a1.jpg"), Path("b1.jpg")], 5) == [0, 1] and angles([], 5) == []
    assert photos(Path("nowhere")) == []


def test_headers_tell_rate_and_length_without_decoding(tmp_path):
    film, sound = write_arc_film(tmp_path / "a.avi", 2.5, (1, 2)), write_flac(tmp_path / "a.flac", arc_sound(1.5, (0, 1), 0, 8000), 8000)
    assert read_header(film, "video") == (8.0, 2.5) and read_header(sound, "audio") == (8000.0, 1.5)


def test_a_film_in_grey_is_whole_and_one_channel(tmp_path):
    film = read_grey_film(write_arc_film(tmp_path / "a.avi", 2.0, (1, 2)), 24)
    assert film.frames.shape == (16, 24, 24) and film.frames.dtype == np.uint8
    np.testing.assert_allclose(film.time_s, np.arange(16) / 8, atol=1e-6)
    assert film.frames[4].mean() < 20 < 40 < film.frames[12].mean()
    (tmp_path / "b.avi").write_bytes((tmp_path / "a.avi").read_bytes()[:6000])
    with pytest.raises(DataError, match="E432"):
        read_grey_film(tmp_path / "b.avi", 24)


def test_pictures_of_a_folder_without_any_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="E430 .*holds no picture"):
        read_pictures(tmp_path / "images")


def test_shares_are_cut_off_the_left_the_top_the_right_and_the_bottom():
    picture = np.arange(10 * 20).reshape(10, 20, 1).repeat(3, 2).astype(np.uint8)
    np.testing.assert_array_equal(cropped(picture, (0.1, 0.2, 0.3, 0.4)), picture[2:6, 2:14])
    assert cropped(picture, (0.0, 0.0, 0.0, 0.0)).shape == picture.shape and cropped(picture, (0.9, 0.0, 0.09, 0.0)).shape == (10, 1, 3)
