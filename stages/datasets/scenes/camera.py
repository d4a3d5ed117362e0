"""The camera: conditions of a shot, from lamp and lens to sensor noise, and the conditions of the shifted test set."""

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from stages.datasets.scenes.light import Light, shade
from stages.datasets.scenes.surface import Surface, halve

Range = tuple[float, float]


class Conditions(NamedTuple):
    """How much one shot may differ from the next; each pair is the range of a uniform draw."""

    gain: Range  # natural logarithm of the brightness
    gradient: float  # largest relative fall-off of the lamp towards a border
    azimuth: Range  # radians around the usual direction of the lamp
    tint: float  # spread of the colour of the light
    turn: float  # factor on the rotation that a scene allows itself
    noise: Range  # sensor noise at full brightness, 1 = white
    blur: Range  # Gaussian sigma of the lens in image pixels
    jpeg: tuple[int, int] | None  # range of the JPEG quality, None for no compression


NOMINAL = Conditions((-0.16, 0.16), 0.12, (-0.7, 0.7), 0.012, 1.0, (0.005, 0.012), (0.0, 0.0), None)
SHIFTED = Conditions((-0.34, 0.30), 0.22, (-1.3, 1.3), 0.030, 1.8, (0.008, 0.020), (0.5, 0.95), (45, 75))

USUAL_AZIMUTH = -2.2  # from the upper left, as a reader expects


def lamp(rng: np.random.Generator, conditions: Conditions) -> Light:
    """One lamp of a shot under the given conditions."""
    return Light(
        azimuth=USUAL_AZIMUTH + rng.uniform(*conditions.azimuth),
        elevation=rng.uniform(0.82, 0.98),
        gain=float(np.exp(rng.uniform(*conditions.gain))),
        gradient=tuple(rng.uniform(-conditions.gradient, conditions.gradient, 2)),
        tint=(1 + rng.normal(0, conditions.tint, 3)).astype(np.float32),
    )


def photograph(rng: np.random.Generator, surface: Surface, conditions: Conditions) -> NDArray[np.uint8]:
    """The picture (SIZE/2, SIZE/2, 3) in sRGB of a surface taken under the given conditions."""
    radiance = shade(surface, lamp(rng, conditions))
    picture = halve(radiance)
    blur = rng.uniform(*conditions.blur)
    if blur > 0:
        picture = ndimage.gaussian_filter(picture, (blur, blur, 0), truncate=3)
    grain = rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(*conditions.noise))
    picture = develop(picture) + grain
    pixels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return compress(pixels, int(rng.integers(*conditions.jpeg))) if conditions.jpeg else pixels


def develop(radiance: NDArray[np.float32]) -> NDArray[np.float32]:
    """sRGB values of linear light; highlights roll off instead of clipping."""
    knee = np.float32(0.6)
    excess = np.maximum(radiance - knee, 0)
    rolled = np.minimum(radiance, knee) + (1 - knee) * np.tanh(excess / (1 - knee))
    return np.power(np.maximum(rolled, 0), np.float32(1 / 2.2))


def compress(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """The picture as it comes back from a JPEG file of that quality."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
