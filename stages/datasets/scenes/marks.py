"""Marks that fall on any surface: dust and fibres, which are no defects, and the blobs and strokes that defects are made of."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stages.datasets.scenes.surface import SIZE, Field, Surface, blend, colour, smoothstep

Point = tuple[float, float]  # (y, x) in canvas pixels


def blob(rng: np.random.Generator, centre: Point, radius: float, ragged: float = 0.18, soft: float = 0.25) -> Field:
    """Alpha of an irregular round patch: 1 inside, 0 outside, with an edge of `soft` times the radius."""
    alpha = np.zeros((SIZE, SIZE), np.float32)
    reach = int(radius * (1.3 + 2 * ragged + soft)) + 2
    rows, columns = (slice(max(0, int(c) - reach), min(SIZE, int(c) + reach)) for c in centre)
    y, x = np.mgrid[rows, columns].astype(np.float32)
    y, x = y - np.float32(centre[0]), x - np.float32(centre[1])
    angle, distance = np.arctan2(y, x), np.hypot(x, y)
    edge = sum(rng.normal(0, ragged / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 7))
    inside = radius * (1 + edge) - distance
    alpha[rows, columns] = smoothstep(-soft * radius / 2, soft * radius / 2, inside.astype(np.float32))
    return alpha


def wander(rng: np.random.Generator, start: Point, heading: float, length: float, wobble: float, step: float = 5.0) -> list[Point]:
    """Points of a path that keeps its heading but for a random wobble (radians a step)."""
    turns = heading + np.cumsum(rng.normal(0, wobble, max(2, int(length / step))))
    return list(zip(start[0] + np.cumsum(np.sin(turns)) * step, start[1] + np.cumsum(np.cos(turns)) * step))


def stroke(paths: list[list[Point]], width: float, soft: float = 0.7) -> Field:
    """Alpha of lines through the points of each path, with edges blurred by `soft` canvas pixels."""
    layer = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(layer)
    for path in paths:
        pen.line([(x, y) for y, x in path], fill=255, width=max(1, round(width)), joint="curve")
    return np.asarray(layer.filter(ImageFilter.GaussianBlur(soft)), np.float32) * np.float32(1 / 255)


def litter(rng: np.random.Generator, surface: Surface) -> Surface:
    """The surface with 3 to 11 specks of dust and short fibres on it: every picture has them, good or bad."""
    layer = Image.new("L", (SIZE, SIZE), 128)
    pen = ImageDraw.Draw(layer)
    for _ in range(rng.integers(3, 12)):
        y, x = rng.uniform(8, SIZE - 8, 2)
        shade = int(128 + rng.choice((-1, 1)) * 127 * rng.uniform(0.25, 0.6))
        if rng.random() < 0.3:
            path = wander(rng, (y, x), rng.uniform(0, 6.3), rng.uniform(14, 42), 0.35, 3.0)
            pen.line([(px, py) for py, px in path], fill=shade, width=1)
        else:
            r = rng.uniform(1.0, 3.2)
            pen.ellipse((x - r, y - r * rng.uniform(0.6, 1), x + r, y + r), fill=shade)
    amount = (np.asarray(layer, np.float32) - 128) * np.float32(1 / 128)
    dirty = np.flatnonzero(amount)
    albedo = surface.albedo.copy()
    spots = albedo.reshape(-1, 3)
    here, density = spots[dirty], np.abs(amount.ravel()[dirty])
    spots[dirty] = blend(here, np.where((amount.ravel()[dirty] > 0)[:, None], colour("e8e4dc"), 0 * here), density)
    return surface._replace(albedo=albedo)
