"""The film: the flange turns in its chuck, the tool cuts at its rim, coolant runs and sparks fly; two seconds, eight frames a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stages.datasets.station_media.evidence import Array
from stages.datasets.station_media.process import Scene

RATE = 8  # frames a second
CONTACT = (0.78, 0.0)  # where the tool meets the rim; half the frame is 1
ENCODING = {
    "qp": "24",
    "preset": "veryfast",
    "threads": "1",
    "x264-params": "rc-lookahead=0:mbtree=0:bframes=0:scenecut=0",
}  # no look ahead:
# with it the same frames give other bytes from time to time


def draw_film(scene: Scene, frames: int = 16, size: int = 96) -> Array:
    """(frames, size, size, 3) uint8."""
    draw, trace = scene.draw("film"), scene.trace
    time = np.arange(frames) / RATE
    spin = 2 * np.pi * (0.55 + 0.25 * scene.programme) * time * (1 - 0.1 * scene.load) + draw.uniform(0, 2 * np.pi)
    still = np.linspace(-1, 1, size, dtype=np.float32)
    sway = draw.normal(0, 0.01, (frames, 2)) + 0.022 * trace["wobble"] * np.stack([np.cos(spin), np.sin(spin)], 1)
    x = still[None, None, :] - sway[:, 0, None, None].astype(np.float32)
    y = still[None, :, None] - sway[:, 1, None, None].astype(np.float32)
    light = _face(x, y, spin.astype(np.float32), scene, size)
    flicker = scene.shift.light * (1 + 0.03 * draw.standard_normal(frames))
    film = light[..., None] * (flicker[:, None] * np.array(scene.shift.tint)).astype(np.float32)[:, None, None, :]

    broken = int(draw.integers(frames // 4, max(3 * frames // 4, frames // 4 + 1)))
    _glow(film, still, trace["burn"], draw)
    _haze(film, trace["coolant"], draw)
    film += draw.normal(0, 0.01, (1, size, size, 1)).astype(np.float32)
    still_film = (np.clip(film, 0, 1, out=film) * 255).astype(np.uint8)
    return np.stack([_foreground(still_film[at], at, broken, scene, draw) for at in range(frames)])


def _face(x: Array, y: Array, spin: Array, scene: Scene, size: int) -> Array:
    """(T, H, W) light of the chuck with its three jaws, and the part with holes and a chalk mark. spin: (T,) float32."""
    radius = np.hypot(x, y) + np.float32(1e-6)

    def cosine(at: Array) -> Array:
        """Of the angle between a pixel and the direction `at`, without an arc tangent."""
        return (x * np.cos(at) + y * np.sin(at)) / radius

    along, lamp = cosine(spin[:, None, None]), cosine(np.float32(scene.shift.lamp))
    thrice = (4 * along * along - 3) * along
    part = 0.26 + 0.32 * lamp * lamp + 0.02 * np.sin(radius * 60)
    part -= 0.3 * np.exp(-((7.5 * (thrice - 1)) ** 2) - ((radius - 0.5) / 0.05) ** 2)  # holes
    part += 0.25 * np.clip(1.5 - (1 - along) * 250, 0, 1) * (radius > 0.56) * (radius < 0.72)  # chalk
    jaws = np.where(thrice < -0.8, np.float32(0.28), np.float32(0.16))
    light = np.where(radius < 0.78, part * np.clip(1.1 - (radius - 0.74) * 6, 0.8, 1), 0.07 + 0.03 * y)
    light = np.where(radius < 0.34, jaws, light)
    return light + 0.12 * np.clip(1.3 - np.abs(radius - 0.34) * (size * 0.8), 0, 1)


def _glow(film: Array, still: Array, trace: float, draw: np.random.Generator) -> None:
    """The hot zone at the tool, breathing."""
    near = np.exp(-((still - CONTACT[0]) ** 2) / (0.01 + 0.012 * trace)), np.exp(-((still - CONTACT[1]) ** 2) / (0.01 + 0.012 * trace))
    spot = near[1][:, None, None] * near[0][:, None] * np.array([1.0, 0.42, 0.08], np.float32)
    beat = 0.17 * trace * (1 + 0.25 * draw.standard_normal(len(film)))
    right = slice(len(still) // 2, None)  # the other half is dark
    film[:, :, right] += beat[:, None, None, None].astype(np.float32) * spot[:, right]


def _haze(film: Array, trace: float, draw: np.random.Generator) -> None:
    """Smoke where coolant is short: pale, thicker above the tool, drifting."""
    size = film.shape[1]
    column = np.linspace(1, 0, size, dtype=np.float32)[:, None] * np.linspace(0.2, 1, size, dtype=np.float32)
    drift = np.sin(np.linspace(0, 9, size)[None, :] + draw.uniform(0, 6) + np.arange(len(film))[:, None] * 0.7)
    thick = (0.09 * max(trace - 0.2, 0) * (1 + 0.4 * drift[:, None, :])).astype(np.float32)
    share = np.minimum(thick * column, 0.7)[..., None]
    film *= 1 - share
    film += share * 0.72


def _foreground(frame: Array, at: int, broken: int, scene: Scene, draw: np.random.Generator) -> Array:
    """One frame with tool, coolant and sparks drawn over it."""
    size, trace = len(frame), scene.trace
    picture = Image.fromarray(frame)
    pen, half = ImageDraw.Draw(picture), size / 2

    def put(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [((px + 1) * half, (py + 1) * half) for px, py in points]

    gone = 0.05 * max(trace["tool"] - 0.8, 0) if at >= broken else 0.0  # what broke off
    tip = CONTACT[0] - 0.02 + gone
    pen.polygon(put((tip, 0.0), (tip + 0.1, -0.11), (1.1, -0.14), (1.1, 0.14), (tip + 0.1, 0.08)), fill=(92, 94, 100))
    pen.polygon(put((tip, 0.0), (tip + 0.1, -0.11), (tip + 0.14, 0.02)), fill=(176, 150, 70))
    pen.line(put((0.62, -1.05), (0.72, -0.72)), fill=(70, 74, 82), width=max(size // 20, 2))
    for _ in range(int(draw.poisson(26 / (1 + 0.8 * trace["coolant"])))):
        fall, spread = draw.random(), draw.normal(0, 0.035)
        px, py = 0.72 + 0.06 * fall + spread * (0.4 + fall), -0.72 + 0.75 * fall
        pen.line(put((px, py), (px + 0.005, py + 0.07)), fill=(150, 185, 215))
    burst = 9 * trace["tool"] * 0.75 ** (at - broken) if at >= broken else 0.0
    for _ in range(int(draw.poisson(3 + 4 * scene.wear + 4 * scene.load + 1.2 * trace["burn"] + burst))):
        heading, reach = draw.normal(2.0, 0.5 + 0.03 * burst), draw.uniform(0.08, 0.45)
        start = draw.uniform(0, 0.5) * reach
        dx, dy = np.cos(heading), np.sin(heading)
        points = [
            (CONTACT[0] + far * dx, CONTACT[1] + far * dy + 0.6 * far * far) for far in (start, start + 0.3 * reach, start + 0.6 * reach)
        ]
        pen.line(put(*points), fill=(255, int(draw.uniform(150, 245)), int(draw.uniform(40, 150))), width=1)
    return np.asarray(picture)


def write_film(path: Path, frames: Array) -> None:
    """H.264 in MP4, one thread, without dates: the same frames give the same bytes with the same libraries."""
    import av

    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=RATE, options=ENCODING)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.flags |= 0x800000  # AV_CODEC_FLAG_BITEXACT: no version string
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
