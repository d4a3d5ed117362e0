"""The same part twice, good and damaged, under the same light: what a network learns the difference from."""

import zlib

import numpy as np

from stages.datasets.scenes.camera import NOMINAL, photograph
from stages.datasets.scenes.defects import LEVELS
from stages.datasets.scenes.marks import litter
from stages.datasets.scenes.picture import SCENES, Picture, damage, defect_types


def draw_pair(category: str, seed: int, index: int) -> tuple[Picture, Picture]:
    """The part number `index` of a category without and with a defect; nothing but the defect differs. Types take turns, then levels."""
    scene, key = SCENES[category], (seed, zlib.crc32(f"{category}/pairs".encode()), index)
    types = defect_types(category)
    defect_type, level = types[index % len(types)], LEVELS[index // len(types) % len(LEVELS)]
    layout = scene.compose(np.random.default_rng((*key, 0)), NOMINAL.turn)
    clean = scene.paint(layout)
    damaged, mask = damage(scene, layout, clean, key, defect_type, level)
    good, bad = (_shot(surface, key) for surface in (clean, damaged))
    return Picture(good, np.zeros_like(mask), "good", 0.0), Picture(bad, mask, defect_type, level)


def _shot(surface, key):
    shot = np.random.default_rng((*key, 1))
    return photograph(shot, litter(shot, surface), NOMINAL)
