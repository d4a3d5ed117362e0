"""Blister: eight two-coloured capsules under clear domes on an embossed foil card.

Card, pockets and capsules are all rounded boxes, so one signed distance draws them. The domes are a cover of glass that
mirrors lamp and window; what lies beneath is drawn as if it were open.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.scenes.defects import dent, fork, groove, size_of
from stages.datasets.scenes.marks import blob, stroke
from stages.datasets.scenes.surface import SIZE, Field, Surface, blend, cloud, colour, enlarge, grid, smoothstep, turned

STRUCTURAL = ("crack", "short_capsule", "torn_foil", "dent")
LOGICAL = ("missing_capsule", "reversed_capsule", "wrong_colour")

FOIL = np.array([0.99, 1.0, 1.02], np.float32)  # hue of the foil
ROWS, COLUMNS = (-104.0, 104.0), (-165.0, -55.0, 55.0, 165.0)  # middles of the pockets on the card, canvas pixels
CARD, POCKET, CAPSULE = (232.0, 236.0, 22.0), (86.0, 42.0), (64.0, 25.0)  # half sizes (y, x, corner); (half length, radius)
CAP, BODY, WRONG = "a93a35", "e6ddc4", ("c9822f", "7d4a8c", "3f7f76")


class Blister(NamedTuple):
    centre: tuple[float, float]  # (y, x)
    angle: float  # radians
    offset: NDArray[np.float64]  # (8, 2) place (y, x) of each capsule in its pocket
    lean: NDArray[np.float64]  # (8,) radians
    seam: NDArray[np.float64]  # (8,) where the cap ends, canvas pixels from the middle
    length: NDArray[np.float64]  # (8,) half length; 0 for a missing capsule
    caps: NDArray[np.float32]  # (8, 3)
    bodies: NDArray[np.float32]  # (8, 3)
    wrinkles: Field  # relief of the foil
    desk: Field  # grain of the table
    foil: float  # brightness of the foil


def compose(rng: np.random.Generator, turn: float) -> Blister:
    """One card; its capsules lie a little loose. `turn` scales its rotation."""
    shades = rng.normal(1, 0.03, (8, 1))
    return Blister(
        centre=tuple(SIZE / 2 + rng.uniform(-7, 7, 2)),
        angle=float(np.radians(rng.uniform(-3, 3) * turn)),
        offset=rng.uniform(-1, 1, (8, 2)) * (7, 5),
        lean=np.radians(rng.uniform(-4, 4, 8)),
        seam=rng.uniform(-5, 5, 8),
        length=np.full(8, CAPSULE[0]),
        caps=(colour(CAP) * shades * rng.uniform(0.92, 1.08)).astype(np.float32),
        bodies=(colour(BODY) * shades).astype(np.float32),
        wrinkles=cloud(rng, 5, 3),
        desk=enlarge(rng.standard_normal((12, SIZE // 2), dtype=np.float32)) + cloud(rng, 3, 2),
        foil=float(rng.uniform(0.92, 1.06)),
    )


def box(y: Field, x: Field, half_y: float, half_x: float, corner: float) -> Field:
    """Distance to the edge of a box with round corners: positive inside, in canvas pixels."""
    dy, dx = np.abs(y) - np.float32(half_y - corner), np.abs(x) - np.float32(half_x - corner)
    outside = np.sqrt(np.maximum(dy, 0) ** 2 + np.maximum(dx, 0) ** 2)
    return np.float32(corner) - outside - np.minimum(np.maximum(dy, dx), 0)


def paint(blister: Blister) -> Surface:
    """The card on its table with all that it holds."""
    y, x = turned(blister.angle, blister.centre)
    card = smoothstep(-0.8, 0.8, box(y, x, *CARD))
    # All eight pockets at once: coordinates folded onto the nearest one.
    py = np.abs(y) - np.float32(ROWS[1])
    px = np.abs(np.abs(x) - np.float32(110)) - np.float32(55)
    pocket = box(py, px, POCKET[0], POCKET[1], POCKET[1])
    open_ = smoothstep(-1, 3, pocket)
    emboss = np.abs(fraction((x + y) / 13) - 0.5) + np.abs(fraction((x - y) / 13) - 0.5)
    flat = smoothstep(0, 14, -pocket)
    rim = np.exp(-np.square((pocket + 3) / 4))
    height = card * (6 + 1.9 * emboss * flat + (2.6 + 1.2 * flat) * blister.wrinkles - 2 * open_) + 2.5 * rim
    foil = np.float32(0.40 * blister.foil) * (1 - 0.28 * open_ - 0.12 * np.exp(-np.square(pocket / 5)))
    table = (1 - card) * (1 + np.float32(0.06) * blister.desk)
    albedo = (card * foil)[..., None] * FOIL + table[..., None] * colour("4a525c")
    gloss = card * (0.34 - 0.22 * open_)
    dome = 26 * np.sqrt(1 - np.square(1 - np.clip(pocket / 30, 0, 1)))
    return fill(blister, Surface(albedo, height, gloss, lifted=card, glass=dome))


def fraction(value: Field) -> Field:
    return value - np.floor(value)


def fill(blister: Blister, surface: Surface) -> Surface:
    """The capsules, each drawn in a window around its pocket, with the shadow they throw on the foil."""
    albedo, height, gloss = surface.albedo, surface.height, surface.gloss.copy()
    for number, (row, column) in enumerate((r, c) for r in ROWS for c in COLUMNS):
        if blister.length[number] == 0:
            continue
        window, along, across = place(blister, number, row, column)
        radius, length, seam = CAPSULE[1], float(blister.length[number]), float(blister.seam[number])
        rest = np.maximum(np.abs(along) - (length - radius), 0)
        off = np.sqrt(across * across + rest * rest)
        inside = smoothstep(-0.8, 0.8, radius - off)
        near = 1 - 0.45 * smoothstep(0, 15, radius + 13 - off)
        tone = np.where((along < seam)[..., None], blister.caps[number], blister.bodies[number])
        ring = 1 - 0.22 * np.exp(-np.square((along - seam) / 1.6))
        round_ = np.sqrt(np.maximum(radius * radius - off * off, 0))
        albedo[window] = blend(albedo[window] * near[..., None], tone * ring[..., None], inside)
        lid = 1.2 * smoothstep(-1, 1, seam - along)
        height[window] = height[window] * (1 - inside) + inside * (8 + 0.8 * round_ + lid)
        gloss[window] = gloss[window] * (1 - inside) + 0.22 * inside
    return surface._replace(gloss=gloss)


def place(blister: Blister, number: int, row: float, column: float) -> tuple[tuple[slice, slice], Field, Field]:
    """Window of the canvas around capsule `number`, and the coordinates along and across it there, canvas pixels."""
    cos, sin = np.cos(blister.angle), np.sin(blister.angle)
    py, px = row + blister.offset[number, 0], column + blister.offset[number, 1]
    cy, cx = blister.centre[0] + cos * py + sin * px, blister.centre[1] + cos * px - sin * py
    window = (slice(max(0, int(cy) - 88), int(cy) + 88), slice(max(0, int(cx) - 48), int(cx) + 48))
    y, x = (g[window] - np.float32(c) for g, c in zip(grid(), (cy, cx)))
    lean = blister.angle + blister.lean[number]
    cos, sin = np.float32(np.cos(lean)), np.float32(np.sin(lean))
    return window, cos * y - sin * x, sin * y + cos * x


def spoil(rng: np.random.Generator, blister: Blister, clean: Surface, defect: str, level: float) -> Surface:
    """The same card with one defect of strength `level` (0..1)."""
    number = int(rng.integers(8))
    if defect in LOGICAL or defect == "short_capsule":
        return paint(misfill(rng, blister, number, defect, level))
    if defect == "torn_foil":
        return torn(rng, blister, clean, level)
    if defect == "dent":
        return dent(rng, clean, between(rng, blister), level, 16.0)
    spot = on_card(blister, ROWS[number // 4] + rng.uniform(-30, 30), COLUMNS[number % 4] + rng.uniform(-8, 8))
    line = stroke(fork(rng, spot, rng.uniform(0, 6.3), 60 + 50 * level), 2.2 + 2.4 * level, 0.7)
    return groove(clean, line, "3a2c28", 0.65 + 0.3 * level, 2.5)


def misfill(rng: np.random.Generator, blister: Blister, number: int, defect: str, level: float) -> Blister:
    """The card with one capsule missing, upside down, of another product, or pressed short."""
    length, caps, bodies, seam = (a.copy() for a in (blister.length, blister.caps, blister.bodies, blister.seam))
    if defect == "missing_capsule":
        length[number] = 0
    elif defect == "short_capsule":
        length[number] *= 0.82 - 0.3 * level
    elif defect == "reversed_capsule":
        caps[number], bodies[number] = blister.bodies[number], blister.caps[number]
        seam[number] = -seam[number]
    else:
        other = colour(WRONG[rng.integers(len(WRONG))])
        caps[number] += np.float32(0.5 + 0.5 * level) * (other - caps[number])
    return blister._replace(length=length, caps=caps, bodies=bodies, seam=seam)


def on_card(blister: Blister, y: float, x: float) -> tuple[float, float]:
    """Canvas point (y, x) of a point of the card."""
    cos, sin = np.cos(blister.angle), np.sin(blister.angle)
    return blister.centre[0] + cos * y + sin * x, blister.centre[1] + cos * x - sin * y


def between(rng: np.random.Generator, blister: Blister) -> tuple[float, float]:
    """A canvas point (y, x) on the foil between the pockets."""
    if rng.random() < 0.5:
        return on_card(blister, rng.uniform(-8, 8), rng.uniform(-190, 190))
    return on_card(blister, rng.uniform(-180, 180), rng.choice((-110, 0, 110)) + rng.uniform(-4, 4))


def torn(rng: np.random.Generator, blister: Blister, clean: Surface, level: float) -> Surface:
    """A hole in the foil with a bright, curled edge; the grey carrier shows through."""
    hole = blob(rng, between(rng, blister), 0.55 * size_of(level), ragged=0.3, soft=0.2)
    curl = 4 * hole * (1 - hole)
    albedo = blend(clean.albedo, colour("7f7a72"), hole * np.float32(0.5 + 0.4 * level))
    height = clean.height + 3 * curl - hole * (clean.height - 3)
    return clean._replace(albedo=albedo, height=height, gloss=clean.gloss * (1 - hole))
