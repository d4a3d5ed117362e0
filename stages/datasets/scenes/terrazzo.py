"""Terrazzo: stone chips of several minerals cast in cement, ground flat and polished.

Chips are convex polygons drawn into a map of numbers; everything else (colour, veins, grain, gloss) is looked up by the
number of the chip under each pixel. Number 0 is the cement.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stages.datasets.scenes.defects import fork, groove, size_of, somewhere, stain
from stages.datasets.scenes.marks import blob, stroke
from stages.datasets.scenes.surface import SIZE, Field, Surface, blend, cloud, colour, enlarge

STRUCTURAL = ("crack", "pit", "stain")
LOGICAL = ("foreign_chip", "bare_patch")

# name: (colour, share of the chips, veins, grain)
MINERALS = {
    "marble": ("e2dcd0", 0.30, 0.22, 0.015),
    "limestone": ("c9bba1", 0.24, 0.08, 0.035),
    "granite": ("98928b", 0.20, 0.00, 0.14),
    "serpentine": ("828a7f", 0.09, 0.16, 0.05),
    "terracotta": ("ae8a70", 0.10, 0.03, 0.07),
    "basalt": ("5a5753", 0.07, 0.00, 0.08),
}
CEMENT = "c3bbae"
FOREIGN = ("9c2f28", "2f5c9e", "1f7a5c", "c9971f")  # brick, glass, plastic, brass: nothing that belongs here


class Terrazzo(NamedTuple):
    corners: list[NDArray[np.float32]]  # polygon (n, 2) as (x, y) of each chip
    dye: NDArray[np.float32]  # (chips + 1, 3); row 0 is the cement
    veined: NDArray[np.float32]  # (chips + 1,) strength of the veins
    grainy: NDArray[np.float32]  # (chips + 1,) strength of the crystals
    veins: Field  # -1..0, dark along thin lines
    grain: Field  # fine noise of unit spread
    mottle: Field  # broad noise of unit spread


def compose(rng: np.random.Generator, turn: float) -> Terrazzo:
    """A slab from an endless floor; it has no direction, so `turn` changes nothing."""
    del turn
    corners = polygons(rng, *scatter(rng, 700))
    codes, shares, veined, grainy = zip(*MINERALS.values())
    kind = rng.choice(len(codes), len(corners), p=shares)
    tone = rng.normal(1, 0.07, (len(corners), 1)) + rng.normal(0, 0.015, (len(corners), 3))
    chips = np.array([colour(code) for code in codes])[kind] * tone
    cement = colour(CEMENT) * rng.uniform(0.86, 1.1) * rng.normal(1, 0.012, 3)
    ridge = np.abs(cloud(rng, 10, 3))
    return Terrazzo(
        corners,
        np.concatenate([cement[None], chips]).astype(np.float32),
        np.append(0, np.array(veined)[kind]).astype(np.float32),
        np.append(0.045, np.array(grainy)[kind]).astype(np.float32),
        -np.exp(ridge * ridge * np.float32(-40)),
        enlarge(rng.standard_normal((SIZE * 5 // 8,) * 2, dtype=np.float32)),
        cloud(rng, 5, 3),
    )


def scatter(rng: np.random.Generator, tries: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres (n, 2) as (x, y) and radii (n,) of chips that hardly touch, big ones first; a chip without room is left out."""
    radii = np.sort(np.clip(rng.lognormal(2.15, 0.55, tries), 3.5, 29).astype(np.float32))[::-1]
    x, y = rng.uniform(-12, SIZE + 12, (2, tries)).astype(np.float32)
    reach = 0.9 * (radii + radii[:, None])
    touching = np.square(x - x[:, None]) + np.square(y - y[:, None]) < reach * reach
    kept = np.zeros(tries, bool)
    for k in range(tries):
        kept[k] = not (touching[k] & kept).any()
    return np.stack([x, y], axis=1)[kept], radii[kept]


def polygons(rng: np.random.Generator, centres: NDArray[np.float32], radii: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Corners (4 to 8, 2) as (x, y) of broken stones: points on circles that are squeezed and turned."""
    count = rng.integers(4, 9, len(radii))
    angles = (np.arange(8) + rng.uniform(-0.42, 0.42, (len(radii), 8))) * (2 * np.pi / count)[:, None]
    squeeze, lean = rng.uniform(0.55, 1.0, (len(radii), 1)), rng.uniform(0, np.pi, (len(radii), 1))
    stretch = radii[:, None] * rng.uniform(0.82, 1.18, (len(radii), 8))
    x, y = np.cos(angles) * stretch, np.sin(angles) * stretch * squeeze
    corners = np.stack([x * np.cos(lean) - y * np.sin(lean), x * np.sin(lean) + y * np.cos(lean)], axis=2) + centres[:, None]
    return [shape[:n].astype(np.float32) for shape, n in zip(corners, count)]


def number_map(corners: list[NDArray[np.float32]]) -> NDArray[np.int32]:
    """(SIZE, SIZE) number of the chip under each pixel; 0 is cement."""
    layer = Image.new("I", (SIZE, SIZE))
    pen = ImageDraw.Draw(layer)
    for number, points in enumerate(corners, start=1):
        pen.polygon(points.ravel().tolist(), fill=number)
    return np.asarray(layer)


def paint(terrazzo: Terrazzo) -> Surface:
    """The polished slab: chips shine more than cement, and a thin shadow of resin runs around each of them."""
    number = number_map(terrazzo.corners)
    stone = (number > 0).astype(np.float32)
    edge = np.zeros_like(stone)
    edge[1:] += number[1:] != number[:-1]
    edge[:, 1:] += number[:, 1:] != number[:, :-1]
    texture = 1 + terrazzo.veined.take(number) * terrazzo.veins + terrazzo.grainy.take(number) * terrazzo.grain
    texture += 0.03 * terrazzo.mottle - 0.09 * np.minimum(edge, 1)
    sand = (1 - stone) * (terrazzo.grain > 1.15) * np.float32(-0.10)
    albedo = terrazzo.dye.take(number, axis=0) * (texture + sand)[..., None]
    gloss = 0.05 + 0.10 * stone
    return Surface(albedo, 0.25 * stone + 0.06 * terrazzo.grain * (1 - 0.6 * stone), gloss)


def spoil(rng: np.random.Generator, terrazzo: Terrazzo, clean: Surface, defect: str, level: float) -> Surface:
    """The same slab with one defect of strength `level` (0..1)."""
    place = somewhere(rng)
    if defect == "crack":
        line = stroke(fork(rng, place, rng.uniform(0, 6.3), 90 + 90 * level), 1.5 + 2.5 * level, 0.6)
        return groove(clean, line, "3b3631", 0.6 + 0.35 * level, 2.0)
    if defect == "stain":
        return stain(rng, clean, place, 1.35 * size_of(level), "6b4a28", 0.5 + 1.3 * level)
    if defect == "pit":
        return pit(rng, clean, place, level)
    if defect == "foreign_chip":
        return foreign_chip(rng, terrazzo, clean, place, level)
    return bare_patch(terrazzo, place, level)


def pit(rng: np.random.Generator, clean: Surface, place: tuple[float, float], level: float) -> Surface:
    """A chip that fell out: a rough hollow with a shaded wall and a dusty floor."""
    hollow = blob(rng, place, size_of(level), ragged=0.2, soft=0.35)
    floor = colour("8d857a") * (1 + 0.12 * cloud(rng, 64, 2))[..., None]
    relief = clean.height - hollow * (7 + 7 * level + 0.8 * cloud(rng, 48, 2))
    return clean._replace(albedo=blend(clean.albedo, floor, hollow * np.float32(0.85)), height=relief, gloss=clean.gloss * (1 - hollow))


def foreign_chip(rng: np.random.Generator, terrazzo: Terrazzo, clean: Surface, place: tuple[float, float], level: float) -> Surface:
    """A chip of a material that is not in the recipe; the fainter, the nearer its colour is to the cement's."""
    alien = colour(FOREIGN[rng.integers(len(FOREIGN))])
    shape = polygons(rng, np.array([place[::-1]]), np.array([1.2 * size_of(level)]))
    alpha = (number_map(shape) > 0).astype(np.float32)
    tone = terrazzo.dye[0] + np.float32(0.6 + 0.4 * level) * (alien - terrazzo.dye[0])
    stone = tone * (1 + 0.04 * terrazzo.grain + 0.06 * terrazzo.veins)[..., None]
    return clean._replace(albedo=blend(clean.albedo, stone, alpha), gloss=np.maximum(clean.gloss, 0.12 * alpha))


def bare_patch(terrazzo: Terrazzo, place: tuple[float, float], level: float) -> Surface:
    """A place where the mix held no chips; the bigger ones are left out first, as they settle first."""
    reach = 46 + 52 * level
    kept = [np.hypot(*(points.mean(axis=0) - place[::-1])) > reach for points in terrazzo.corners]
    rows = np.append(True, kept)
    corners = [points for points, keep in zip(terrazzo.corners, kept) if keep]
    return paint(terrazzo._replace(corners=corners, dye=terrazzo.dye[rows], veined=terrazzo.veined[rows], grainy=terrazzo.grainy[rows]))
