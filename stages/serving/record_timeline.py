"""One record as lanes on one clock, for the report: its film, the level of its sound, its sensors, and its photographs; all from the moment of the arc.

Every medium was started by itself, so each is put on the clock of the arc as it is seen, heard or measured there; where it is not, its own beginning counts
and the lane says so. A medium that is missing or cannot be read has a lane that says that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.datasets import arc_clock, media, weld_files
from stages.datasets.images import UnreadableImage
from stages.datasets.samples import DataError
from stages.plots import page

FRAMES = 10  # of a film
FRAME, PHOTO = 80, 112  # pixels of a side
RATE = 16000  # samples a second
LEVEL_S = 0.1  # of sound that one level is taken of
POINTS = 160  # of a curve
AFTER_S = 3.0  # by which sensors may outlast film and sound before their clock must have jumped, as in the check of the data (E446)
FLAT = 1e-9
HEIGHT = 100.0  # of the drawing area of a curve, whose width is that of the clock
UNREADABLE = (DataError, UnreadableImage, OSError)


class Lane(NamedTuple):
    """One medium. frames: (seconds from the arc, picture as a data URI); curves: by name seconds and values."""

    name: str
    last: float  # seconds from the arc to its end
    onset: bool  # the arc was found in it
    frames: list[tuple[float, str]]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]


def timeline(root: Path, sample: Mapping[str, Any], span: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the page needs of one record; None where it has no medium with a time. sample: its row of samples.parquet. span: its row of spans.parquet."""
    found, missing = {}, []
    for name, read in LANES.items():
        if f"{name}_path" not in sample:
            continue
        lane = _read(read, root, sample[f"{name}_path"])
        if lane is None:
            missing.append(name)
        else:
            found[name] = lane
    if not found:
        return None
    end, cut = _end(found)
    shade = _shade(span, end)
    return {
        "end": end,
        "lanes": [_drawn(lane, end, bool(shade and shade["modality"] == name)) for name, lane in found.items()],
        "photos": _photos(root, sample.get("image_path")),
        "ticks": [{"at": 100 * second / end, "text": f"{second:g} s"} for second in _ticks(end)],
        "span": shade,
        "cut": cut,
        "missing": missing,
        "said": _said(sample["record_id"], list(found), end, shade),
    }


def _end(found: Mapping[str, Lane]) -> tuple[float, str]:
    """Where the clock of all lanes ends, and a sentence where the sensors go on: a jump of their clock would leave the others no room."""
    last = max(lane.last for name, lane in found.items() if name != "series" or len(found) == 1)
    own = found["series"].last if "series" in found else last
    if own > last + AFTER_S:
        return max(last, FLAT), f"By their clock the sensors go on to {own:.0f} s, long after the others have ended; that part is not shown."
    return max(last, own, FLAT), ""


def pictures(path: Path) -> list[Path]:
    """The photographs of a record, which are one file or those of a folder."""
    return weld_files.photos(path) if path.is_dir() else [path]


def _read(read: Any, root: Path, path: str | None) -> Lane | None:
    if not path:
        return None
    try:
        return read(root / path)
    except UNREADABLE:
        return None


def _film(path: Path) -> Lane:
    film = media.read_grey_film(path, FRAME)
    start = arc_clock.seen(film.frames, film.time_s)
    after = film.time_s - (start or 0.0)
    last = max(float(after[-1]), FLAT)
    at = np.unique(np.abs(after[:, None] - np.linspace(0, last, FRAMES + 1)[None, :-1]).argmin(0))
    frames = [(float(after[place]), page.thumbnail(film.frames[place][..., None].repeat(3, 2), FRAME)) for place in at]
    return Lane("film", last, start is not None, frames, {})


def _sound(path: Path) -> Lane:
    sound = media.read_audio(path, RATE)
    start = arc_clock.heard(sound.samples, RATE)
    length = round(LEVEL_S * RATE)
    parts = sound.samples[: max(len(sound.samples) // length, 1) * length]
    level = 10 * np.log10(np.array([np.mean(part.astype(np.float64) ** 2) for part in np.array_split(parts, max(len(parts) // length, 1))]) + 1e-9)
    after = np.arange(len(level)) * LEVEL_S - (start or 0.0)
    return Lane("sound level", len(sound.samples) / RATE - (start or 0.0), start is not None, [], {"level": (after, level)})


def _sensors(path: Path) -> Lane:
    try:
        signal = weld_files.read_log(path)
    except DataError:
        signal = media.read_series(path)
    start = weld_files.arc_on(signal)
    after = signal.time_s - (start or 0.0)
    curves = {name: (after, values) for name, values in zip(signal.variables, signal.values.T.astype(np.float64), strict=True)}
    return Lane("sensors", float(after[-1]), start is not None, [], curves)


LANES = {"video": _film, "audio": _sound, "series": _sensors}  # by modality


def _drawn(lane: Lane, end: float, suspected: bool) -> dict[str, Any]:
    width = 100 / max(len(lane.frames), 1)
    frames = [{"left": min(max(100 * at / end, 0), 100 - width), "width": width, "picture": picture} for at, picture in lane.frames]
    curves = [{"name": name.replace("_", " "), "points": points(*curve, end)} for name, curve in lane.curves.items()]
    return {"name": lane.name, "onset": lane.onset, "frames": frames, "curves": [curve for curve in curves if curve["points"]], "suspected": suspected}


def points(at: np.ndarray, values: np.ndarray, end: float) -> str:
    """The points of an SVG polyline, from the arc to `end`, in a box of 1000 by HEIGHT; high values are up. Nothing where nothing is known."""
    known = np.isfinite(values) & (at >= 0) & (at <= end)
    at, values = at[known], values[known]
    if not len(at):
        return ""
    chosen = np.unique(np.linspace(0, len(at) - 1, POINTS).round().astype(int))
    low, high = np.quantile(values, [0.005, 0.995])
    level = np.clip((values[chosen] - low) / max(high - low, FLAT), 0, 1) if high - low > FLAT else np.full(len(chosen), 0.5)
    return " ".join(f"{1000 * x / end:.0f},{HEIGHT * (0.95 - 0.9 * y):.0f}" for x, y in zip(at[chosen], level, strict=True))


def _photos(root: Path, path: str | None) -> list[str]:
    found = []
    for one in pictures(root / path) if path else ():
        try:
            found.append(page.thumbnail(media.read_image(one), PHOTO))
        except UNREADABLE:
            continue
    return found


def _shade(span: Mapping[str, Any] | None, end: float) -> dict[str, Any] | None:
    """Where on the clock the fault is suspected; None where the tokens' clock is not that of the arc."""
    if span is None or span["clock_s"] is None:
        return None
    start, stop = (min(span[key] * span["clock_s"], end) for key in ("start", "end"))
    if stop <= start:
        return None
    text = f"{start:.1f} to {stop:.1f} s, by {span['modality']}"
    return {"left": 100 * start / end, "width": 100 * (stop - start) / end, "modality": span["modality"], "text": text}


def _ticks(end: float) -> list[float]:
    step = next((one for one in (0.5, 1, 2, 5, 10, 20, 50, 100) if end / one <= 8), 200)
    return [step * number for number in range(int(end / step) + 1) if step * number <= 0.95 * end]  # the last one's text must fit


def _said(record_id: str, lanes: Sequence[str], end: float, shade: Mapping[str, Any] | None) -> str:
    """The picture in words, for who does not see it."""
    names = {"video": "film", "audio": "sound level", "series": "sensors"}
    suspected = f" A fault is suspected from {shade['text']}." if shade else ""
    return f"{', '.join(names[name] for name in lanes)} of {record_id} on one clock, from the arc to {end:.0f} s.{suspected}"
