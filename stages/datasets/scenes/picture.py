"""One picture of the data set `parts`: a scene, perhaps one defect, the litter of a workshop, light and camera.

Every picture has its own generators, keyed by (seed, category, split, good or bad, index), so it does not depend on what
was drawn before it. Chance is kept in three streams: the scene, the defect and the shot.
"""

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.scenes import blister, terrazzo, washer, weave
from stages.datasets.scenes.camera import NOMINAL, SHIFTED, photograph
from stages.datasets.scenes.defects import LEAST_PIXELS, LEVELS, difference
from stages.datasets.scenes.marks import litter
from stages.datasets.scenes.surface import SIZE, Mask

SCENES = {"weave": weave, "terrazzo": terrazzo, "washer": washer, "blister": blister}
CONDITIONS = {"train": NOMINAL, "test": NOMINAL, "test_shift": SHIFTED}
ATTEMPTS = 20


class Picture(NamedTuple):
    image: NDArray[np.uint8]  # (256, 256, 3) sRGB
    mask: Mask  # (256, 256), empty for a good one
    defect_type: str  # "good" or one of defect_types(category)
    level: float  # strength of the defect, 0 for a good one


def defect_types(category: str) -> tuple[str, ...]:
    """Structural defects first, then logical ones (every part is whole, but the arrangement is wrong)."""
    scene = SCENES[category]
    return scene.STRUCTURAL + scene.LOGICAL


def defect_of(category: str, index: int) -> tuple[str, float]:
    """Type and level of the bad picture `index`: types take turns, and each goes through the levels."""
    types = defect_types(category)
    return types[index % len(types)], LEVELS[index // len(types) % len(LEVELS)]


def draw(category: str, seed: int, split: str, index: int, *, bad: bool = False) -> Picture:
    """The picture number `index` of a split ("train", "test", "test_shift"), among the good ones or among the bad ones.

    Raises RuntimeError where a defect leaves no mark on ATTEMPTS drawings in a row.
    """
    scene, conditions = SCENES[category], CONDITIONS[split]
    key = (seed, zlib.crc32(f"{category}/{split}/{'bad' if bad else 'good'}".encode()), index)
    layout = scene.compose(np.random.default_rng((*key, 0)), conditions.turn)
    surface = scene.paint(layout)
    mask, defect_type, level = np.zeros((SIZE // 2, SIZE // 2), bool), "good", 0.0
    if bad:
        defect_type, level = defect_of(category, index)
        surface, mask = damage(scene, layout, surface, key, defect_type, level)
    shot = np.random.default_rng((*key, 1))
    return Picture(photograph(shot, litter(shot, surface), conditions), mask, defect_type, level)


def damage(scene, layout, clean, key, defect_type, level):
    """The surface with a defect that shows, and its mask; drawn anew while the mask is too small to be told from dust."""
    for attempt in range(ATTEMPTS):
        surface = scene.spoil(np.random.default_rng((*key, 2 + attempt)), layout, clean, defect_type, level)
        mask = difference(clean, surface)
        if mask.sum() >= LEAST_PIXELS:
            return surface, mask
    raise RuntimeError(f"{defect_type} at level {level} left no mark on {ATTEMPTS} drawings of {key}; its settings are too faint")
