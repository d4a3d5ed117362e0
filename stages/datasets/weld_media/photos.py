"""The photographs: the finished bead on its plate under one lamp, from five angles, each with the paper label that the release has.

The bead is made once as a map of height and colour, along it u in 0..1 as the arc went, across it v with the plate's edges at -1 and 1. Light falls on
that map from where it stands for the angle, and the angle's perspective brings it into the picture.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_matrix

from stages.datasets.weld_media.evidence import Array
from stages.datasets.weld_media.process import VIEWS, Scene

LONG, ACROSS = 288, 128  # cells of the map; u from -MARGIN to 1 + MARGIN
MARGIN = 0.06
WIDTH = 0.3  # of half the bead
LABEL = (0.02, 0.01, 0.36, 0.155)  # left, top, right and bottom of the paper label, of the picture: below LABEL_END there is nothing of it
LABEL_END = 1 / 6
CORNERS = (  # where the plate's four corners (u, v) = (0, -1), (1, -1), (1, 1), (0, 1) come to lie, of the picture
    ((0.06, 0.24), (0.94, 0.24), (0.94, 0.92), (0.06, 0.92)),
    ((-0.08, 0.20), (0.90, 0.38), (0.90, 0.78), (-0.08, 1.02)),
    ((0.10, 0.38), (1.08, 0.20), (1.08, 1.02), (0.10, 0.78)),
    ((0.13, 0.32), (0.87, 0.32), (1.06, 0.95), (-0.06, 0.95)),
    ((0.16, 0.20), (0.98, 0.34), (0.82, 1.00), (-0.02, 0.74)),
)
LIGHTS = ((0.3, -0.75), (0.75, -0.45), (-0.75, -0.45), (0.1, 0.85), (-0.45, -0.7))  # from where it falls, in u and v


def draw_photos(scene: Scene, size: int = 96) -> Array:
    """(VIEWS, size, size, 3) uint8, without labels."""
    draw = scene.draw("photos")
    u = np.linspace(-MARGIN, 1 + MARGIN, LONG, dtype=np.float32)[:, None]
    v = np.linspace(-1, 1, ACROSS, dtype=np.float32)[None, :]
    trace = {name: scene.activity(name, u * scene.arc_s) for name in scene.level}
    height, colour = _bead(u, v, trace, draw)
    dark = np.zeros((LONG, ACROSS), np.float32)
    _pores(dark, scene, draw)
    _hole(height, dark, u, v, scene, draw)
    dark = np.maximum(dark, _crack(scene, draw))
    _balls(height, scene, draw)
    slope = np.gradient(height, axis=0) * 28, np.gradient(height, axis=1) * 20
    colour *= 1 - np.minimum(dark, 0.93)[..., None]
    return np.stack([_photo(scene, slope, colour, view, size, draw) for view in range(VIEWS)])


def _bead(u: Array, v: Array, trace: dict[str, Array], draw: np.random.Generator) -> tuple[Array, Array]:
    """Height (LONG, ACROSS) and colour (LONG, ACROSS, 3) of plate and bead, with the traces that change its shape."""
    wander = np.interp(u[:, 0], np.linspace(-0.1, 1.1, 25), 0.008 * draw.standard_normal(25))[:, None].astype(np.float32)
    width = WIDTH * (1 + 0.14 * trace["bulge"] + wander)
    ends = 1 / (1 + np.exp(-np.clip(np.minimum(u, 1 - u) * 160, -40, 40)))
    width = np.maximum(width * np.sqrt(ends), 0.01)
    across = np.clip(1 - ((v - wander) / width) ** 2, 0, 1)
    ripple = np.sin(2 * np.pi * (draw.uniform(30, 36) * (u + 0.1 * v * v) + 0.4 * np.cumsum(wander, 0)))
    height = 0.14 * (1 + 0.3 * trace["bulge"]) * np.sqrt(across + 1e-6) * ends + 0.006 * ripple * (across > 0)
    toe = np.exp(-(((np.abs(v - wander) - width) / 0.055) ** 2)) * ends
    height -= 0.045 * trace["groove"] * toe
    brushed = gaussian_filter(draw.standard_normal((LONG, ACROSS)).astype(np.float32), (6, 0.6))
    height += 0.012 * brushed * (across <= 0)
    steel, bead = np.array([0.52, 0.53, 0.55], np.float32), np.array([0.62, 0.61, 0.6], np.float32)
    away = np.maximum(np.abs(v - wander) - width, 0)
    straw, blue = np.exp(-(((away - 0.2) / 0.07) ** 2)) * ends, np.exp(-(((away - 0.1) / 0.06) ** 2)) * ends
    colour = np.where((across > 0)[..., None], bead, steel)
    colour = colour * (1 - straw[..., None] * np.array([0.05, 0.18, 0.42], np.float32)) * (1 - blue[..., None] * np.array([0.45, 0.3, 0.08], np.float32))
    colour *= 1 - np.minimum(0.14 * trace["groove"] * toe, 0.8)[..., None]
    return height.astype(np.float32), colour.astype(np.float32)


def _places(scene: Scene, trace: str, each: float, always: float, draw: np.random.Generator) -> tuple[Array, Array]:
    """u of so many marks for a trace, `each` for one of its level and `always` anywhere; and the level there."""
    level = scene.level[trace]
    count = draw.poisson(each * level)
    width = 0.28 / len(level)
    near = np.repeat(scene.moments / scene.arc_s, count) + width * draw.standard_normal(count.sum())
    stray = draw.uniform(0.02, 0.98, draw.poisson(always))
    return np.clip(np.concatenate([near, stray]), 0.01, 0.99), np.concatenate([np.repeat(level, count), np.zeros(len(stray))])


def _cells(u: Array, v: Array) -> tuple[Array, Array]:
    return (u + MARGIN) / (1 + 2 * MARGIN) * (LONG - 1), (v + 1) / 2 * (ACROSS - 1)


def _discs(target: Array, u: Array, v: Array, radius: Array, value: float, round_top: bool = False) -> None:
    """Put discs on a map, in place, the larger value winning. radius: in cells along; half of it in cells across, about as the plate is scaled."""
    rows, columns = _cells(u, v)
    for row, column, reach in zip(rows.tolist(), columns.tolist(), radius.tolist(), strict=True):
        top, left = max(int(row - reach - 1), 0), max(int(column - reach - 1), 0)
        part = target[top : int(row + reach + 2), left : int(column + reach + 2)]
        far = (np.arange(part.shape[0])[:, None] + top - row) ** 2 + (np.arange(part.shape[1])[None, :] + left - column) ** 2
        inside = np.clip(1 - far / reach**2, 0, 1)
        np.maximum(part, value * np.sqrt(inside) if round_top else value * np.clip(inside * 3, 0, 1), out=part)


def _pores(dark: Array, scene: Scene, draw: np.random.Generator) -> None:
    """Open pores in the bead."""
    u, level = _places(scene, "pores", 3.0, 0.8, draw)
    _discs(dark, u, 0.17 * draw.standard_normal(len(u)), draw.uniform(1.6, 3.2, len(u)) + 0.3 * level, 0.85)


def _balls(height: Array, scene: Scene, draw: np.random.Generator) -> None:
    """Drops of steel that froze on the plate."""
    u, level = _places(scene, "balls", 3.5, 2.5, draw)
    v = draw.choice((-1.0, 1.0), len(u)) * draw.uniform(0.36, 0.92, len(u))
    _discs(height, np.clip(u + 0.03 * draw.standard_normal(len(u)), 0, 1), v, draw.uniform(1.8, 3.4, len(u)) + 0.25 * level, 0.11, round_top=True)


def _hole(height: Array, dark: Array, u: Array, v: Array, scene: Scene, draw: np.random.Generator) -> None:
    """The bead fell through: a dark pit with a raised rim."""
    for moment, level in zip((scene.moments / scene.arc_s).tolist(), scene.level["hole"].tolist(), strict=True):
        if level > 0:
            radius, middle = 0.010 + 0.011 * level, moment + 0.01 * draw.standard_normal()
            far = ((u - middle) / radius) ** 2 + ((v - 0.04 * draw.standard_normal()) / (4.2 * radius)) ** 2
            height += 0.03 * np.exp(-((np.sqrt(far) - 1.25) ** 2) * 9) - 0.12 * np.exp(-(far**2))
            np.maximum(dark, 0.92 * np.exp(-(far**2)), out=dark)


def _crack(scene: Scene, draw: np.random.Generator) -> Array:
    """(LONG, ACROSS) darkness of jagged lines along the bead."""
    canvas = Image.new("L", (ACROSS * 2, LONG * 2))
    pen = ImageDraw.Draw(canvas)
    for moment, level in zip((scene.moments / scene.arc_s).tolist(), scene.level["crack"].tolist(), strict=True):
        if level > 0:
            length, steps = 0.03 + 0.035 * level, 9
            u = moment + length * (np.linspace(-0.5, 0.5, steps) + 0.02 * draw.standard_normal(steps))
            rows, columns = _cells(u, 0.06 * np.cumsum(draw.standard_normal(steps)) * 0.7 + 0.05 * draw.standard_normal())
            points = [(2 * column, 2 * row) for column, row in zip(columns.tolist(), rows.tolist(), strict=True)]
            pen.line(points, fill=min(110 + int(45 * level), 255), width=2 + min(int(level * 1.2), 5), joint="curve")
    return np.asarray(canvas.resize((ACROSS, LONG), Image.Resampling.BOX), np.float32) / 255 * 0.92


def _photo(scene: Scene, slope: tuple[Array, Array], colour: Array, view: int, size: int, draw: np.random.Generator) -> Array:
    """One angle: light, perspective, dust, a glare, noise."""
    session, (towards_u, towards_v) = scene.session, LIGHTS[view]
    bright = 0.78 - towards_u * slope[0] * 0.55 - towards_v * slope[1] * 0.55
    shine = np.clip(0.9 - (slope[0] - 0.25 * towards_u) ** 2 - (slope[1] + 0.25 * towards_v) ** 2, 0, 1) ** 8
    lit = colour * np.clip(bright, 0.12, 1.7)[..., None] + 0.16 * (shine * (colour.mean(2) > 0.3))[..., None]
    weights = _perspective(view, size)
    picture = (weights @ lit.reshape(-1, 3)).reshape(size, size, 3)
    picture += (1 - np.asarray(weights.sum(1)).reshape(size, size, 1)) * np.array([0.16, 0.15, 0.15], np.float32)  # the table
    picture += _glare(size, draw)[..., None]
    picture *= session.light * draw.uniform(0.94, 1.06) * np.array(session.tint, np.float32)
    picture += 0.012 * draw.standard_normal(picture.shape, np.float32)
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def _glare(size: int, draw: np.random.Generator) -> Array:
    """A lamp that mirrors somewhere in the plate, in some pictures; no defect."""
    line = np.linspace(0, 1, size, dtype=np.float32)
    x, y = draw.uniform(0.1, 0.9), draw.uniform(0.3, 0.9)
    strength = draw.uniform(0.1, 0.3) * (draw.random() < 0.25)
    return strength * np.exp(-(((line[None, :] - x) / 0.12) ** 2) - ((line[:, None] - y) / 0.08) ** 2)


@cache
def _perspective(view: int, size: int) -> csr_matrix:
    """(size * size, LONG * ACROSS): how much each cell of the map counts in each pixel, the mean of four places in it; 0 where there is no plate."""
    plate = np.array(((0, -1), (1, -1), (1, 1), (0, 1)), np.float64) * (1 + 2 * MARGIN, 1) - (MARGIN, 0)
    equations: list[list[float]] = []
    for (x, y), (u, v) in zip(CORNERS[view], plate.tolist(), strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    camera = np.append(np.linalg.solve(np.array(equations), plate.ravel()), 1.0).reshape(3, 3)
    pixel, weights = np.arange(size * size), csr_matrix((size * size, LONG * ACROSS), dtype=np.float32)
    for down, right in ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)):
        u, v, w = camera @ np.stack([(pixel % size + right) / size, (pixel // size + down) / size, np.ones(size * size)])
        row, column = _cells(u / w, v / w)
        on = (row >= 0) & (row < LONG - 1) & (column >= 0) & (column < ACROSS - 1)
        row, column, at = row[on], column[on], pixel[on]
        top, left = row.astype(int), column.astype(int)
        for below in (0, 1):
            for beside in (0, 1):
                share = np.abs(1 - below - (row - top)) * np.abs(1 - beside - (column - left)) / 4
                cell = (top + below) * ACROSS + left + beside
                weights += csr_matrix((share.astype(np.float32), (at, cell)), shape=weights.shape)
    return weights


def with_label(picture: Array, code: str) -> Array:
    """The paper label at the border with the class code in print: the trap of the release, not part of what a defect leaves."""
    size = len(picture)
    canvas = Image.fromarray(picture)
    left, top, right, bottom = (round(part * size) for part in LABEL)
    ImageDraw.Draw(canvas).rectangle((left, top, right, bottom), fill=(233, 230, 220))
    canvas.paste(_print(code, right - left - 2, bottom - top - 2), (left + 1, top + 1))
    return np.asarray(canvas)


@cache
def _print(code: str, width: int, height: int) -> Image.Image:
    """The code, scaled to the label."""
    from PIL import ImageFont

    font = ImageFont.load_default_imagefont()
    paper = Image.new("RGB", (13, 11), (233, 230, 220))
    ImageDraw.Draw(paper).text((1, 0), code, fill=(20, 20, 24), font=font)
    return paper.resize((width, height), Image.Resampling.BICUBIC)


def write_photo(path: Path, picture: Array) -> None:
    Image.fromarray(picture).save(path, quality=90)
