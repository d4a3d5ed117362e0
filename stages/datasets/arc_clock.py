"""The common clock of a weld's media: when the arc is struck, as brightness or loudness tell it, and what each medium says at equal moments from then on.

Media are not started together, so that their own clocks begin up to seconds apart. The arc begins in all of them at once. The current tells it best, see
`arc_on` of stages/datasets/weld_files.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stages.datasets.media import Signal

HOLD_S = 0.5  # that the level stays up; a tack or a knock is shorter
HEARD_S = 0.05  # of sound that one level is taken of
BRIGHTEST = 0.01  # share of a frame's pixels
BRIGHTER = 25.0  # of 255: the least step of their mean
LOUDER_DB = 6.0  # least step of the loudness


def rise(levels: NDArray[np.floating], time_s: NDArray[np.floating], least: float, hold_s: float = HOLD_S) -> float | None:
    """The moment at which (T,) levels go up for good: above the middle of quiet and loud, and half of the next `hold_s` as well.

    Quiet is the least of the running medians of three, loud the ninth decile. None where they differ by less than `least`: no arc is to be seen, or it
    burns from the first moment to the last.
    """
    if len(levels) < 3:
        return None
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(levels, 1, mode="edge"), 3), axis=1)
    quiet, loud = float(smooth.min()), float(np.quantile(smooth, 0.9))
    if loud - quiet < least:
        return None
    up = smooth > (quiet + loud) / 2
    stop = np.searchsorted(time_s, time_s + hold_s, side="right")
    total = np.concatenate([[0], np.cumsum(up)])
    stays = up & ((total[stop] - total[:-1]) * 2 > stop - np.arange(len(up)))
    return float(time_s[np.argmax(stays)]) if stays.any() else None


def seen(frames: NDArray[np.uint8], time_s: NDArray[np.floating]) -> float | None:
    """Of a film in grey, (T, H, W), by the brightest hundredth of its pixels: the arc is small, and cameras darken what surrounds it."""
    pixels = frames.reshape(len(frames), -1)
    most = max(round(BRIGHTEST * pixels.shape[1]), 1)
    return rise(np.partition(pixels, -most, axis=1)[:, -most:].mean(1, dtype=np.float64), time_s, BRIGHTER)


def heard(samples: NDArray[np.float32], rate: int) -> float | None:
    """Of a sound, (n,); to a twentieth of a second."""
    length = max(round(rate * HEARD_S), 1)
    parts = samples[: len(samples) // length * length].reshape(-1, length)
    loudness = 10 * np.log10((parts.astype(np.float64) ** 2).mean(1) + 1e-9)
    return rise(loudness, np.arange(len(loudness)) * length / rate, LOUDER_DB)


def nearest_frames(time_s: NDArray[np.float64], frames: int, start: float, clock_s: float | None) -> NDArray[np.int64]:
    """Which frames of a film, whose frames lie at `time_s`, are nearest to `frames` equal moments: over `clock_s` from `start` on, or to the film's end."""
    last = float(time_s[-1])
    moments = np.linspace(start, last if clock_s is None else start + clock_s, frames)
    moments = moments[moments <= last + 1e-9] if clock_s is not None else moments
    after = np.searchsorted(time_s, moments).clip(0, len(time_s) - 1)
    before = (after - 1).clip(0)
    return np.unique(np.where(moments - time_s[before] < time_s[after] - moments, before, after))


def resampled(signal: Signal, start: float, steps: int, rate_hz: float, gap_s: float, interpolation: str = "linear") -> tuple[NDArray, NDArray]:
    """At most `steps` moments from `start` on, (T,) seconds of the log's own clock, and the values there, (T, V), NaN for a sensor without any."""
    moments = start + np.arange(steps) / rate_hz
    moments = moments[moments <= signal.time_s[-1] + 1e-9]
    after = np.searchsorted(signal.time_s, moments).clip(1, max(len(signal.time_s) - 1, 1))
    if len(signal.time_s) > 1:
        moments = moments[(signal.time_s[after] - signal.time_s[after - 1] <= gap_s) | np.isin(moments, signal.time_s)]
    moments = moments if len(moments) else np.array([start])
    columns = [_interpolated(signal.time_s, column.astype(np.float64), moments, interpolation) for column in signal.values.T]
    return moments, np.stack(columns, 1)


def _interpolated(time_s: NDArray, column: NDArray, moments: NDArray, interpolation: str = "linear") -> NDArray:
    """Outside of what is known the nearest known value stays."""
    known = ~np.isnan(column) & np.concatenate([[True], np.diff(time_s) > 0])
    if not known.any():
        return np.full(len(moments), np.nan)
    if interpolation == "linear" or known.sum() < 3:
        return np.interp(moments, time_s[known], column[known])
    from scipy.interpolate import PchipInterpolator  # a cubic spline that does not overshoot

    first, last = time_s[known][[0, -1]]
    return PchipInterpolator(time_s[known], column[known])(moments.clip(first, last))
