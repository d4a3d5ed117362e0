"""Each pair of colours stays apart for viewers without red or without green cones, and each can be seen on both pages."""

import itertools

import numpy as np
import pytest

from stages.plots import series_palette as palette

COLOURS = [palette.NORMAL, palette.ANOMALY, palette.DISTURBING, palette.TEACHER, palette.STUDENT]
# Machado, Oliveira, Fernandes 2009, severity 1.0, on linear RGB.
VIEWERS = {
    "all cones": np.eye(3),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(1)


def linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    share = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    x, y, z = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one: str, other: str, viewer: np.ndarray) -> float:
    return float(np.linalg.norm(lab(viewer @ linear(one)) - lab(viewer @ linear(other))))


def contrast(one: str, other: str) -> float:
    high, low = sorted((float(TO_XYZ[1] @ linear(colour)) for colour in (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("viewer", VIEWERS)
def test_every_pair_of_colours_can_be_told_apart(viewer):
    assert min(distance(one, other, VIEWERS[viewer]) for one, other in itertools.combinations(COLOURS, 2)) >= 20


def test_the_check_knows_a_confusing_pair():
    """Pure red and a green of the same lightness for a viewer without green cones."""
    assert distance("#cc3300", "#778800", VIEWERS["deuteranopia"]) < 20 < distance("#cc3300", "#778800", VIEWERS["all cones"])


@pytest.mark.parametrize("paper", ["#ffffff", "#12171a"])
def test_every_colour_can_be_seen_on_the_light_and_on_the_dark_page(paper):
    assert min(contrast(colour, paper) for colour in COLOURS) >= 2.2


def test_one_thing_has_one_colour():
    assert palette.KINDS == {"normal": palette.NORMAL, "disturbing": palette.DISTURBING, "anomaly": palette.ANOMALY}
    assert palette.PARTS["reconstruction"] == palette.TEACHER and palette.PARTS["discrepancy"] == palette.STUDENT
