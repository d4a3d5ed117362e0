"""The sound: spindle and gears hum, the cut hisses, the hall is never quiet; two seconds, 16 kHz, one microphone."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from scipy.signal import oaconvolve

from stages.datasets.noise import band
from stages.datasets.station_media.evidence import Array
from stages.datasets.station_media.process import Scene

RATE = 16_000  # samples a second
TEETH = 23  # of the gear: its tone is that many times the speed
BALLS = 4.6  # knocks of a bearing in one turn


def draw_sound(scene: Scene, seconds: float = 2.0) -> Array:
    """(n,) float in -1..1."""
    draw, trace = scene.draw("sound"), scene.trace
    count = int(seconds * RATE)
    time = (np.arange(count) / RATE).astype(np.float32)
    noise = draw.standard_normal((3, count), np.float32)
    phase = 2 * np.pi * scene.turns * (time + 0.002 * np.cumsum(noise[2]) / RATE**0.5)

    sound = 0.05 * sum(np.sin(order * phase + draw.uniform(0, 6)) / order for order in (1, 2, 3, 4, 6))
    sound += 0.03 * (0.5 + scene.load) * (np.sin(TEETH * phase) + 0.4 * np.sin(2 * TEETH * phase + 1))
    breath = 1 + 0.3 * np.sin(phase / 3 + draw.uniform(0, 6))
    sound += (0.025 + 0.03 * scene.load + 0.02 * scene.wear) * breath * band(noise[0], 1500, 5500, RATE)
    sound += 0.02 * scene.shift.hall * band(noise[1], 60, 900, RATE)
    sound += _hall(time, draw)
    sound += _chatter(trace["chatter"], phase, time, draw)
    sound += _knocks(trace["bearing"], scene.turns, count, draw)
    sound += _bang(trace["tool"], time, noise[2], draw)
    return np.clip(sound * scene.shift.gain * np.exp(draw.normal(0, 0.1)), -1, 1)


def _chatter(trace: float, phase: Array, time: Array, draw: np.random.Generator) -> Array:
    """A howl near 1.2 kHz that swells with each turn."""
    tone = 2 * np.pi * draw.uniform(1050, 1350) * time + 2 * np.sin(2 * np.pi * draw.uniform(2, 5) * time)
    swell = 1 + 0.8 * np.sin(phase + draw.uniform(0, 6))
    return 0.012 * trace * swell * (np.sin(tone) + 0.5 * np.sin(2 * tone + 0.4))


def _knocks(trace: float, turns: float, count: int, draw: np.random.Generator) -> Array:
    """A ball runs over a pit: short rings at 3.4 kHz, not quite on the beat."""
    every = RATE / (BALLS * turns)
    at = np.cumsum(every * (1 + 0.04 * draw.standard_normal(int(count / every) + 2)))
    at = at[at < count - 1].astype(np.int64)
    hits = np.zeros(count)
    hits[at] = 0.04 * trace * np.exp(0.3 * draw.standard_normal(len(at)))
    tail = np.arange(240) / RATE
    return oaconvolve(hits, np.exp(-tail * 420) * np.sin(2 * np.pi * 3400 * tail))[:count].astype(np.float32)


def _bang(trace: float, time: Array, noise: Array, draw: np.random.Generator) -> Array:
    """The tool snaps: a crack, and a rasp from there on."""
    since = time - draw.uniform(0.2, 0.75) * time[-1]
    after = since >= 0
    crack = np.exp(-np.maximum(since, 0) * 30) * (noise + np.sin(2 * np.pi * 640 * since))
    return after * (0.055 * trace * crack + 0.004 * max(trace - 0.4, 0) * noise)


def _hall(time: Array, draw: np.random.Generator) -> Array:
    """What else may be heard: a reversing forklift, an air gun, a dropped wrench."""
    other, since = np.zeros_like(time), time - draw.uniform(0, 0.8) * time[-1]
    kind = int(draw.integers(6))
    if kind == 0:
        other = 0.05 * np.sin(2 * np.pi * draw.uniform(900, 1500) * time) * (np.sin(2 * np.pi * 1.7 * since) > 0.2)
    elif kind == 1:
        other = 0.06 * draw.standard_normal(len(time), np.float32) * (since > 0) * np.exp(-((np.maximum(since, 0) / 0.5) ** 4))
    elif kind == 2:
        other = 0.15 * (since > 0) * np.exp(-np.maximum(since, 0) * 14) * np.sin(2 * np.pi * draw.uniform(1800, 2600) * since)
    return other


def write_sound(path: Path, samples: Array) -> None:
    """16-bit PCM WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())
