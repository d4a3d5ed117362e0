"""The kind `windows`: statistics of sensors, one token for some steps of all variables. No network and nothing learnt.

Each variable gives, for each patch of steps: mean, standard deviation, least and greatest value, slope, the share of missing steps, and the
amplitudes of its lowest frequencies. Steps that are missing count in no
statistic; a patch without any value is all zeros but for that share.

Values are taken as (value - centre) / spread where `nominal` names both, e.g. `nominal: {speed: [1500, 200]}`: an engineer's figures, not fitted, so
that the encoder is the same for every data set and knows nothing of the test. `nominal` also says which columns are read, and in what order;
without it all columns are read as they are, and then every file must have the same.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from stages.datasets.media import Signal, read_series
from stages.datasets.records import Tokens
from stages.datasets.samples import DataError
from stages.encoders.encoder import versions
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments

STATISTICS = 6


def build(
    place: Place,
    *,
    steps: Annotated[int, Field(ge=4)] = 32,
    frequencies: Annotated[int, Field(ge=0)] = 8,
    nominal: dict[str, tuple[float, Annotated[float, Field(gt=0)]]] | None = None,
) -> TokenEncoder:
    """steps: of a patch; a rest of fewer than half of them joins the patch before it. frequencies: 1 .. that many periods in a patch."""
    variables: list[str] = list(nominal or ())

    def read(path: Path) -> Signal:
        signal = _chosen(path, read_series(path), nominal) if nominal else read_series(path)
        if np.isinf(signal.values).any():
            raise DataError(f"E434 {path} holds an infinite value. Leave the cell empty where the sensor gave none")
        return signal

    def encode(signals: Any) -> list[Tokens]:
        return [_tokens(signal, steps, frequencies) for signal in signals]

    width = len(variables) * (STATISTICS + frequencies) if nominal else None
    return TokenEncoder("series", width, read, encode, {"weights": "none", "versions": versions("numpy")})


def _chosen(path: Path, signal: Signal, nominal: dict[str, tuple[float, float]]) -> Signal:
    """The variables of `nominal` in its order, scaled."""
    missing = [name for name in nominal if name not in signal.variables]
    if missing:
        have = ", ".join(signal.variables)
        raise DataError(
            f"E434 {path} has no column {missing[0]!r}; its columns: {have}. Add it, or take it out of `nominal` of the encoder"
        )
    centre, spread = np.array(list(nominal.values()), np.float32).T
    values = signal.values[:, [signal.variables.index(name) for name in nominal]]
    return signal._replace(values=(values - centre) / spread, variables=tuple(nominal))


def _tokens(signal: Signal, steps: int, frequencies: int) -> Tokens:
    count = len(signal.values)
    bounds = [*range(0, max(count - steps // 2, 1), steps), count]
    patches = [signal.values[start:stop] for start, stop in pairwise(bounds)]
    values = np.stack([_patch(patch, frequencies) for patch in patches])
    middles = [(start + stop) / 2 for start, stop in pairwise(bounds)]
    return at_moments(torch.from_numpy(values), middles, count)


def _patch(values: NDArray[np.float32], frequencies: int) -> NDArray[np.float32]:
    """(S, V), NaN where missing, to (V * (6 + frequencies),), one variable after another."""
    seen = ~np.isnan(values)
    number = np.maximum(seen.sum(0), 1)
    known = np.where(seen, values, 0).astype(np.float64)
    mean = known.sum(0) / number
    centred = np.where(seen, known - mean, 0)
    moment = np.linspace(-1, 1, len(values))[:, None]
    moment = np.where(seen, moment - (moment * seen).sum(0) / number, 0)
    slope = (moment * centred).sum(0) / np.maximum((moment**2).sum(0), 1e-12)
    least = np.where(seen, known, np.inf).min(0)
    greatest = np.where(seen, known, -np.inf).max(0)
    empty = ~seen.any(0)
    statistics = [
        mean,
        np.sqrt((centred**2).sum(0) / number),
        np.where(empty, 0, least),
        np.where(empty, 0, greatest),
        slope,
        1 - seen.mean(0),
    ]
    waves = np.zeros((frequencies, values.shape[1]))
    spectrum = np.abs(np.fft.rfft(centred, axis=0))[1 : frequencies + 1] * 2 / len(values)
    waves[: len(spectrum)] = spectrum
    return np.concatenate([np.stack(statistics), waves]).T.ravel().astype(np.float32)
