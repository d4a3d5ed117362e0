"""Light on a surface: Lambert shading with occlusion, Blinn highlights, brushed metal and a window in a clear cover.

Brushed metal follows Kajiya and Kay (1989): a highlight is strong where the brushing runs across the half vector.
The constants are tuned by eye; nothing here claims to be physical beyond looking right.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.scenes.surface import SIZE, Field, Surface, blurred_quarter, enlarge, smoothstep, soften


class Light(NamedTuple):
    azimuth: float  # radians, direction the light comes from; 0 is from the right, clockwise
    elevation: float  # radians above the surface
    gain: float  # overall brightness
    gradient: tuple[float, float]  # relative fall-off (y, x) from the middle to the border
    tint: NDArray[np.float32]  # (3,) about 1


def slopes(height: Field) -> tuple[Field, Field]:
    """Derivatives (y, x) of the height by central differences; 0 on the border."""
    dy, dx = np.zeros_like(height), np.zeros_like(height)
    dy[1:-1] = (height[2:] - height[:-2]) * np.float32(0.5)
    dx[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * np.float32(0.5)
    return dy, dx


def shade(surface: Surface, light: Light) -> NDArray[np.float32]:
    """Linear radiance (SIZE, SIZE, 3) of a surface under one lamp and a bright room."""
    lx, ly = (np.float32(f(light.azimuth) * np.cos(light.elevation)) for f in (np.cos, np.sin))
    lz = np.float32(np.sin(light.elevation))
    dy, dx = slopes(surface.height)
    steep = 1 / np.sqrt(1 + dx * dx + dy * dy)
    diffuse = np.maximum((lz - dx * lx - dy * ly) * steep, 0) / lz
    lit = (0.38 + 0.62 * diffuse) * occlusion(surface.height)
    if surface.lifted is not None:
        lit *= shadow(surface.lifted, lx, ly)
    shine = surface.gloss * highlight(dx, dy, steep, (lx, ly, lz))
    if surface.brushed is not None:
        shine += sheen(surface.brushed, lx, ly) * diffuse
    if surface.glass is not None:
        shine += cover(surface.glass, (lx, ly, lz))
    strength = falloff(light)
    return (surface.albedo * (lit * strength)[..., None] + (shine * strength)[..., None]) * (light.tint * np.float32(light.gain))


def occlusion(height: Field) -> Field:
    """Hollows see less of the room than their surroundings."""
    return 1 + np.clip((height - soften(height, 8)) * np.float32(0.06), -0.4, 0.12)


def shadow(lifted: Field, lx: np.float32, ly: np.float32) -> Field:
    """The soft shadow of what is lifted, away from the light; nothing falls on the lifted parts themselves."""
    contact, cast = blurred_quarter(lifted, 5), blurred_quarter(lifted, 10)
    cast = np.roll(cast, (round(-4 * float(ly)), round(-4 * float(lx))), (0, 1))
    return 1 - (1 - lifted) * enlarge(np.clip(0.35 * contact + 0.5 * cast, 0, 0.75))


def highlight(dx: Field, dy: Field, steep: Field, towards: tuple[np.float32, np.float32, np.float32]) -> Field:
    """Blinn's highlight with exponent 32, by five squarings."""
    lx, ly, lz = towards
    norm = np.float32(1 / np.sqrt(lx * lx + ly * ly + (lz + 1) ** 2))
    facing = np.maximum(((lz + 1) - dx * lx - dy * ly) * steep * norm, 0)
    for _ in range(5):
        facing *= facing
    return facing


def sheen(brushed: tuple[Field, Field, Field], lx: np.float32, ly: np.float32) -> Field:
    """Two bright sectors on a turned disc: where the grooves run across the light."""
    along_x, along_y, strength = brushed
    length = np.float32(1 / np.hypot(lx, ly))
    along = (along_x * lx + along_y * ly) * length
    return strength * np.exp(-(along * along) * np.float32(1 / 0.16))


def cover(glass: Field, towards: tuple[np.float32, np.float32, np.float32]) -> Field:
    """What a clear cover mirrors: the lamp as a highlight, and a window with one bar across it."""
    lx, ly, lz = towards
    dy, dx = slopes(glass)
    steep = 1 / np.sqrt(1 + dx * dx + dy * dy)
    # The half-way normal that would mirror the lamp, compared slope by slope, gives the window straight edges.
    across, down = -dx - lx / (1 + lz), -dy - ly / (1 + lz)
    window = (1 - smoothstep(0.13, 0.17, np.abs(across))) * (1 - smoothstep(0.16, 0.2, np.abs(down)))
    window *= smoothstep(0.0, 0.03, np.abs(across) - np.float32(0.012))
    rim = 0.10 * (1 - steep)
    return np.where(glass > 0.01, 0.34 * window + 0.16 * highlight(dx, dy, steep, towards) + rim, 0).astype(np.float32)


def falloff(light: Light) -> Field:
    """Linear gradient of the lamp and the vignette of a lens."""
    across = np.linspace(-1, 1, SIZE, dtype=np.float32)
    down, right = (np.float32(g) for g in light.gradient)
    lens = 1 - np.float32(0.05) * np.square(across)
    return (1 + down * across[:, None] + right * across) * lens[:, None] * lens
