"""What happens at the station apart from faults: shifts, programmes, load, wear and heat, and which medium was not there to see it.

One process drives all media of a record: the programme sets the speed, load and wear raise noise, current and sparks, heat follows load. None of it
depends on the label, but for what an experiment asks for (the confound, and what is missing not at random).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from stages.datasets.records import MODALITIES
from stages.datasets.station_media.evidence import KINDS, Array
from stages.seed import numpy_generator

TIMES = ("early", "late", "night")
SPEEDS = (900, 1300)  # revolutions a minute of the two programmes
WITHHELD = 0.45  # share of notes that are missing not at random, where that is asked for
TEST_SHARE, VAL_SHARE = 0.25, 0.15  # of the shifts, where the data set must fix the split itself


class Shift(NamedTuple):
    """What lasts for a shift."""

    name: str
    time: str  # one of TIMES
    light: float  # brightness of the lamp, about 1
    tint: tuple[float, float, float]  # of the lamp
    lamp: float  # its direction in radians
    gain: float  # of the microphone
    hall: float  # noise of the hall
    drift: tuple[float, ...]  # of the six sensors, in deviations
    hand: int  # who writes the notes
    tool_age: float  # 0..1 at its beginning


class Scene(NamedTuple):
    """All that a renderer may know of a record: what it is about, never the label."""

    seed: int
    number: int
    shift: Shift
    programme: int  # 0 or 1
    load: float  # 0..1
    wear: float  # of the tool, 0..1
    heat: float  # 0..1
    trace: Mapping[
        str, float
    ]  # kind of fault -> how much of it is to be seen in this medium; about .4 on a sound part, 2 to 5 on a bad one
    level: Mapping[str, int]  # kind of fault -> 0, 1 or 2: mentioned not, with hesitation, plainly

    def draw(self, purpose: str) -> np.random.Generator:
        return numpy_generator(self.seed, "station", self.number, purpose)

    @property
    def turns(self) -> float:
        """Revolutions a second, nearly those of the programme."""
        return SPEEDS[self.programme] / 60 * (1 - 0.02 * self.load)


class Process(NamedTuple):
    """(n,) each: the state of the station at each record."""

    shift: Array
    programme: Array
    load: Array
    wear: Array
    heat: Array


def draw_shifts(seed: int, count: int) -> list[Shift]:
    return [_shift(number, numpy_generator(seed, "station", "shift", number)) for number in range(count)]


def _shift(number: int, draw: np.random.Generator) -> Shift:
    time = TIMES[number % len(TIMES)]
    warm = draw.normal(0, 0.03) + (0.05 if time == "night" else 0.0)
    return Shift(
        name=f"shift-{number:02d}-{time}",
        time=time,
        light=float(draw.uniform(0.85, 1.15)),
        tint=(1 + warm, 1.0, 1 - warm),
        lamp=float(draw.uniform(0, np.pi)),
        gain=float(np.exp(draw.normal(0, 0.25))),
        hall=float(draw.uniform(0.5, 1.5)),
        drift=tuple(draw.standard_normal(6).tolist()),
        hand=int(draw.integers(3)),
        tool_age=float(draw.uniform(0, 0.5)),
    )


def run_process(seed: int, shift: Array, shifts: list[Shift], label: Array, confound: float) -> Process:
    """Load wanders within a shift, wear grows, heat follows load. The second programme runs on (1 + confound) / 2 of the anomalous parts."""
    draw, n = numpy_generator(seed, "station", "process"), len(shift)
    kicks, load = draw.standard_normal(n), np.zeros(n)
    for at in range(1, n):
        load[at] = 0.8 * load[at - 1] + 0.6 * kicks[at] if shift[at] == shift[at - 1] else kicks[at]
    place = np.array([np.count_nonzero(shift[:at] == shift[at]) for at in range(n)]) / np.maximum(np.bincount(shift)[shift], 1)
    load = 1 / (1 + np.exp(-load))
    wear = np.clip(np.array([one.tool_age for one in shifts])[shift] + 0.5 * place, 0, 1)
    heat = np.clip(0.25 + 0.45 * load + 0.2 * place + draw.normal(0, 0.08, n), 0, 1)
    second = draw.random(n) < (1 + confound * np.where(label == 1, 1, -1)) / 2
    return Process(shift, second.astype(np.int64), load, wear, heat)


def draw_present(seed: int, shift: Array, shifts: list[Shift], rate: Mapping[str, float], by_design: bool) -> Array:
    """(n, M) bool: which medium there is of which record; each record keeps one at least.

    By design: nobody writes notes at night, every sixth shift has no camera for pictures, every eighth no microphone.
    """
    draw = numpy_generator(seed, "station", "missing")
    chance = draw.random((len(shift), len(MODALITIES)))
    present = chance >= np.array([rate.get(name, 0.0) for name in MODALITIES])
    if by_design:
        at = {name: place for place, name in enumerate(MODALITIES)}
        present[np.array([one.time == "night" for one in shifts])[shift], at["text"]] = False
        present[shift % 6 == 4, at["image"]] = False
        present[shift % 8 == 6, at["audio"]] = False
    bare = np.flatnonzero(~present.any(1))
    present[bare, MODALITIES.index("series")] = True  # the sensors are wired: what all others missed, they have
    return present


def withhold(seed: int, present: Array, label: Array, split: list[str], strength: float) -> None:
    """Take notes away, in place: for learning mostly from sound parts, in test from both alike; at 1 from sound parts alone."""
    draw, learnt = numpy_generator(seed, "station", "withheld"), np.array([part != "test" for part in split])
    tilt = np.where(learnt, np.where(label == 1, -strength, strength), 0.0)
    gone = draw.random(len(label)) < WITHHELD * (1 + tilt)
    note = MODALITIES.index("text")
    present[gone & present.any(1, where=np.arange(len(MODALITIES)) != note), note] = False


def fixed_split(seed: int, shifts: int) -> list[str]:
    """By shift: train, val or test, whole shifts."""
    order = numpy_generator(seed, "station", "split").permutation(shifts)
    test, val = max(1, round(TEST_SHARE * shifts)), max(1, round(VAL_SHARE * shifts))
    return ["test" if rank < test else "val" if rank < test + val else "train" for rank in np.argsort(order).tolist()]


def traces(x: Any) -> dict[str, float]:
    """(K,) numbers of one medium to what is rendered: always some, growing with x."""
    return dict(zip(KINDS, np.logaddexp(0, x - 1).tolist(), strict=True))
