"""The moment of the arc on, on levels whose answer is known by hand."""

import numpy as np
import pytest

from stages.datasets.arc_clock import heard, nearest_frames, rise, seen
from stages.datasets.media import Signal
from stages.datasets.weld_files import arc_off, arc_on
from tests.datasets.weld_trees import arc_sound


def _levels(*parts):
    """(seconds, level) pairs at ten a second."""
    levels = np.concatenate([np.full(round(seconds * 10), level, float) for seconds, level in parts])
    return levels, np.arange(len(levels)) / 10


def test_a_rise_that_stays_is_found_and_a_tack_before_it_is_not():
    assert rise(*_levels((2, 0), (5, 50), (1, 0)), least=4) == pytest.approx(2.0)
    assert rise(*_levels((1, 0), (0.2, 80), (1, 0), (5, 50)), least=4) == pytest.approx(2.2)


def test_a_flicker_of_the_arc_is_no_new_beginning():
    levels, time = _levels((2, 0), (5, 50))
    levels[[23, 27]] = 0
    assert rise(levels, time, least=4) == pytest.approx(2.0)


def test_nothing_is_found_where_nothing_rises():
    assert rise(*_levels((5, 50)), least=4) is None, "the arc burns all the time"
    assert rise(*_levels((2, 0), (5, 3)), least=4) is None, "too faint"
    assert rise(np.array([0.0, 50.0]), np.array([0.0, 0.1]), least=4) is None


@pytest.mark.parametrize("start", [0.5, 1.2])
def test_sound_and_film_agree_on_the_arc(start):
    assert heard(arc_sound(3.0, (start, 2.8), 1).astype(np.float32), 16000) == pytest.approx(start, abs=0.1)
    frames = np.full((24, 8, 8), 10, np.uint8)
    time = np.arange(24) / 8
    frames[time >= start, 2:6, 2:6] = 240
    assert seen(frames, time) == pytest.approx(start, abs=0.125)


def test_a_small_arc_is_seen_through_smoke_and_a_darkened_picture():
    time = np.arange(40) / 8
    frames = np.full((40, 32, 32), 60, np.uint8)
    frames[16:] = 40  # the camera closes its aperture
    frames[16:, 10:14, 10:14] = 250
    frames[28:34] += np.uint8(5)
    assert frames.mean((1, 2))[20] < frames.mean((1, 2))[0], "on the whole it is darker"
    assert seen(frames, time) == pytest.approx(2.0)
    assert seen(np.random.default_rng(0).integers(40, 60, (40, 32, 32)).astype(np.uint8), time) is None


def test_a_current_counts_only_when_it_stays():
    current = np.array([0, 9, 0, 0, 90, 91, np.nan, 92, 93, 94, 0, 0], np.float32)
    log = Signal(current[:, None], np.arange(12) / 2.0, ("primary_weld_current",))
    assert (arc_on(log), arc_off(log)) == (3.5, 4.5)
    assert arc_on(log, steps=2) == 2.0 and arc_on(log, above=100) is None
    assert arc_on(log._replace(variables=("feed",))) is None


def test_frames_are_the_nearest_to_equal_moments_and_end_with_the_film():
    time = np.arange(20) / 8
    assert nearest_frames(time, 3, 0.0, None).tolist() == [0, 10, 19] or nearest_frames(time, 3, 0.0, None).tolist() == [0, 9, 19]
    assert nearest_frames(time, 5, 1.0, 4.0).tolist() == [8, 16]
    assert nearest_frames(time, 50, 0.0, None).tolist() == list(range(20)), "no frame twice"
