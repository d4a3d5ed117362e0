"""Noise of a colour, which sounds of machines are made of."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy.signal import butter, sosfilt

Array = np.ndarray[Any, np.dtype[Any]]


def band(noise: Array, low: float, high: float, rate: float) -> Array:
    """(n,) noise within low .. high Hz, of unit deviation. rate: samples a second."""
    kept = sosfilt(_filter(low, high, rate), noise)
    return kept / (kept.std() + 1e-9)


@cache
def _filter(low: float, high: float, rate: float) -> Array:
    return butter(2, [low, high], "bandpass", fs=rate, output="sos").astype(np.float32)
