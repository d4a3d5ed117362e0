"""Which images are worth looking at, and their pictures: worst misses, worst false alarms, then what was found and passed with least doubt."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from stages.plots.histogram import score_histogram
from stages.plots.overlay import Scale, overlay, scale_of

LONGEST_SIDE = 1024  # of a picture


class Choice(NamedTuple):
    """One image of a gallery. kind: "miss", "false-alarm", "found" or "passed"."""

    position: int
    kind: str


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


class Shown(NamedTuple):
    """The test images of one category as one model sees them; maps, masks: (N, h, w) or None."""

    title: str
    sample_id: list[str]
    label: np.ndarray  # (N,) 0 or 1
    score: np.ndarray  # (N,)
    maps: np.ndarray | None
    masks: np.ndarray | None
    image: Callable[[int], np.ndarray]  # position -> (H, W, 3) uint8


def category_files(
    shown: Shown, held_out: np.ndarray, good_maps: Sequence[np.ndarray] | np.ndarray, threshold: float | None, alarm_rate: float, count: int
) -> dict[str, bytes]:
    """File name -> content: the score histogram, `count` pictures on one colour scale, and `overlays/index.json` that lists them.

    held_out: (n,) scores of good images held out of training. good_maps: (n, h, w) maps of such images, from which the scale comes; may be
    empty, then the map's panel shows the bare image. threshold: None where there is none.
    """
    normal, anomalous = shown.score[shown.label == 0], shown.score[shown.label == 1]
    files = {"histogram_scores.png": score_histogram(normal, anomalous, held_out, threshold, shown.title)}
    scale = scale_of(np.asarray(good_maps), alarm_rate) if len(good_maps) else None
    listed = []
    for rank, choice in enumerate(choose(shown.score, shown.label, np.inf if threshold is None else threshold, count)):
        sample_id = shown.sample_id[choice.position]
        name = file_name(rank, choice, sample_id)
        files[f"overlays/{name}"] = _picture(shown, choice, scale, threshold)
        listed.append({"file": name, "kind": choice.kind, "sample_id": sample_id})
    return files | {"overlays/index.json": json.dumps(listed, indent=2, ensure_ascii=False).encode() + b"\n"}


def _picture(shown: Shown, choice: Choice, scale: Scale | None, threshold: float | None) -> bytes:
    place = choice.position
    pixels = _at_most(shown.image(place), LONGEST_SIDE)
    shape = pixels.shape[:2]
    anomaly_map = fitted(shown.maps[place], shape) if shown.maps is not None and scale else np.zeros(shape)
    mask = fitted(shown.masks[place], shape) if shown.masks is not None else None
    limit = f", threshold {threshold:.4g}" if threshold is not None else ""
    sheet = overlay(pixels, anomaly_map, scale or Scale(0.0, 1.0), mask, f"{choice.kind}: score {shown.score[place]:.4g}{limit}")
    png = io.BytesIO()
    sheet.save(png, format="png")
    return png.getvalue()


def _at_most(pixels: np.ndarray, longest: int) -> np.ndarray:
    """The image, made smaller where a side is longer than that: those that are cut into tiles are large."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((longest, longest))
    return np.asarray(picture)


def file_name(rank: int, choice: Choice, sample_id: str) -> str:
    """Safe on every system: `03-false-alarm-bottle_test_good_012.png`."""
    return f"{rank:02d}-{choice.kind}-{re.sub(r'[^A-Za-z0-9.-]+', '_', sample_id)[-80:]}.png"


def fitted(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map or mask (h, w) at the shape of its image (H, W), by nearest neighbour: for looking at, not for measuring."""
    if array.shape == shape:
        return array
    rows, columns = (np.arange(size) * own // size for size, own in zip(shape, array.shape, strict=True))
    return array[rows][:, columns]
