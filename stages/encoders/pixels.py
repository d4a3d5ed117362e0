"""The encoder `pixels`: images decoded once and resized whole (no crop) as uint8, masks beside them.

Decoding is about half of an uncached pipeline, and a resized float is not a resized uint8: every other encoder, and serving, starts from
what this module makes, so that training and prediction see the same levels.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stages import io
from stages.datasets.images import read_image, read_mask, resize_image, resize_mask
from stages.datasets.samples import root_of
from stages.encoders.encoder import Frozen, Place
from stages.types import Features

MASK = "mask"  # key of the masks in the shards of a pixels store
PIXELS = "pixels"


def build(place: Place) -> Frozen:
    """The encoder kind `pixels`: what it is given is what it returns."""
    return Frozen(lambda pixels: {PIXELS: pixels}, {"weights": None, "parameters": 0})


def load_pixels(path: Path, image_size: int) -> Tensor:
    """(3, S, S) uint8 of one image file, whatever its format and shape."""
    return torch.from_numpy(resize_image(read_image(path), image_size).copy()).permute(2, 0, 1).contiguous()


def load_mask(path: Path | None, image_size: int, threshold: int) -> Tensor:
    """(S, S) bool; without a file, nothing is marked. Binarised before it is resized, so that thin defects are not averaged away."""
    if path is None:
        return torch.zeros(image_size, image_size, dtype=torch.bool)
    return torch.from_numpy(resize_mask(read_mask(path, threshold), image_size).copy()).bool()


class _Files(NamedTuple):
    image: Path
    mask: Path | None


class Decoded:
    """The samples of a prepared data set, decoded as they are asked for."""

    def __init__(self, samples: Path, image_size: int) -> None:
        """samples: `data/<dataset>/samples.parquet`, with `dataset.json` beside it."""
        about = io.read_json(samples.with_name("dataset.json"))
        root = root_of(samples.with_name("dataset.json"))
        rows = io.read_table(samples)
        self.image_size, self.threshold = image_size, about.get("mask_threshold", 0)
        self._category = {row["sample_id"]: row["category"] for row in rows}
        self._files = {
            row["sample_id"]: _Files(root / row["image_path"], root / row["mask_path"] if row["mask_path"] else None) for row in rows
        }
        self.has_masks = any(files.mask for files in self._files.values())

    def categories(self) -> dict[str, list[str]]:
        """{category: its sample ids}, in the order of the table."""
        grouped: dict[str, list[str]] = {}
        for sample_id, category in self._category.items():
            grouped.setdefault(category, []).append(sample_id)
        return grouped

    def read(self, sample_ids: list[str], names: list[str]) -> Features:
        """{"pixels": (B, 3, S, S) uint8, "mask": (B, S, S) bool}, those of `names` that this data set has."""
        files = [self._files[sample_id] for sample_id in sample_ids]
        found = {}
        if PIXELS in names:
            found[PIXELS] = torch.stack([load_pixels(file.image, self.image_size) for file in files])
        if MASK in names and self.has_masks:
            found[MASK] = torch.stack([load_mask(file.mask, self.image_size, self.threshold) for file in files])
        return found
