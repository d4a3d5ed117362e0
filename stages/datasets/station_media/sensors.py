"""The sensors: six channels of the whole cycle, ten rows a second: approach, cut, retract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from stages.datasets.station_media.evidence import Array
from stages.datasets.station_media.process import SPEEDS, Scene

CHANNELS = ("spindle_rpm", "spindle_current_a", "feed_force_n", "vibration_mm_s", "temperature_c", "coolant_l_min")
RATE = 10  # rows a second
DRIFT = (4.0, 0.15, 6.0, 0.04, 1.2, 0.12)  # of a channel between shifts


def draw_sensors(scene: Scene, rows: int = 200) -> Array:
    """(rows, 6) in the units of CHANNELS."""
    draw, trace = scene.draw("sensors"), scene.trace
    time = np.arange(rows) / RATE
    start, stop = rows * draw.uniform(0.12, 0.18), rows * draw.uniform(0.82, 0.9)
    cut = _ramp(np.arange(rows), start, 6) * (1 - _ramp(np.arange(rows), stop, 5))
    noise = draw.standard_normal((rows, 6))
    slow = lfilter([0.1], [1, -0.9], draw.standard_normal((rows, 2)), axis=0)

    turn = 2 * np.pi * draw.uniform(0.62, 0.78) * time + draw.uniform(0, 6)  # the slow beat of chuck and feed
    sway = 2 * trace["wobble"] * np.sin(turn) * cut
    bursts = _bursts(rows, draw)
    rpm = SPEEDS[scene.programme] * (1 - 0.02 * scene.load * cut) - 0.6 * sway + 2.5 * noise[:, 0]
    force = 40 + cut * (110 + 90 * scene.load + 30 * scene.wear) * (1 + 0.05 * slow[:, 0]) + sway + 3 * noise[:, 1]
    force += cut * 2.6 * trace["chatter"] * bursts * draw.standard_normal(rows)
    current = 2.2 + cut * (2.5 + 3 * scene.load + scene.wear) * (1 + 0.03 * slow[:, 1]) + 0.08 * noise[:, 2] + 0.012 * sway
    vibration = 0.6 + cut * (0.5 + 0.5 * scene.load + 0.4 * scene.wear) + 0.09 * np.abs(noise[:, 3])
    vibration += cut * 0.17 * trace["chatter"] * bursts + _shocks(trace["bearing"], rows, draw)
    heat = 10 * scene.heat + cut * (1.0 + 2 * trace["burn"]) * (0.6 + _ramp(np.arange(rows), draw.uniform(0.4, 0.6) * rows, 8))
    flow = 7.5 - 0.4 * scene.load + 0.1 * noise[:, 5] - 0.6 * trace["coolant"] * _sag(rows, draw)
    heat += cut * 0.8 * trace["coolant"]
    temperature = 24 + lfilter([0.06], [1, -0.94], heat) + 0.1 * noise[:, 4]
    values = np.stack([rpm, current, force, vibration, temperature, flow], 1)
    return values + np.array(scene.shift.drift) * DRIFT


def _ramp(at: Array, middle: float, width: float) -> Array:
    """0 before, 1 after."""
    return 1 / (1 + np.exp(-np.clip((at - middle) / (width / 4), -40, 40)))


def _bursts(rows: int, draw: np.random.Generator) -> Array:
    """(rows,) 0..1: chatter comes and goes."""
    return np.clip(np.sin(np.arange(rows) * draw.uniform(0.09, 0.16) + draw.uniform(0, 6)) + 0.3, 0, 1)


def _shocks(trace: float, rows: int, draw: np.random.Generator) -> Array:
    """(rows,) single readings that stand out, some of them also where all is well."""
    return 0.28 * trace * (draw.random(rows) < 0.12) * draw.exponential(1.0, rows)


def _sag(rows: int, draw: np.random.Generator) -> Array:
    """(rows,) 0..1: the pump loses its prime somewhere and catches itself."""
    middle, width = draw.uniform(0.35, 0.75) * rows, draw.uniform(0.08, 0.16) * rows
    return np.exp(-(((np.arange(rows) - middle) / width) ** 2))


def write_sensors(path: Path, values: Array) -> None:
    """CSV: time_s and the channels."""
    lines = [",".join(("time_s", *CHANNELS))]
    lines += ["%.1f,%.0f,%.2f,%.1f,%.3f,%.2f,%.2f" % (at / RATE, *row) for at, row in enumerate(values.tolist())]  # noqa: UP031 twice as fast
    path.write_bytes(("\n".join(lines) + "\n").encode())
