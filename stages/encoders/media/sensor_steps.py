"""The kind `sensor_steps`: the log of a weld's sensors, one token a moment, as many numbers wide as there are sensors. Nothing is learnt.

Steps lie at equal distances from the arc on (current above `arc_above`), or from the first row where `onset` is false or the current never rises. Between
rows values are interpolated; within a gap of the clock longer than `gap_s` nothing is made up, and there are no tokens. A log that ends early gives fewer
tokens, a long one is cut after `steps`. A sensor that says nothing at all in a log stays at its nominal value.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from stages.datasets.media import Signal
from stages.datasets.records import Tokens
from stages.datasets.samples import DataError
from stages.datasets.weld_files import CURRENT, arc_on, plain, read_log
from stages.encoders.encoder import versions
from stages.encoders.media.encoder import Place, TokenEncoder

NOMINAL = {  # centre and spread of the release's sensors, rough figures of an engineer
    "pressure": (1.8, 0.5),
    "co2_weld_flow": (15.0, 5.0),
    "feed": (70.0, 30.0),
    CURRENT: (180.0, 60.0),
    "wire_consumed": (50.0, 50.0),
    "secondary_weld_voltage": (22.0, 5.0),
}


def build(
    place: Place,
    *,
    nominal: dict[str, tuple[float, float]] | None = None,
    steps: Annotated[int, Field(ge=4)] = 256,
    rate_hz: Annotated[float, Field(gt=0)] = 8.6,
    onset: bool = True,
    clock_s: Annotated[float, Field(gt=0)] = 40.0,
    current: str = CURRENT,
    arc_above: float = 5.0,
    interpolation: Literal["linear", "spline"] = "linear",
    gap_s: Annotated[float, Field(gt=0)] = 2.0,
) -> TokenEncoder:
    """nominal: by sensor its centre and spread, the engineer's; also which are read and in what order. clock_s: what time 1 is, from the arc on."""
    del place
    figures = {plain(name): figure for name, figure in (nominal or NOMINAL).items()}

    def encode(signals: Any) -> list[Tokens]:
        return [_tokens(signal) for signal in signals]

    def _tokens(signal: Signal) -> Tokens:
        start = arc_on(signal, plain(current), arc_above) if onset else None
        moments, values = resampled(signal, start or 0.0, steps, rate_hz, gap_s, interpolation)
        end = clock_s if onset else max(float(signal.time_s[-1]), 1 / rate_hz)
        time = torch.from_numpy(((moments - (start or 0.0)) / end if onset else moments / end).clip(0, 1).astype(np.float32))
        centre, spread = np.array(list(figures.values())).T
        chosen = values[:, [signal.variables.index(name) for name in figures]]
        return Tokens(torch.from_numpy(np.nan_to_num((chosen - centre) / spread).astype(np.float32)), time)

    identity = {"weights": "none", "versions": versions("numpy", "scipy" if interpolation == "spline" else "torch")}
    return TokenEncoder("series", len(figures), partial(_read, figures=figures), encode, identity)


def resampled(signal: Signal, start: float, steps: int, rate_hz: float, gap_s: float, interpolation: str) -> tuple[NDArray, NDArray]:
    """At most `steps` moments from `start` on, (T,) seconds of the log's own clock, and the values there, (T, V), NaN for a sensor without any."""
    moments = start + np.arange(steps) / rate_hz
    moments = moments[moments <= signal.time_s[-1] + 1e-9]
    after = np.searchsorted(signal.time_s, moments).clip(1, max(len(signal.time_s) - 1, 1))
    if len(signal.time_s) > 1:
        moments = moments[(signal.time_s[after] - signal.time_s[after - 1] <= gap_s) | np.isin(moments, signal.time_s)]
    moments = moments if len(moments) else np.array([start])
    columns = [_interpolated(signal.time_s, column.astype(np.float64), moments, interpolation) for column in signal.values.T]
    return moments, np.stack(columns, 1)


def _interpolated(time_s: NDArray, column: NDArray, moments: NDArray, interpolation: str) -> NDArray:
    """Outside of what is known the nearest known value stays."""
    known = ~np.isnan(column) & np.concatenate([[True], np.diff(time_s) > 0])
    if not known.any():
        return np.full(len(moments), np.nan)
    if interpolation == "linear" or known.sum() < 3:
        return np.interp(moments, time_s[known], column[known])
    from scipy.interpolate import PchipInterpolator  # a cubic spline that does not overshoot

    first, last = time_s[known][[0, -1]]
    return PchipInterpolator(time_s[known], column[known])(moments.clip(first, last))


def _read(path: Path, figures: dict[str, tuple[float, float]]) -> Signal:
    signal = read_log(path)
    if missing := [name for name in figures if name not in signal.variables]:
        have = ", ".join(signal.variables)
        raise DataError(f"E434 {path} has no sensor {missing[0]!r}; it has {have}. Add it, or take it out of `nominal` of the encoder")
    return signal
