"""The photograph: the turned face of a flange under one lamp, with a bore, six holes and whatever a fault leaves on it."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from stages.datasets.station_media.evidence import Array
from stages.datasets.station_media.process import Scene

FACE, BORE, HOLES, HOLE = 0.9, 0.3, 0.62, 0.075  # radii: half the picture is 1
STRAW = np.array([1.0, 0.86, 0.62], np.float32)  # what heat leaves of red, green and blue, first
BURNT = np.array([0.55, 0.42, 0.62], np.float32)  # and in the end


def draw_picture(scene: Scene, size: int = 160) -> Array:
    """(size, size, 3) uint8."""
    draw, trace = scene.draw("picture"), scene.trace
    turn = draw.uniform(0, 2 * np.pi)
    centre = draw.normal(0, 0.012, 2)
    y, x = np.meshgrid(*((np.linspace(-1, 1, size) - shift).astype(np.float32) for shift in centre), indexing="ij")
    radius, angle = np.hypot(x, y), np.arctan2(y, x)

    rim = FACE + 0.006 * trace["bearing"] * np.sin(5 * (angle - turn))  # a worn bearing leaves a rim with five lobes
    off = 0.022 * trace["wobble"]
    bore = np.hypot(x - off * math.cos(turn * 3), y - off * math.sin(turn * 3))
    light = _lathe(scene, radius, angle, draw)
    light += 0.045 * trace["chatter"] * np.sin(42 * (angle - turn) + 26 * radius) * (radius > 0.42)
    light += _stains(trace["coolant"], size, draw)
    light += _gouge(trace["tool"], radius, angle, draw)
    light += _decoys(size, draw)
    light -= 0.75 * _crack(trace["crack"], turn, size, centre, draw)
    colour = light[..., None] * _heat(trace["burn"], radius, angle, draw)

    edge = np.minimum(np.abs(bore - BORE), np.abs(radius - rim))
    holes = np.full_like(radius, 9.0)
    for number in range(6):
        at = turn + number * np.pi / 3
        holes = np.minimum(holes, np.hypot(x - HOLES * math.cos(at), y - HOLES * math.sin(at)))
    chamfer = np.exp(-((edge / 0.018) ** 2)) + np.exp(-(((holes - HOLE) / 0.016) ** 2))
    colour += 0.22 * chamfer[..., None]
    colour += _burr(trace["burr"], bore, holes, angle, draw)[..., None]
    inside = _soft((rim - radius) * size / 2) * _soft((bore - BORE) * size / 2) * _soft((holes - HOLE) * size / 2)
    under = (
        0.13 + 0.02 * gaussian_filter(draw.standard_normal((size, size), np.float32), 1.5) + 0.05 * np.exp(-(((radius - FACE) / 0.08) ** 2))
    )
    picture = inside[..., None] * colour + (1 - inside[..., None]) * under[..., None] * np.array([0.95, 1.0, 1.08], np.float32)

    fall = 1 - 0.18 * (math.cos(scene.shift.lamp) * x + math.sin(scene.shift.lamp) * y)
    picture *= scene.shift.light * fall[..., None] * np.array(scene.shift.tint, np.float32)
    picture = gaussian_filter(picture, (0.5, 0.5, 0)) + 0.012 * draw.standard_normal(picture.shape, np.float32)
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def _soft(distance: Array) -> Array:
    """0 outside, 1 inside, over a pixel."""
    return np.clip(distance + 0.5, 0, 1)


def _lathe(scene: Scene, radius: Array, angle: Array, draw: np.random.Generator) -> Array:
    """Turning marks: fine rings, coarser with a worn tool, and the two bright fans that a lamp makes on them."""
    rings = np.interp(radius * 120, np.arange(200), draw.standard_normal(200)).astype(np.float32)
    feed = np.sin(radius * (150 + 20 * scene.programme) + draw.uniform(0, 6))
    fan = np.abs(np.cos(angle - scene.shift.lamp + draw.normal(0, 0.08))) ** 3
    return 0.4 + 0.3 * fan + (0.02 + 0.025 * scene.wear) * rings * (0.5 + fan) + 0.02 * feed


def _crack(trace: float, turn: float, size: int, centre: Array, draw: np.random.Generator) -> Array:
    """A dark jagged line that starts at a hole and branches when it is long; a hair on a sound part."""
    at = turn + int(draw.integers(6)) * np.pi / 3
    point = np.array([HOLES * np.cos(at), HOLES * np.sin(at)])
    heading, step = at + draw.normal(np.pi * (int(draw.integers(2)) - 0.5), 0.5), 0.035
    length = 0.03 + 0.14 * trace
    canvas = Image.new("L", (2 * size, 2 * size))
    pen, points = ImageDraw.Draw(canvas), [point + HOLE * np.array([np.cos(heading), np.sin(heading)])]
    for _ in range(max(int(length / step), 1)):
        heading += draw.normal(0, 0.4)
        points.append(points[-1] + step * np.array([np.cos(heading), np.sin(heading)]))
    path = [tuple(((one + centre + 1) * size).tolist()) for one in points]
    pen.line(path, fill=255, width=2 + min(int(trace), 3), joint="curve")
    if len(path) > 7:
        fork = heading + 0.9
        branch = [points[4] + number * step * np.array([np.cos(fork), np.sin(fork)]) for number in range(min(len(path) - 5, 9))]
        pen.line([tuple(((one + centre + 1) * size).tolist()) for one in branch], fill=220, width=2)
    dark = np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.8)).resize((size, size), Image.Resampling.BOX), np.float32)
    return dark / 255 * min(0.4 + 0.25 * trace, 1)


def _heat(trace: float, radius: Array, angle: Array, draw: np.random.Generator) -> Array:
    """(H, W, 3) factor: straw to blue where the face ran hot."""
    spot = np.cos(angle - draw.uniform(0, 2 * np.pi)) - 1
    patch = np.exp(spot / 0.6) * np.exp(-(((radius - draw.uniform(0.55, 0.7)) / 0.26) ** 2))
    share = np.clip(0.3 * trace * patch, 0, 0.95)[..., None]
    return 1 - np.minimum(share * 2, 1) * (1 - STRAW) - np.clip(share * 2 - 0.7, 0, 1) * (STRAW - BURNT)


def _stains(trace: float, size: int, draw: np.random.Generator) -> Array:
    """Pale blots where coolant dried."""
    field = np.asarray(Image.fromarray(draw.standard_normal((9, 9), np.float32)).resize((size, size), Image.Resampling.BICUBIC))
    return 0.16 * _soft((field - (2.0 - 0.36 * trace)) * 4)


def _gouge(trace: float, radius: Array, angle: Array, draw: np.random.Generator) -> Array:
    """A groove along a ring, with a bright lip: the tool's last mark."""
    at, middle, span = draw.uniform(0.42, 0.8), draw.uniform(-np.pi, np.pi), 0.15 + 0.22 * trace
    along = np.abs((angle - middle + np.pi) % (2 * np.pi) - np.pi) < span
    width = 0.010 + 0.003 * trace
    groove = np.exp(-(((radius - at) / width) ** 2)) - 0.6 * np.exp(-(((radius - at - 1.8 * width) / width) ** 2))
    return -min(0.09 * trace, 0.4) * groove * along


def _decoys(size: int, draw: np.random.Generator) -> Array:
    """What a careful eye lets pass: straight handling scratches, chips and dust."""
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(draw.poisson(2.5))):
        x, y, length, heading = draw.uniform(0, size), draw.uniform(0, size), draw.uniform(0.1, 0.4) * size, draw.uniform(0, np.pi)
        pen.line([x, y, x + length * np.cos(heading), y + length * np.sin(heading)], fill=int(draw.uniform(60, 160)))
    for _ in range(int(draw.poisson(6))):
        x, y, wide = draw.uniform(0, size), draw.uniform(0, size), draw.uniform(0.4, 1.4) * size / 160
        pen.ellipse([x - wide, y - wide, x + wide, y + wide], fill=int(draw.uniform(100, 255)))
    return 0.3 * np.asarray(canvas.filter(ImageFilter.GaussianBlur(0.5)), np.float32) / 255


def _burr(trace: float, bore: Array, holes: Array, angle: Array, draw: np.random.Generator) -> Array:
    """Bright teeth along the bore and the holes."""
    teeth = np.interp((angle + np.pi) * 14, np.arange(90), np.maximum(draw.normal(0.3, 1, 90), 0)).astype(np.float32)
    reach = 0.005 + 0.015 * trace * teeth
    ring = np.clip(1 - np.abs(bore - BORE) / reach, 0, 1) + np.clip(1 - np.abs(holes - HOLE) / (0.6 * reach), 0, 1)
    return 0.45 * min(trace / 2.5, 1) * ring
