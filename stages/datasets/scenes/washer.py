"""Washer: a turned steel flange with eight countersunk holes on a rubber mat.

Everything follows from two distances: from the middle of the disc (rims, steps, tool marks), and from the nearest hole.
The turning marks run around the disc, so a lamp makes two bright sectors on it, as on any real one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.scenes.defects import dent, groove, size_of
from stages.datasets.scenes.marks import blob, stroke, wander
from stages.datasets.scenes.surface import SIZE, Field, Surface, blend, cloud, colour, enlarge, smoothstep, turned

STRUCTURAL = ("scratch", "dent", "rust", "nick")
LOGICAL = ("missing_hole", "shifted_hole")

RIM, BORE, CIRCLE, HOLE, HOLES = 198.0, 72.0, 138.0, 19.0, 8  # canvas pixels; CIRCLE carries the holes
RUBBER = np.array([0.085, 0.089, 0.097], np.float32)  # linear albedo of the mat
STEPS = (96.0, 178.0)  # radii of the raised land between two turned steps


class Washer(NamedTuple):
    centre: tuple[float, float]  # (y, x)
    angle: float  # radians
    holes: NDArray[np.float64]  # angle of each hole, radians
    marks: NDArray[np.float32]  # (radii, angles) turning marks, unit spread
    mat: Field  # grain of the ground
    patina: Field  # broad noise over the metal
    tone: float


def compose(rng: np.random.Generator, turn: float) -> Washer:
    """One washer laid down by hand. `turn` scales its rotation."""
    around = rng.standard_normal((256, 8)) * 0.55 + rng.standard_normal((256, 1)) * 0.85
    return Washer(
        centre=tuple(SIZE / 2 + rng.uniform(-12, 12, 2)),
        angle=float(np.radians(rng.uniform(-6, 6) * turn)),
        holes=np.arange(HOLES) * 2 * np.pi / HOLES,
        marks=np.roll(around.repeat(64, axis=1), rng.integers(512), axis=1).astype(np.float32),
        mat=enlarge(rng.standard_normal((SIZE // 3, SIZE // 3), dtype=np.float32)) + cloud(rng, 6, 3),
        patina=cloud(rng, 5, 3),
        tone=float(rng.uniform(0.9, 1.08)),
    )


def distances(washer: Washer) -> tuple[Field, Field, Field, Field]:
    """Unit vectors' parts (y, x) from the middle, distance from the middle, and distance from the edge of the nearest hole."""
    y, x = turned(washer.angle, washer.centre)
    radius = np.sqrt(x * x + y * y) + np.float32(1e-3)
    hole = np.full_like(radius, SIZE * SIZE)
    for angle in washer.holes:
        dy, dx = y - np.float32(CIRCLE * np.sin(angle)), x - np.float32(CIRCLE * np.cos(angle))
        np.minimum(hole, dx * dx + dy * dy, out=hole)
    return y, x, radius, np.sqrt(hole) - np.float32(HOLE)


def paint(washer: Washer) -> Surface:
    """The washer on its mat: metal where it is inside the rim and outside of bore and holes."""
    y, x, radius, hole = distances(washer)
    inside = np.minimum(RIM - radius, radius - BORE)
    metal = smoothstep(-0.8, 0.8, np.minimum(inside, hole))
    chamfer = 1 - np.minimum(np.clip(inside / 7, 0, 1), np.clip(hole / 8, 0, 1))
    step = smoothstep(-2, 2, radius - STEPS[0]) * smoothstep(-2, 2, STEPS[1] - radius)
    # A monotonic stand-in for the angle, ten times as fast: half the way around is 256 steps of equal x / (|x| + |y|).
    angle = ((x / (np.abs(x) + np.abs(y)) + 1) * np.float32(127.9)).astype(np.int32) + 256 * (y > 0)
    marks = washer.marks.ravel().take((radius * np.float32(1.2)).astype(np.int32) % 256 * 512 + angle)

    steel = np.float32(0.30 * washer.tone) * (1 + 0.07 * marks + 0.05 * washer.patina)
    ground = 1 + 0.16 * washer.mat
    albedo = (steel * metal)[..., None] + (ground * (1 - metal))[..., None] * RUBBER
    height = metal * (10 + 3 * step - 6 * chamfer + 0.08 * marks) + (1 - metal) * 0.35 * washer.mat
    polish = metal * (0.30 + 0.10 * step) * (1 + 0.16 * marks)
    # Tangent of the circles, turned back into the frame of the canvas where the lamp lives.
    cos, sin = np.float32(np.cos(washer.angle)), np.float32(np.sin(washer.angle))
    tx, ty = -y / radius, x / radius
    return Surface(albedo, height, 0.03 + 0.30 * metal, (cos * tx - sin * ty, sin * tx + cos * ty, polish), lifted=metal)


def spoil(rng: np.random.Generator, washer: Washer, clean: Surface, defect: str, level: float) -> Surface:
    """The same washer with one defect of strength `level` (0..1)."""
    if defect == "missing_hole":
        return paint(washer._replace(holes=np.delete(washer.holes, rng.integers(HOLES))))
    if defect == "shifted_hole":
        holes = washer.holes.copy()
        holes[rng.integers(HOLES)] += rng.choice((-1, 1)) * (0.09 + 0.12 * level)
        return paint(washer._replace(holes=holes))
    place = on_metal(rng, washer)
    if defect == "dent":
        return within(clean, dent(rng, clean, place, level, 10.0))
    if defect == "rust":
        return within(clean, rust(rng, clean, place, level))
    if defect == "nick":
        return nick(rng, washer, clean, level)
    return within(clean, scratch(rng, clean, place, level))


def on_metal(rng: np.random.Generator, washer: Washer) -> tuple[float, float]:
    """A point (y, x) on the flat between bore and rim."""
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(BORE + 24, RIM - 24)
    return washer.centre[0] + radius * np.sin(angle), washer.centre[1] + radius * np.cos(angle)


def within(clean: Surface, damaged: Surface) -> Surface:
    """Damage of the metal alone: what falls beside it or into a hole changes nothing."""
    metal = clean.lifted
    albedo = blend(clean.albedo, damaged.albedo, metal)
    along_x, along_y, _ = clean.brushed
    brushed = (along_x, along_y, damaged.brushed[2])
    return damaged._replace(albedo=albedo, height=clean.height + metal * (damaged.height - clean.height), brushed=brushed)


def dull(surface: Surface, alpha: Field) -> Surface:
    """Less of the metal's gleam where alpha is 1."""
    along_x, along_y, strength = surface.brushed
    return surface._replace(brushed=(along_x, along_y, strength * (1 - alpha)), gloss=surface.gloss * (1 - alpha))


def scratch(rng: np.random.Generator, clean: Surface, place: tuple[float, float], level: float) -> Surface:
    """One to three cuts side by side, bright where the metal is fresh."""
    heading = rng.uniform(0, 2 * np.pi)
    starts = [(place[0] + rng.normal(0, 5), place[1] + rng.normal(0, 5)) for _ in range(1 + round(3 * level))]
    line = stroke([wander(rng, start, heading, 90 + 90 * level, 0.05) for start in starts], 2 + 2 * level, 0.6)
    return groove(dull(clean, 0.6 * line), line, "d6d8dc", 0.65 + 0.35 * level, 3.5)


def rust(rng: np.random.Generator, clean: Surface, place: tuple[float, float], level: float) -> Surface:
    """A patch of corrosion: brown, speckled, without gleam."""
    patch = blob(rng, place, 0.95 * size_of(level), ragged=0.22, soft=0.7)
    speckle = np.clip(0.7 + 0.5 * cloud(rng, 40, 2), 0, 1)
    cover = patch * speckle * np.float32(0.3 + 0.6 * level)
    brown = colour("6b3f22") + speckle[..., None] * (colour("a86a35") - colour("6b3f22"))
    return dull(clean, cover)._replace(albedo=blend(clean.albedo, brown, cover), height=clean.height + 0.5 * cover * speckle)


def nick(rng: np.random.Generator, washer: Washer, clean: Surface, level: float) -> Surface:
    """A bite out of the outer rim."""
    angle = rng.uniform(0, 2 * np.pi)
    edge = (washer.centre[0] + RIM * np.sin(angle), washer.centre[1] + RIM * np.cos(angle))
    bite = blob(rng, edge, 9 + 13 * level, ragged=0.15, soft=0.2) * clean.lifted
    ground = (1 + 0.16 * washer.mat)[..., None] * RUBBER
    albedo = blend(clean.albedo, ground, bite)
    height = clean.height * (1 - bite)
    return dull(clean, bite)._replace(albedo=albedo, height=height, lifted=clean.lifted * (1 - bite))
