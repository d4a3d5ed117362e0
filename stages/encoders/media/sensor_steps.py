"""The kind `sensor_steps`: the log of a weld's sensors, one token a moment, as many numbers wide as there are sensors. Nothing is learnt.

Steps lie at equal distances from the arc on (current above `arc_above`), or from the first row where `onset` is false or the current never rises. Between
rows values are interpolated; within a gap of the clock longer than `gap_s` nothing is made up, and there are no tokens. A log that ends early gives fewer
tokens, a long one is cut after `steps`. A sensor that says nothing at all in a log stays at its nominal value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from stages.datasets.arc_clock import resampled
from stages.datasets.media import Signal
from stages.datasets.records import Tokens
from stages.datasets.weld_files import CURRENT, NOMINAL, arc_off, arc_on, chosen_sensors, plain, read_log
from stages.encoders.encoder import versions
from stages.encoders.media.encoder import Place, TokenEncoder


def build(
    place: Place,
    *,
    nominal: dict[str, tuple[float, Annotated[float, Field(gt=0)]]] | None = None,
    steps: Annotated[int, Field(ge=4)] = 256,
    rate_hz: Annotated[float, Field(gt=0)] = 8.6,
    onset: bool = True,
    clock_s: Annotated[float, Field(gt=0)] = 40.0,
    current: str = CURRENT,
    arc_above: float = 5.0,
    interpolation: Literal["linear", "spline"] = "linear",
    gap_s: Annotated[float, Field(gt=0)] = 2.0,
    relative: bool = False,
    limit: Annotated[float, Field(gt=0)] = 8.0,
) -> TokenEncoder:
    """nominal: by sensor its centre and spread, the engineer's; also which are read and in what order. clock_s: what time 1 is, from the arc on.

    relative: take the weld's own median while the arc burns as the centre, so that a token tells what changes and not which setting was chosen;
    spreads are then those of one weld. limit: a token holds at most that many spreads, so that a current of 0 does not outweigh the rest.
    """
    del place
    figures = {plain(name): figure for name, figure in (nominal or NOMINAL).items()}

    def read(path: Path) -> Tokens:
        log = read_log(path)
        start = (arc_on(log, plain(current), arc_above) or 0.0) if onset else 0.0
        moments, values = resampled(log, start, steps, rate_hz, gap_s, interpolation)
        if relative:
            level = own_level(log, plain(current), arc_above)
            values = values - level + [figures[name][0] if name in figures else 0.0 for name in log.variables]
        end = clock_s if onset else max(float(log.time_s[-1]), 1 / rate_hz)
        time = ((moments - start) / end).clip(0, 1).astype(np.float32)
        scaled = chosen_sensors(path, log.variables, values, figures).clip(-limit, limit)
        return Tokens(torch.from_numpy(scaled), torch.from_numpy(time))

    identity = {"weights": "none", "versions": versions("numpy", "scipy" if interpolation == "spline" else "torch")}
    return TokenEncoder("series", len(figures), read, list, identity)


def own_level(log: Signal, current: str, above: float) -> NDArray[np.float64]:
    """(V,) medians of the rows in which the arc burns, of all rows where it never does; NaN for a sensor without any value."""
    first, last = arc_on(log, current, above), arc_off(log, current, above)
    rows = log.values if first is None or last is None else log.values[(log.time_s >= first) & (log.time_s <= last)]
    known = np.isnan(rows).all(0)
    return np.where(known, np.nan, np.nanmedian(np.where(known, 0.0, rows), axis=0))
