"""One picture per image: the part, its anomaly map, its mask; every picture of a category on the same colour scale.

The scale is anchored at the threshold, never stretched to one image: a good part looks quiet and a bad one does not. Colour starts halfway between the
typical good pixel and the threshold, is orange at the threshold and dark red at twice its distance from the typical pixel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

STOPS = np.array([[255, 226, 120], [255, 140, 40], [215, 40, 40], [120, 0, 60]], dtype=np.float32)
OUTLINE = (20, 230, 230)
CAPTION = 22
GAP = 6


class Scale(NamedTuple):
    """The fixed colour scale of one category and model, in units of the anomaly map."""

    typical: float  # median pixel of held-out good images
    threshold: float  # the highest pixel that a good image may show


def scale_of(normal_maps: np.ndarray, false_alarm_rate: float) -> Scale:
    """The scale from held-out good maps (N, H, W): the threshold is the (1 - rate) quantile of their maxima."""
    peaks = normal_maps.reshape(len(normal_maps), -1).max(axis=1)
    return Scale(float(np.median(normal_maps)), float(np.quantile(peaks, 1 - false_alarm_rate, method="higher")))


def colour(anomaly_map: np.ndarray, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """RGB (H, W, 3) in 0..255 and opacity (H, W) in 0..0.75 of a map (H, W)."""
    span = max(scale.threshold - scale.typical, np.finfo(np.float32).tiny)
    level = np.clip((anomaly_map - scale.typical) / span - 0.5, 0, 1.5) / 1.5  # 0 half way, 1/3 at the threshold, 1 at twice the distance
    place = level * (len(STOPS) - 1)
    below = np.minimum(place.astype(int), len(STOPS) - 2)
    share = (place - below)[..., None]
    return STOPS[below] * (1 - share) + STOPS[below + 1] * share, 0.75 * np.minimum(1, 3 * level)


def overlay(image: np.ndarray, anomaly_map: np.ndarray, scale: Scale, mask: np.ndarray | None, caption: str) -> Image.Image:
    """Image, image with map, and image with the outline of its mask, side by side under a caption.

    image: (H, W, 3) uint8. anomaly_map: (H, W). mask: (H, W) bool or None, then there is no third panel.
    """
    rgb, opacity = colour(anomaly_map, scale)
    heat = image * (1 - opacity[..., None]) + rgb * opacity[..., None]
    panels = [image, heat.astype(np.uint8)] + ([_outlined(image, mask)] if mask is not None else [])
    height, width = image.shape[:2]
    sheet = Image.new("RGB", (len(panels) * width + (len(panels) - 1) * GAP, height + CAPTION), "white")
    for place, panel in enumerate(panels):
        sheet.paste(Image.fromarray(panel), (place * (width + GAP), CAPTION))
    ImageDraw.Draw(sheet).text((3, 3), caption, fill="black", font=ImageFont.load_default(size=14))
    return sheet


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    inside = mask.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inside &= np.roll(mask, step, axis)
    outlined = image.copy()
    outlined[mask & ~inside] = OUTLINE
    return outlined
