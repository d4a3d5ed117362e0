"""Weave: a striped 2/2 twill. Each pixel asks which thread lies on top of it and where on that thread it is.

`u` and `v` count threads to the right and downwards. A warp thread (vertical, number i) is on top of the weft thread j
where (i + j) mod 4 < 2, so that every thread floats over two and dives under two, one step further in each row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.scenes.defects import size_of, somewhere, stain
from stages.datasets.scenes.marks import stroke, wander
from stages.datasets.scenes.surface import SIZE, Field, Surface, blend, colour, enlarge, noise, turned

STRUCTURAL = ("stain", "snag", "missing_thread")
LOGICAL = ("broken_stripe", "colour_order")

THREADS = 72  # more than the canvas shows, counted from well outside of it
REPEAT = 14  # threads from one group of stripes to the next
LINEN, RUST, INDIGO = (colour(code) for code in ("cdbb97", "b0583a", "44546e"))
STRIPES = {0: RUST, 1: RUST, 3: INDIGO, 4: INDIGO}  # place within the repeat -> colour


class Weave(NamedTuple):
    u: Field  # place in threads, to the right
    v: Field  # place in threads, downwards
    dye: NDArray[np.float32]  # (3 * THREADS, 3) colours of warp, weft and of the warp where `redyed`
    slub: NDArray[np.float32]  # (2 * THREADS, 64) lightness along each thread, in half threads
    fibre: Field  # fine grain, drawn out to the right
    redyed: tuple[float, float]  # rows v from, to
    torn: tuple[int, float, float]  # a weft thread that is missing: its number, columns u from, to


def compose(rng: np.random.Generator, turn: float) -> Weave:
    """A piece of cloth, never laid twice the same way. `turn` scales its rotation."""
    y, x = turned(np.radians(rng.uniform(-2, 2) * turn))
    pitch = rng.uniform(13.7, 14.3)
    phase_u, phase_v = rng.uniform(28, 28 + REPEAT, 2)
    u = x / np.float32(pitch) + np.float32(phase_u) + noise(rng, 5) * np.float32(0.16)
    v = y / np.float32(pitch) + np.float32(phase_v) + noise(rng, 5) * np.float32(0.16)
    tone = (1 + rng.normal(0, 0.045, (2 * THREADS, 1)) + rng.normal(0, 0.012, (2 * THREADS, 3))).astype(np.float32)
    cloth = LINEN * np.float32(rng.uniform(0.92, 1.08)) * (1 + rng.normal(0, 0.015, 3)).astype(np.float32)
    warp = np.array([STRIPES.get(i % REPEAT, cloth) for i in range(THREADS)]) * tone[:THREADS]
    weft = np.tile(cloth, (THREADS, 1)) * tone[THREADS:]
    slub = rng.normal(0, 0.05, (2 * THREADS, 16)).astype(np.float32).repeat(4, axis=1)
    fibre = enlarge(rng.normal(0, 0.08, (SIZE // 2, SIZE // 16)))
    return Weave(u, v, np.concatenate([warp, weft, warp]), slub, fibre, (0, 0), (-1, 0, 0))


def paint(weave: Weave) -> Surface:
    """The cloth as a surface: round, twisted threads that shade into the gaps between them."""
    i, j = np.floor(weave.u), np.floor(weave.v)
    on_top = fourth(i + j) < 2
    thread, first, last = weave.torn
    bare = (j == thread) & (weave.u > first) & (weave.u < last) & ~on_top
    on_top |= bare
    along = np.where(on_top, fourth(weave.v + i), fourth(weave.u + j) - 2) * np.float32(0.5)
    arch = np.sqrt(np.maximum(np.sin(along * np.float32(np.pi)), 0))
    arch[bare] = 0
    across = (np.where(on_top, weave.u - i, weave.v - j) * 2 - 1) * (np.float32(1.22) - np.float32(0.2) * arch)
    profile = np.sqrt(np.maximum(1 - across * across, 0.01))
    length = np.where(on_top, weave.v, weave.u)
    twist = np.sin((length * np.float32(2.1) + across * np.float32(0.6)) * np.float32(2 * np.pi))
    number = np.where(on_top, i, j + THREADS).astype(np.int32)
    slub = weave.slub.ravel().take(number * 64 + (length * 2).astype(np.int32) % 64)
    grain = np.where(on_top, weave.fibre.T, weave.fibre)
    light = (1 + 0.12 * twist + grain + slub) * (0.3 + 0.7 * profile) * (0.7 + 0.3 * arch)
    number[on_top & (weave.v > weave.redyed[0]) & (weave.v < weave.redyed[1])] += 2 * THREADS
    height = profile * (2.6 + 2.2 * arch) + np.float32(0.2) * twist
    return Surface(weave.dye.take(number, axis=0) * light[..., None], height, np.full_like(height, 0.012))


def fourth(count: Field) -> Field:
    """`count` modulo 4; much faster than np.mod."""
    return count - 4 * np.floor(count * np.float32(0.25))


def spoil(rng: np.random.Generator, weave: Weave, clean: Surface, defect: str, level: float) -> Surface:
    """The same cloth with one defect of strength `level` (0..1)."""
    if defect == "stain":
        return stain(rng, clean, somewhere(rng), 1.1 * size_of(level), "6b4526", 0.5 + 1.1 * level)
    if defect == "snag":
        return snag(rng, weave, level)
    if defect == "missing_thread":
        y, x = (int(c) for c in somewhere(rng, 110))
        reach = 4 + 10 * level
        return paint(weave._replace(torn=(int(weave.v[y, x]), weave.u[y, x] - reach, weave.u[y, x] + reach)))
    return paint(redye(rng, weave, defect, level))


def snag(rng: np.random.Generator, weave: Weave, level: float) -> Surface:
    """Threads drawn together around a pulled loop that lies on top of the cloth."""
    y, x = (int(c) for c in somewhere(rng, 90))
    du, dv = weave.u - weave.u[y, x], weave.v - weave.v[y, x]
    pull = np.exp(-(du * du) / np.float32(9) - (dv * dv) / np.float32(2.2)) * np.float32(0.8 + 1.2 * level)
    surface = paint(weave._replace(v=weave.v + pull * int(rng.choice((-1, 1)))))
    loop = stroke([wander(rng, (y, x), rng.uniform(0, 6.3), 50 + 60 * level, 0.4, 4.0)], 7, 0.8)
    thread = weave.dye[THREADS + int(weave.v[y, x])] * np.float32(1.08)
    return surface._replace(albedo=blend(surface.albedo, thread, loop), height=surface.height + 6 * loop)


def redye(rng: np.random.Generator, weave: Weave, defect: str, level: float) -> Weave:
    """Warp threads of the wrong colour over some rows: a stripe that stops, or two stripes whose inner threads changed places."""
    y, x = (int(c) for c in somewhere(rng, 110))
    start = round((weave.u[y, x] - 2) / REPEAT) * REPEAT
    reach = (3 if defect == "broken_stripe" else 6) + 7 * level
    dye = weave.dye.copy()
    plain = dye[start + 7]
    if defect == "broken_stripe":
        for thread in STRIPES:
            dye[2 * THREADS + start + thread] += np.float32(0.55 + 0.45 * level) * (plain - dye[start + thread])
    else:
        inner = start + np.array((1, 3))
        dye[2 * THREADS + inner] = dye[inner[::-1]]
    return weave._replace(dye=dye, redyed=(weave.v[y, x] - reach, weave.v[y, x] + reach))
