"""Damage that any surface can take (stain, dent, groove, cover), and the exact mask of what was changed."""

import numpy as np
from scipy import ndimage

from stages.datasets.scenes.marks import Point, blob, wander
from stages.datasets.scenes.surface import SIZE, Field, Mask, Surface, blend, cloud, colour, halve

LEVELS = (0.45, 0.7, 1.0)  # how strong a defect is: faint, plain, gross

LEAST_ALBEDO, LEAST_HEIGHT = 0.012, 0.25  # a smaller change of albedo, or of height in canvas pixels, is not to be seen
LEAST_PIXELS = 24  # a smaller mask, in image pixels, is drawn again


def size_of(level: float) -> float:
    """Radius in canvas pixels of a round defect."""
    return 16 + 18 * level


def somewhere(rng: np.random.Generator, margin: float = 70) -> Point:
    """A point (y, x) of the canvas at least `margin` from its border."""
    y, x = rng.uniform(margin, SIZE - margin, 2)
    return y, x


def stain(rng: np.random.Generator, surface: Surface, centre: Point, radius: float, paint: str, strength: float) -> Surface:
    """A liquid that dried: it tints by absorption, blotchy inside and darker along its edge."""
    wet = blob(rng, centre, radius, ragged=0.16, soft=0.5)
    edge = 4 * wet * (1 - wet)
    density = (0.75 * wet + 0.35 * edge) * np.clip(1 + 0.25 * cloud(rng, 12, 2), 0.3, 1.4) * np.float32(strength)
    tint = 1 - np.minimum(density, 0.9)[..., None] * (1 - colour(paint))
    return surface._replace(albedo=surface.albedo * tint)


def dent(rng: np.random.Generator, surface: Surface, centre: Point, level: float, depth: float) -> Surface:
    """A knock: a smooth hollow with a raised lip. Only the relief changes."""
    hollow = blob(rng, centre, 0.8 * size_of(level), ragged=0.08, soft=1.4)
    lip = blob(rng, centre, 1.15 * size_of(level), ragged=0.08, soft=0.9) - hollow
    return surface._replace(height=surface.height + np.float32(depth * level) * (0.3 * np.maximum(lip, 0) - hollow))


def groove(surface: Surface, alpha: Field, paint: str, strength: float, depth: float) -> Surface:
    """A cut along `alpha`: its ground takes the colour of `paint` by `strength`, and lies `depth` canvas pixels deeper."""
    albedo = blend(surface.albedo, colour(paint), alpha * np.float32(strength))
    return surface._replace(albedo=albedo, height=surface.height - alpha * np.float32(depth))


def fork(rng: np.random.Generator, start: Point, heading: float, length: float) -> list[list[Point]]:
    """Paths of a crack with one side branch."""
    trunk = wander(rng, start, heading, length, 0.28)
    knot = trunk[len(trunk) // 2]
    return [trunk, wander(rng, knot, heading + rng.choice((-0.9, 0.9)), 0.35 * length, 0.3)]


def difference(clean: Surface, damaged: Surface) -> Mask:
    """Image pixels (SIZE/2, SIZE/2) whose albedo or relief was changed, pores closed."""
    tinted = np.abs(clean.albedo - damaged.albedo) > LEAST_ALBEDO
    changed = tinted[..., 0] | tinted[..., 1] | tinted[..., 2] | (np.abs(clean.height - damaged.height) > LEAST_HEIGHT)
    small = halve(changed.astype(np.float32)) >= 0.5
    return ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(small, 3), np.ones((3, 3)), 2))[3:-3, 3:-3]
