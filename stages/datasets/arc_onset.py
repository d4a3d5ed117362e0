"""When the arc is struck, seen in brightness, heard in loudness or measured as current: the common clock of a weld's media.

Each medium is started by hand, so that its own clock begins up to seconds apart from the others'. The arc begins in all of them at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HOLD_S = 0.5  # that the level stays up; a tack or a knock is shorter
HEARD_S = 0.05  # of sound that one level is taken of
BRIGHTER = 4.0  # of 255: least step of the mean brightness of a frame
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
    """Of a film in grey, (T, H, W)."""
    return rise(frames.reshape(len(frames), -1).mean(1, dtype=np.float64), time_s, BRIGHTER)


def heard(samples: NDArray[np.float32], rate: int) -> float | None:
    """Of a sound, (n,); to a twentieth of a second."""
    length = max(round(rate * HEARD_S), 1)
    parts = samples[: len(samples) // length * length].reshape(-1, length)
    loudness = 10 * np.log10((parts.astype(np.float64) ** 2).mean(1) + 1e-9)
    return rise(loudness, np.arange(len(loudness)) * length / rate, LOUDER_DB)
