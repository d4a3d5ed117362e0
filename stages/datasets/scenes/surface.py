"""What a scene is made of before light falls on it: colour, relief, gloss, and the noise that gives them grain.

Everything is drawn on one square canvas of SIZE x SIZE pixels, in linear light (not sRGB), as float32; the camera
halves it later, which smooths every edge. All randomness comes from the generator that is handed in.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

SIZE = 512

Field = NDArray[np.float32]  # (SIZE, SIZE)
Mask = NDArray[np.bool_]


class Surface(NamedTuple):
    """A scene without light; every part but the first two may be absent."""

    albedo: NDArray[np.float32]  # (SIZE, SIZE, 3) linear reflectance, 0..1
    height: Field  # relief in canvas pixels, towards the camera
    gloss: Field  # 0..1, strength of the mirror-like highlight
    brushed: tuple[Field, Field, Field] | None = None  # unit direction (x, y) and strength of the brushing of a metal
    lifted: Field | None = None  # 0..1, what stands above its ground and throws a soft shadow on it
    glass: Field | None = None  # height of a clear cover over everything, in canvas pixels


@cache
def grid() -> tuple[Field, Field]:
    """Coordinates (y, x) of the canvas pixels."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    return y, x


def turned(angle: float, centre: tuple[float, float] = (SIZE / 2, SIZE / 2)) -> tuple[Field, Field]:
    """Coordinates (y, x) relative to `centre` (y, x) in a frame turned by `angle` radians."""
    y, x = grid()
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dy, dx = y - np.float32(centre[0]), x - np.float32(centre[1])
    return cos * dy - sin * dx, cos * dx + sin * dy


def enlarge(coarse: NDArray[np.float32], size: int = SIZE) -> Field:
    """A coarse (n, n) field brought smoothly to (size, size)."""
    return np.asarray(Image.fromarray(coarse.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))


def noise(rng: np.random.Generator, cells: int, size: int = SIZE) -> Field:
    """Smooth noise of zero mean and about unit spread with `cells` bumps along a side."""
    return enlarge(rng.standard_normal((cells, cells), dtype=np.float32), size) * np.float32(1.25)


def cloud(rng: np.random.Generator, cells: int = 4, octaves: int = 4, fade: float = 0.55) -> Field:
    """Noise of several octaves, each twice as fine and `fade` as strong as the one before; about unit spread."""
    # Summed at four samples to the finest bump, which is all that there is to see, and enlarged once.
    size = min(SIZE, cells * 2 ** (octaves + 1))
    total = sum(noise(rng, cells * 2**k, size) * np.float32(fade**k) for k in range(octaves))
    return enlarge(total / np.float32(np.sqrt(sum(fade ** (2 * k) for k in range(octaves)))))


def halve(field: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 2x2 blocks: (n, n, ...) to (n/2, n/2, ...). Sliced sums are many times faster than a mean over two axes."""
    rows = field[0::2] + field[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)


def soften(field: Field, radius: float) -> Field:
    """Gaussian blur of a wide radius, worked out at a quarter of the size because it holds no detail."""
    return enlarge(blurred_quarter(field, radius))


def blurred_quarter(field: Field, radius: float) -> Field:
    """(SIZE/4, SIZE/4) of a field after a Gaussian blur of `radius` canvas pixels."""
    return ndimage.gaussian_filter(halve(halve(field)), radius / 4, truncate=3)


def smoothstep(low: float, high: float, value: Field) -> Field:
    """0 below `low`, 1 above `high`, a smooth S between."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def colour(code: str) -> NDArray[np.float32]:
    """Linear RGB (3,) of an sRGB code such as "d8c7a3"."""
    srgb = np.array([int(code[k : k + 2], 16) for k in (0, 2, 4)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4).astype(np.float32)


def blend(base: NDArray[np.float32], paint: NDArray[np.float32], alpha: Field) -> NDArray[np.float32]:
    """`base` (..., 3) covered with `paint` (3,) or (..., 3) where alpha (...) is 1."""
    mixed = np.empty_like(base)
    for channel in range(3):  # three times as fast as broadcasting over a last axis of three
        mixed[..., channel] = base[..., channel] + alpha * (paint[..., channel] - base[..., channel])
    return mixed
