"""The kind `sensor_residual`: what a weld's sensors say beyond what was set: each is divided by its commanded value, I / I_set and U / U_set.

Where every class is welded at a setting of its own, a model of the raw sensors may only read the setting. Of a sensor that is divided only the deviation
from the command is left, (measured / commanded - 1) / spread. Sensors that have no command tell of the setting too (the wire is fed as fast as the current
asks), so that none is shown unless `kept` names it. Moments, the clock and gaps are those of the kind `sensor_steps`; compare it with that kind to
see how much of its result was the setting.

The commanded values are in the manifest of the weld's folder, which lies above its log: the nearest `manifest.csv` of at most three folders up, the row
whose SUBDIRS is the place of the log. A file without one cannot be read.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from stages.datasets import intel_welding
from stages.datasets.arc_clock import resampled
from stages.datasets.media import Signal
from stages.datasets.records import Tokens
from stages.datasets.samples import DataError
from stages.datasets.weld_files import CURRENT, arc_on, plain, read_log
from stages.encoders.encoder import versions
from stages.encoders.media.encoder import Place, TokenEncoder

DIVIDED = {CURRENT: ("current_a", 0.1), "secondary_weld_voltage": ("voltage_v", 0.1)}
ABOVE = 3  # folders between a log and its manifest: part, session, and one that holds both


class Seen(NamedTuple):
    """A log with what was set for it."""

    signal: Signal
    commanded: NDArray[np.float64]  # of each sensor that is divided


def build(
    place: Place,
    *,
    divided: dict[str, tuple[str, Annotated[float, Field(gt=0)]]] | None = None,
    kept: dict[str, tuple[float, Annotated[float, Field(gt=0)]]] | None = None,
    steps: Annotated[int, Field(ge=4)] = 256,
    rate_hz: Annotated[float, Field(gt=0)] = 8.6,
    onset: bool = True,
    clock_s: Annotated[float, Field(gt=0)] = 40.0,
    current: str = CURRENT,
    arc_above: float = 5.0,
    gap_s: Annotated[float, Field(gt=0)] = 2.0,
) -> TokenEncoder:
    """divided: by sensor the column of the manifest that commands it, and the spread of the ratio. kept: by sensor that is shown as it is, its centre and
    spread. The rest as of `sensor_steps`."""
    del place
    ratios = {plain(name): figure for name, figure in (DIVIDED if divided is None else divided).items()}
    raw = {plain(name): figure for name, figure in (kept or {}).items()}
    names, facts = [*ratios, *raw], [fact for fact, _ in ratios.values()]
    centre = np.array([1.0] * len(ratios) + [one for one, _ in raw.values()])
    spread = np.array([one for _, one in ratios.values()] + [one for _, one in raw.values()])

    def read(path: Path) -> Seen:
        signal = read_log(path)
        if missing := [name for name in names if name not in signal.variables]:
            have = ", ".join(signal.variables)
            raise DataError(f"E434 {path} has no sensor {missing[0]!r}; it has {have}. Add it, or take it out of `divided` or `kept` of the encoder")
        return Seen(signal, commanded(path, facts))

    def encode(logs: Any) -> list[Tokens]:
        return [_tokens(*seen) for seen in logs]

    def _tokens(signal: Signal, setting: NDArray[np.float64]) -> Tokens:
        start = arc_on(signal, plain(current), arc_above) if onset else None
        moments, values = resampled(signal, start or 0.0, steps, rate_hz, gap_s, "linear")
        end = clock_s if onset else max(float(signal.time_s[-1]), 1 / rate_hz)
        time = torch.from_numpy(((moments - (start or 0.0)) / end if onset else moments / end).clip(0, 1).astype(np.float32))
        chosen = values[:, [signal.variables.index(name) for name in names]]
        chosen = residual(chosen, np.concatenate([setting, np.full(len(raw), np.nan)]))
        return Tokens(torch.from_numpy(np.nan_to_num((chosen - centre) / spread).astype(np.float32)), time)

    return TokenEncoder("series", len(names), read, encode, {"weights": "none", "versions": versions("numpy", "torch")})


def residual(values: ArrayLike, setpoints: ArrayLike) -> NDArray[np.float64]:
    """(T, V) measured to measured / commanded; a sensor whose setpoint is NaN stays as it is. values: NaN where nothing was measured. setpoints: (V,).

    Raises ValueError for a setpoint of 0, which nothing can be divided by.
    """
    measured, setting = np.asarray(values, dtype=np.float64), np.asarray(setpoints, dtype=np.float64)
    if measured.ndim != 2 or setting.shape != measured.shape[1:]:
        raise ValueError(f"expected one setpoint for each column, got values of shape {measured.shape} and {setting.shape} setpoints")
    if (setting == 0).any():
        raise ValueError(f"setpoints must not be 0, that of column {int(np.argmax(setting == 0))} is")
    return measured / np.where(np.isnan(setting), 1.0, setting)


def commanded(path: Path, facts: list[str]) -> NDArray[np.float64]:
    """(len(facts),): what the manifest above a log says was set for its weld. Raises DataError (E440) where it does not say, or says 0."""
    folder = path.parent
    for above in list(folder.parents)[:ABOVE]:
        manifest = above / intel_welding.MANIFEST
        if manifest.is_file():
            weld = _welds(manifest, manifest.stat().st_mtime_ns).get(folder.relative_to(above).as_posix())
            if weld is None:
                raise DataError(f"E440 {manifest} has no row for {folder.name}: what was set for it is not known")
            values = [weld.get(fact) for fact in facts]
            if unknown := [fact for fact, value in zip(facts, values, strict=True) if not isinstance(value, float) or value == 0]:
                have = ", ".join(weld) or "nothing"
                raise DataError(f"E440 {manifest} does not say {unknown[0]} of {folder.name} in a number other than 0; it says {have}")
            return np.array(values, dtype=np.float64)
    raise DataError(f"E440 there is no {intel_welding.MANIFEST} above {path}: what was set for it is not known. Use the kind sensor_steps without it")


@lru_cache(maxsize=4)
def _welds(manifest: Path, changed: int) -> dict[str, dict[str, Any]]:
    """By place the setpoints. changed: when the file was written, so that another one is read anew."""
    return {weld.place: dict(weld.facts) for weld in intel_welding.read_manifest(manifest)[0]}
