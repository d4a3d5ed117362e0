"""Which images are worth looking at, and their pictures: worst misses, worst false alarms, then what was found and passed with least doubt."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from stages.plots.overlay import Scale, overlay


class Choice(NamedTuple):
    """One image of a gallery. kind: "miss", "false-alarm", "found" or "passed"."""

    position: int
    kind: str


class Picture(NamedTuple):
    file: str
    png: bytes
    choice: Choice


def choose(score: np.ndarray, label: np.ndarray, threshold: float, count: int) -> list[Choice]:
    """At most `count` images in turn: the lowest-scored misses, the highest-scored false alarms, the surest finds, the surest passes.

    score, label: (N,). The same scores give the same choice; ties go by position.
    """
    order = np.argsort(score, kind="stable")
    anomalous, flagged = label == 1, score > threshold
    kinds = {
        "miss": [place for place in order if anomalous[place] and not flagged[place]],
        "false-alarm": [place for place in order[::-1] if not anomalous[place] and flagged[place]],
        "found": [place for place in order[::-1] if anomalous[place] and flagged[place]],
        "passed": [place for place in order if not anomalous[place] and not flagged[place]],
    }
    chosen: list[Choice] = []
    for turn in range(count):
        chosen += [Choice(int(places[turn]), kind) for kind, places in kinds.items() if turn < len(places)]
    return chosen[:count]


def pictures(
    choices: list[Choice],
    sample_id: list[str],
    score: np.ndarray,
    image: Callable[[int], np.ndarray],
    maps: np.ndarray | None,
    masks: np.ndarray | None,
    scale: Scale | None,
    threshold: float | None,
) -> Iterator[Picture]:
    """A picture for each choice: image, map on `scale`, mask.

    image: position -> (H, W, 3) uint8. maps, masks: (N, h, w) or None. Without maps or a scale the map's panel shows the bare image.
    """
    for rank, choice in enumerate(choices):
        place = choice.position
        pixels = image(place)
        shown_map = fitted(maps[place], pixels.shape[:2]) if maps is not None and scale is not None else np.zeros(pixels.shape[:2])
        mask = fitted(masks[place], pixels.shape[:2]) if masks is not None else None
        limit = f", threshold {threshold:.4g}" if threshold is not None else ""
        sheet = overlay(pixels, shown_map, scale or Scale(0.0, 1.0), mask, f"{choice.kind}: score {score[place]:.4g}{limit}")
        png = io.BytesIO()
        sheet.save(png, format="png")
        yield Picture(file_name(rank, choice, sample_id[place]), png.getvalue(), choice)


def file_name(rank: int, choice: Choice, sample_id: str) -> str:
    """Safe on every system: `03-false-alarm-bottle_test_good_012.png`."""
    return f"{rank:02d}-{choice.kind}-{re.sub(r'[^A-Za-z0-9.-]+', '_', sample_id)[-80:]}.png"


def fitted(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map or mask (h, w) at the shape of its image (H, W), by nearest neighbour: for looking at, not for measuring."""
    if array.shape == shape:
        return array
    rows, columns = (np.arange(size) * own // size for size, own in zip(shape, array.shape, strict=True))
    return array[rows][:, columns]
