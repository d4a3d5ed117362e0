"""How long one call takes on this machine: percentiles over repeats after a warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Latency(NamedTuple):
    p50_ms: float
    p95_ms: float
    repeats: int
    warmup: int


def measure(
    call: Callable[[], object], warmup: int, repeats: int, seconds: float, synchronise: Callable[[], None] = lambda: None
) -> Latency:
    """Time `call` up to `repeats` times, or until `seconds` have passed (but at least once), after up to `warmup` calls, or as many seconds.

    synchronise: waits for the device, so that queued work counts (torch.cuda.synchronize on a GPU).
    """
    synchronise()
    warm, laps = _laps(call, warmup, seconds, synchronise), _laps(call, repeats, seconds, synchronise)
    p50, p95 = np.percentile(laps, [50, 95])
    return Latency(float(p50), float(p95), len(laps), len(warm))


def _laps(call: Callable[[], object], count: int, seconds: float, synchronise: Callable[[], None]) -> list[float]:
    """Milliseconds of each call: `count` of them, fewer where `seconds` end before, but not none."""
    laps: list[float] = []
    end = time.perf_counter() + seconds
    while len(laps) < count and (not laps or time.perf_counter() < end):
        start = time.perf_counter()
        call()
        synchronise()
        laps.append(1000 * (time.perf_counter() - start))
    return laps
