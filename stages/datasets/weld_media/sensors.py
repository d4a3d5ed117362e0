"""The sensors: the six channels of the release at 8.6 rows a second, in its CSV."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

from stages.datasets.weld_media.evidence import Array
from stages.datasets.weld_media.process import Scene

CHANNELS = ("Pressure", "CO2 Weld Flow", "Feed", "Primary Weld Current", "Wire Consumed", "Secondary Weld Voltage")
HEADER = ("Date", "Time", "Part No", *CHANNELS, "Remarks")
RATE = 8.6  # rows a second
DRIFT = (0.02, 0.15, 0.6, 1.0, 0.0, 0.08)  # of a channel between sessions


def draw_sensors(scene: Scene) -> tuple[Array, Array]:
    """Times (T,) in seconds from the beginning of the record, and values (T, 6) of CHANNELS."""
    draw, setting = scene.draw("sensors"), scene.session.setting
    time = np.arange(int(scene.total_s * RATE)) / RATE
    since = time - scene.on_s
    burning = ((since >= 0) & (since < scene.arc_s)).astype(np.float64)
    noise = draw.standard_normal((len(time), 6))
    slow = lfilter([0.15], [1, -0.85], draw.standard_normal((len(time), 3)), axis=0)
    trace = {name: scene.activity(name, since) * burning for name in scene.level}
    strike = np.exp(-np.maximum(since, 0) / 0.25) * burning  # short circuit, before the arc stands

    flow = 14.5 * _valve(since, scene.arc_s) * (setting.gas_bar / 2) ** 0.5 - 1.1 * trace["gas"] + 0.12 * noise[:, 1] + 0.2 * slow[:, 0]
    pressure = setting.gas_bar + 0.25 * (1 - _valve(since, scene.arc_s)) - 0.06 * trace["gas"] + 0.015 * noise[:, 0]
    feed = burning * (62 + 0.18 * (setting.current_a - 190) + 1.2 * slow[:, 1] - 4.5 * trace["feed"] + 0.8 * noise[:, 2])
    current = burning * (setting.current_a + 3.0 * slow[:, 2] + 2.0 * noise[:, 3] - 2.5 * trace["feed"] + 9.0 * trace["current"]) + 40 * strike
    voltage = burning * (setting.voltage_v - 0.012 * (current - setting.current_a) + 0.12 * noise[:, 5] + 0.75 * trace["voltage"]) - 6 * strike
    current += 4 * burning * _tick(time, draw)  # someone touches the cable
    values = np.stack([pressure, flow, feed, current, np.zeros(len(time)), voltage], 1) + np.array(scene.session.drift) * DRIFT
    values[burning == 0, 2:] = 0  # feed, current and voltage: no arc
    values[:, 4] = np.cumsum(np.maximum(values[:, 2], 0)) / RATE / 60  # metres of wire
    return time, values


def _valve(since: Array, arc_s: float) -> Array:
    """0..1: gas flows from half a second before the arc to half a second after."""
    return 1 / (1 + np.exp(-np.clip((since + 0.5) * 14, -40, 40))) / (1 + np.exp(np.clip((since - arc_s - 0.5) * 14, -40, 40)))


def _tick(time: Array, draw: np.random.Generator) -> Array:
    """(T,) a single reading or two that stand out, which is no defect."""
    found = np.zeros(len(time))
    found[draw.integers(0, len(time), draw.poisson(1.0))] = draw.normal(0, 4)
    return found


def write_sensors(path: Path, time: Array, values: Array, part: str, gap_s: float = 0.0) -> None:
    """CSV of the release. gap_s: by how much the clock jumps ahead in the middle of the file."""
    start = datetime.strptime(part[:8], "%m-%d-%y").replace(hour=8) + timedelta(minutes=4 * int(part[9:13]))
    lines = [",".join(HEADER)]
    for at, (moment, row) in enumerate(zip(time.tolist(), values.tolist(), strict=True)):
        now = start + timedelta(seconds=moment + gap_s * (at > len(time) // 2))
        lines.append(f"{now:%m/%d/%y},{now:%H:%M:%S}.{now.microsecond // 1000:03d},{part},%.3f,%.2f,%.2f,%.1f,%.3f,%.2f," % tuple(row))
    path.write_bytes(("\n".join(lines) + "\n").encode())
