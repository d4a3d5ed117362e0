"""What happens at the weld cell apart from defects: sessions, what was set, when the arc burns, and which medium was there to see it.

A session is one shift's work on one joint with one setting, and all its welds are of one class, as in the Intel release; so whatever a session leaves
in the media (the lamp, the microphone, an offset of a sensor) tells of the class to whoever has seen that session before, and of nothing else. What was
set is drawn for each session, independently of the class, but for the share of sessions that the confound asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stages.datasets.weld_media.evidence import DEFECTS, MEDIA, SLOTS, TRACES, Array
from stages.seed import numpy_generator

VIEWS = 5
LEAD_S = 0.6  # the shortest time from where a medium's record begins to where the arc comes on, and from where it goes out to the record's end
BEAD_S = 7.8  # how long the arc burns, about
CODES = {  # the last two digits of a part number; 03, 04, 05, 09 and 10 are ours, the others those of the release
    "good": "00", "excessive_penetration": "01", "burnthrough": "02", "porosity": "03", "porosity_w_excessive_penetration": "04", "spatter": "05",
    "overlap": "06", "lack_of_fusion": "07", "excessive_convexity": "08", "undercut": "09", "warping": "10", "crater_cracks": "11",
}  # fmt: skip
GAP_S = (14.0, 118.0)  # by how much the clock of a few sensor files jumps
GOOD_SHARE = 0.3  # of the sessions
QUIET, GROWTH = 1.8, 1.25  # of a number: nothing is to be seen below the one, and as much more as the other for each deviation above it
LEAST = 3  # sessions of a class, so that each of three lists has one
SPREAD = {"current_a": 9.0, "voltage_v": 0.7, "gas_bar": 0.15, "robot_speed_cpm": 2.5}  # of what is set, between sessions
USUAL = {"current_a": 190.0, "voltage_v": 24.0, "gas_bar": 2.0, "robot_speed_cpm": 40.0}
WELD_TYPES, THICKNESSES, STEELS = ("Butt", "Fillet", "Lap"), (3.0, 6.0, 9.0, 12.0), ("FE410", "BSK46")


class Setting(NamedTuple):
    """The seven setpoints."""

    weld_type: str
    thickness_mm: float
    steel_type: str
    current_a: float
    voltage_v: float
    gas_bar: float
    robot_speed_cpm: float  # centimetres a minute


class Session(NamedTuple):
    """What lasts for a session."""

    name: str  # of its folder
    date: str  # MM-DD-YY
    setting: Setting
    light: float  # of the lamp over the bead, about 1
    tint: tuple[float, float, float]
    exposure: float  # of the arc camera, about 1
    gain: float  # of the microphone
    colour: float  # of the microphone: how much of the treble it loses, 0..1
    drift: tuple[float, ...]  # of the six sensors, in deviations


class Scene(NamedTuple):
    """All that a renderer may know of a weld, never its class."""

    seed: int
    number: int
    session: Session
    arc_s: float  # how long the arc burns
    on_s: float  # when it comes on, by the clock of this medium
    total_s: float  # length of the record
    moments: Array  # (J,) seconds from arc-on to the middle of each slot
    level: Mapping[str, Array]  # trace -> (J,) how much of it this medium shows; mostly 0 or a little, 2 to 5 where something happens

    def draw(self, purpose: str) -> np.random.Generator:
        return numpy_generator(self.seed, "weld", self.number, purpose)

    def activity(self, trace: str, since_on: Array) -> Array:
        """How much of a trace there is at each moment, of any shape, float32; the arc burns from 0 to arc_s."""
        width = 0.42 * self.arc_s / SLOTS
        total = np.zeros(np.shape(since_on), np.float32)
        for level, moment in zip(self.level[trace].tolist(), self.moments.tolist(), strict=True):
            if level > 0:
                away = ((since_on - moment) / width) ** 2
                total += (level * np.exp(-away * away)).astype(np.float32)
        return total


class Timing(NamedTuple):
    """(n, ...) each."""

    arc_s: Array  # (n,)
    offset_s: Array  # (n, M) by how much later than LEAD_S the arc comes on in each medium
    total_s: Array  # (n,)
    moments: Array  # (n, J)


def share_out(sessions: int) -> list[str]:
    """The class of each session, in order: "good" for about GOOD_SHARE of them, the defects alike."""
    each = max((sessions - round(GOOD_SHARE * sessions)) / len(DEFECTS), LEAST)
    ends = [round(each * at) for at in range(len(DEFECTS) + 1)]
    bad = [name for at, name in enumerate(DEFECTS) for _ in range(ends[at], ends[at + 1])]
    return ["good"] * (sessions - len(bad)) + bad


def draw_sessions(seed: int, classes: Sequence[str], confound: float) -> list[Session]:
    """classes: of each session. With the chance `confound` a session is welded with the setting of its class, else with any."""
    days = numpy_generator(seed, "weld", "days").permutation(len(classes))
    return [_session(seed, number, kind, int(day), confound) for number, (kind, day) in enumerate(zip(classes, days, strict=True))]


def _session(seed: int, number: int, kind: str, day: int, confound: float) -> Session:
    draw = numpy_generator(seed, "weld", "session", number)
    own = draw.random() < confound
    any_setting, of_class = draw_setting(draw), class_setting(kind, draw)
    date = f"{day // 28 % 12 + 1:02d}-{day % 28 + 1:02d}-{23 + day // 336}"
    warm = draw.normal(0, 0.015)
    return Session(
        name=f"{kind}_{date}",
        date=date,
        setting=of_class if own else any_setting,
        light=float(draw.uniform(0.9, 1.1)),
        tint=(1 + warm, 1.0, 1 - warm),
        exposure=float(draw.uniform(0.92, 1.08)),
        gain=float(np.exp(draw.normal(0, 0.12))),
        colour=float(draw.uniform(0, 0.5)),
        drift=tuple(draw.standard_normal(6).tolist()),
    )


def draw_setting(draw: np.random.Generator) -> Setting:
    numbers = {name: USUAL[name] + spread * draw.standard_normal() for name, spread in SPREAD.items()}
    return _rounded(
        WELD_TYPES[draw.integers(len(WELD_TYPES))], THICKNESSES[draw.integers(len(THICKNESSES))], STEELS[draw.integers(len(STEELS))], numbers
    )


def class_setting(kind: str, draw: np.random.Generator) -> Setting:
    """What the class is welded with in a confounded session: always the same material, and numbers of its own."""
    own = numpy_generator(0, "weld", "setting", kind)  # of the class alone, in every data set
    numbers = {name: USUAL[name] + spread * (2.2 * own.standard_normal() + 0.3 * draw.standard_normal()) for name, spread in SPREAD.items()}
    return _rounded(
        WELD_TYPES[own.integers(len(WELD_TYPES))], THICKNESSES[own.integers(len(THICKNESSES))], STEELS[own.integers(len(STEELS))], numbers
    )


def _rounded(weld_type: str, thickness: float, steel: str, numbers: Mapping[str, float]) -> Setting:
    """As an engineer would set it: whole amperes, tenths of a volt."""
    return Setting(weld_type, thickness, steel, float(round(numbers["current_a"])), round(numbers["voltage_v"], 1), round(numbers["gas_bar"], 2),
                   float(round(numbers["robot_speed_cpm"])))  # fmt: skip


def draw_timing(seed: int, session: Array, sessions: Sequence[Session], offset_s: float) -> Timing:
    """session: (n,) index. Each medium's clock begins at a moment of its own, up to `offset_s` apart; slots lie at the same time for all of them."""
    draw, count = numpy_generator(seed, "weld", "timing"), len(session)
    speed = np.array([one.setting.robot_speed_cpm for one in sessions])[session]
    arc_s = BEAD_S * (USUAL["robot_speed_cpm"] / np.clip(speed, 30, 52)) ** 0.5 + draw.normal(0, 0.2, count)
    offset = offset_s * draw.random((count, len(MEDIA)))
    middle = (np.arange(SLOTS) + 0.5 + draw.uniform(-0.2, 0.2, (count, SLOTS))) / SLOTS
    return Timing(arc_s, offset, arc_s + 2 * LEAD_S + offset_s, middle * arc_s[:, None])


def draw_present(seed: int, count: int, rate: Mapping[str, float]) -> Array:
    """(n, M) bool: which medium there is of which weld; each weld keeps its sensors, where it would have nothing."""
    chance = numpy_generator(seed, "weld", "missing").random((count, len(MEDIA)))
    present = chance >= np.array([rate.get(name, 0.0) for name in MEDIA])
    present[~present.any(1), MEDIA.index("series")] = True
    return present


def draw_views(seed: int, count: int, missing: float) -> Array:
    """(n, VIEWS) bool: which photos there are; one at least."""
    draw = numpy_generator(seed, "weld", "views")
    there = draw.random((count, VIEWS)) >= missing
    there[np.arange(count), draw.integers(0, VIEWS, count)] = True
    return there


def levels(x: Array, medium: str) -> dict[str, Array]:
    """The numbers of one medium of a weld (J, K) to what is rendered: nothing below QUIET, and growing from there."""
    return dict(zip(TRACES[medium], GROWTH * np.maximum(x - QUIET, 0).T, strict=True))
