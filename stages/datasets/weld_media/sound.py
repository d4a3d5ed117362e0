"""The sound: an arc that crackles in its own rhythm, in a hall that is never quiet; one microphone, 16 kHz, 16 bit, FLAC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.signal import lfilter, oaconvolve

from stages.datasets.noise import band
from stages.datasets.weld_media.evidence import Array
from stages.datasets.weld_media.process import Scene

RATE = 16_000  # samples a second


def draw_sound(scene: Scene) -> Array:
    """(n,) float32 in -1..1."""
    draw, count = scene.draw("sound"), int(scene.total_s * RATE)
    time = np.arange(count, dtype=np.float32) / np.float32(RATE)
    since = time - np.float32(scene.on_s)
    burning = np.clip(since * 40, 0, 1) * np.clip((scene.arc_s - since) * 25, 0, 1)
    slow = np.arange(0, scene.total_s + 0.02, 0.02)  # envelopes are smooth: 50 points a second are enough

    def envelope(trace: str) -> Array:
        return np.interp(time, slow, scene.activity(trace, slow - scene.on_s)).astype(np.float32)

    noise = draw.standard_normal((2, count), np.float32)
    voltage = scene.session.setting.voltage_v
    beat = 2 * np.pi * (62 + 3 * (voltage - 24)) * (time + 0.004 * np.cumsum(noise[1]) / np.float32(RATE) ** 0.5)
    short = np.square(np.square(np.square(np.sin(beat / 2))))  # the wire dips into the pool
    dips = 1 - np.clip(0.3 * envelope("flutter"), 0, 0.92) * (np.sin(2 * np.pi * draw.uniform(6, 9) * time) > 0)
    arc = (0.45 + 1.1 * short) * dips * band(noise[0], 300, 3200, RATE)
    arc += 0.28 * envelope("hiss") * band(noise[1], 5200, 7400, RATE)
    arc += 0.5 * envelope("hum") * np.sin(2 * np.pi * draw.uniform(190, 230) * time + 0.5 * np.sin(beat / 8))
    arc += _pops(envelope("crackle"), draw)
    sound = 0.02 * burning * arc + 0.0025 * band(noise[1], 60, 700, RATE) + _hall(time, draw)
    dull = 0.35 * scene.session.colour
    sound = lfilter([1 - dull], [1, -dull], sound).astype(np.float32)
    return np.clip(sound * scene.session.gain * np.exp(draw.normal(0, 0.05)), -1, 1)


def _pops(level: Array, draw: np.random.Generator) -> Array:
    """Drops burst out of the pool: short clicks of 2 to 4 kHz, a few where all is well."""
    rate = (1.2 + 11 * level) / RATE
    hits = (draw.random(len(level), np.float32) < rate).astype(np.float32)
    hits[hits > 0] = draw.exponential(1.0, int(hits.sum()))
    tail = np.arange(130, dtype=np.float32) / RATE
    ring = np.exp(-tail * 700) * np.sin(2 * np.pi * draw.uniform(2400, 3400) * tail)
    return 5.0 * oaconvolve(hits, ring)[: len(level)]


def _hall(time: Array, draw: np.random.Generator) -> Array:
    """What else may be heard: a hammer, a reversing forklift, an air gun."""
    since, kind = time - draw.uniform(0, 0.9) * time[-1], int(draw.integers(6))
    late = np.maximum(since, 0)
    if kind == 0:
        return 0.05 * (since > 0) * np.exp(-late * 16) * np.sin(2 * np.pi * draw.uniform(900, 1600) * since)
    if kind == 1:
        return 0.006 * np.sin(2 * np.pi * draw.uniform(1000, 1400) * time) * (np.sin(2 * np.pi * 1.4 * since) > 0.2)
    if kind == 2:
        return 0.008 * draw.standard_normal(len(time), np.float32) * (since > 0) * np.exp(-((late / 0.6) ** 4))
    return np.zeros_like(time)


def write_sound(path: Path, samples: Array) -> None:
    """16-bit FLAC without dates or version strings: the same samples give the same bytes with the same libraries."""
    import av

    pcm = (samples * 32767).round().astype(np.int16)
    with av.open(str(path), "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono", options={"compression_level": "5"})
        stream.codec_context.flags |= 0x800000  # AV_CODEC_FLAG_BITEXACT
        stream.codec_context.format = "s16"
        for start in range(0, len(pcm), 4096):
            frame = av.AudioFrame.from_ndarray(pcm[None, start : start + 4096], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
