"""The film of the arc: torch, wire, arc and pool over a plate that moves past, grey, eight frames a second, Motion JPEG in AVI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from stages.datasets.weld_media.evidence import Array
from stages.datasets.weld_media.process import Scene

RATE = 8  # frames a second
ARC = -0.05  # the height of the arc; half the frame is 1, and down is positive
PLATE = 0.14  # the far edge of the plate


def draw_film(scene: Scene, size: int = 64) -> Array:
    """(T, size, size) uint8."""
    draw = scene.draw("film")
    time = np.arange(int(scene.total_s * RATE)) / RATE
    since = time - scene.on_s
    burning = ((since >= 0) & (since < scene.arc_s)).astype(np.float32)
    trace = {name: scene.activity(name, since) * burning for name in scene.level}
    lean = draw.choice((-0.13, 0.13)) * trace["wander"] * (1 + 0.5 * np.sin(9 * since + draw.uniform(0, 6)))
    at = (0.03 * draw.standard_normal(len(time)) + lean).clip(-0.7, 0.7).astype(np.float32)
    flicker = burning * (1 + 0.08 * draw.standard_normal(len(time)).astype(np.float32))

    line = np.linspace(-1, 1, size, dtype=np.float32)
    film = _still(scene, time, line, draw)
    x, y = line[None, None, :] - at[:, None, None], line[None, :, None]
    _light(film, x, y, flicker, trace["flare"])
    _pool(film, x, y, burning, trace["sag"])
    film *= scene.session.exposure
    _haze(film, time, draw)
    _torch(film, line)
    _sparks(film, burning, trace["sparks"], at, draw)
    film += draw.normal(0, 0.008, (1, size, size)).astype(np.float32)
    return (np.clip(film, 0, 1) * 255).astype(np.uint8)


def _still(scene: Scene, time: Array, line: Array, draw: np.random.Generator) -> Array:
    """(T, H, W): the cell without an arc; the plate's marks pass by at the speed of the robot."""
    size = len(line)
    marks = gaussian_filter(draw.standard_normal((size, 4 * size)).astype(np.float32), (0.7, 1.2))
    moved = (time * scene.session.setting.robot_speed_cpm / 60 * size / 6).astype(int)
    columns = (moved[:, None] + np.arange(size)) % (4 * size)
    wall = (0.04 + 0.01 * line)[:, None] * np.ones(size, np.float32)
    plate = 0.1 + 0.03 * line[:, None] + 0.03 * marks[:, columns].transpose(1, 0, 2)
    seam = 0.05 * np.exp(-(((line - 0.3) / 0.03) ** 2))[:, None]
    return np.where(line[:, None] > PLATE, plate - seam, wall).astype(np.float32)


def _light(film: Array, x: Array, y: Array, flicker: Array, flare: Array) -> None:
    """The arc, its halo, and its light upon the plate."""
    wide = (0.010 * (1 + 0.7 * flare))[:, None, None]
    far = x * x + 0.8 * (y - ARC) ** 2
    film += (1.1 * flicker)[:, None, None] * np.exp(-far / wide)
    film += ((0.34 + 0.07 * flare) * flicker)[:, None, None] * np.exp(-far / 0.2)
    film += (0.28 * flicker)[:, None, None] * np.exp(-((x / 0.6) ** 2) - ((y - 0.3) / 0.22) ** 2)


def _pool(film: Array, x: Array, y: Array, burning: Array, sag: Array) -> None:
    """Molten steel behind the arc; where it falls through, it widens, darkens in the middle and a drop hangs below."""
    grow = (1 + 0.3 * sag)[:, None, None]
    ellipse = ((x + 0.12) / (0.26 * grow)) ** 2 + ((y - 0.24) / (0.085 * grow)) ** 2
    film += 0.55 * burning[:, None, None] * np.exp(-(ellipse**2))
    film -= np.minimum(0.25 * sag, 0.8)[:, None, None] * np.exp(-(((x + 0.12) / 0.12) ** 2) - ((y - 0.25) / 0.06) ** 2)
    film += np.minimum(0.28 * sag, 0.95)[:, None, None] * np.exp(-(((x + 0.12) / 0.07) ** 2) - ((y - 0.5 - 0.05 * sag[:, None, None]) / 0.16) ** 2)
    film += 0.12 * burning[:, None, None] * np.exp(-(((y - 0.26) / 0.05) ** 2)) * (x < -0.2)  # the bead still glows


def _haze(film: Array, time: Array, draw: np.random.Generator) -> None:
    """Smoke that drifts through the picture at some time; no defect."""
    height = np.linspace(1, 0.3, film.shape[1], dtype=np.float32)[:, None]
    waves = np.sin(np.linspace(0, 5, film.shape[2])[None, :] + draw.uniform(0, 6) + 1.3 * time[:, None])
    thick = np.exp(-(((time - draw.uniform(0, time[-1])) / 1.2) ** 2)) * draw.uniform(0, 0.14)
    share = (thick[:, None] * (1 + 0.5 * waves)).astype(np.float32)[:, None, :] * height
    film *= 1 - share
    film += 0.3 * share


def _torch(film: Array, line: Array) -> None:
    """Nozzle and wire, dark before the light."""
    high, across = line[:, None], np.abs(line)[None, :]
    nozzle = np.clip((0.26 - 0.16 * np.clip(high + 1, 0, 0.6) - across) * 30, 0, 1) * (high < -0.42)
    wire = np.clip((0.035 - across) * 60, 0, 1) * (high >= -0.42) * (high < ARC - 0.08)
    cover = np.maximum(nozzle, wire).astype(np.float32)
    film *= 1 - cover
    film += cover * (0.16 + 0.1 * np.exp(-(((line - 0.08) / 0.05) ** 2)))[None, None, :]


def _sparks(film: Array, burning: Array, trace: Array, at: Array, draw: np.random.Generator) -> None:
    """Drops of steel on their parabolas, a few always."""
    size, frame = film.shape[1], np.repeat(np.arange(len(film)), draw.poisson(burning * (2.0 + 11.0 * trace)))
    heading, speed = draw.uniform(-np.pi, 0, len(frame)), draw.uniform(0.5, 1.6, len(frame))
    start, bright = draw.uniform(0.05, 0.5, len(frame)), draw.uniform(0.6, 1.0, len(frame)).astype(np.float32)
    for step in np.linspace(0, 0.13, 8):  # as far as it flies while the shutter is open
        passed = start + step
        x = at[frame] + speed * np.cos(heading) * passed
        y = ARC + 0.1 + speed * np.sin(heading) * passed + 1.4 * passed**2
        column, row = ((x + 1) / 2 * size).astype(int), ((y + 1) / 2 * size).astype(int)
        seen = (column >= 0) & (column < size) & (row >= 0) & (row < size)
        np.maximum.at(film, (frame[seen], row[seen], column[seen]), bright[seen])


def write_film(path: Path, frames: Array) -> None:
    """Motion JPEG in AVI, one thread, without dates: the same frames give the same bytes with the same libraries."""
    import av

    with av.open(str(path), "w", format="avi", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mjpeg", rate=RATE, options={"qmin": "4", "qmax": "4", "threads": "1", "huffman": "default"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuvj420p"
        stream.codec_context.flags |= 0x800000  # AV_CODEC_FLAG_BITEXACT: no version string
        no_colour = np.full((frames.shape[1] // 2, frames.shape[2]), 128, np.uint8)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.concatenate([frame, no_colour]), format="yuvj420p")))
        container.mux(stream.encode())
