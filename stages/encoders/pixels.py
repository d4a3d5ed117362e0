"""The encoder `pixels`: images decoded once and resized whole (no crop) as uint8, masks beside them.

Decoding is about half of an uncached pipeline, and a resized float is not a resized uint8: every other encoder, and serving, starts from
what this module makes, so that training and prediction see the same levels. With a `canvas` the images are large ones in tiles
(stages/datasets/tiles.py): `image_size` is then the side of a tile, and a row of the store is one tile.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stages import io
from stages.datasets.images import read_image, read_mask, resize_image, resize_mask
from stages.datasets.samples import root_of
from stages.datasets.tiles import Grid
from stages.encoders.encoder import Frozen, Place
from stages.types import Features

MASK = "mask"  # key of the masks in the shards of a pixels store
PIXELS = "pixels"
IMAGES_AT_HAND = 4  # decoded, of those that are cut into tiles


def build(place: Place, *, canvas: tuple[int, int] | None = None, overlap: int = 0) -> Frozen:
    """The encoder kind `pixels`: what it is given is what it returns.

    canvas: height and width to which an image is resized before it is cut into tiles of the place's image size; None: images are not cut.
    overlap: of neighbouring tiles, in pixels.
    """
    grid = Grid.over(canvas, place.image_size, overlap) if canvas else None
    return Frozen(lambda pixels: {PIXELS: pixels}, {"weights": None, "parameters": 0} | ({"tiles": grid._asdict()} if grid else {}))


def load_pixels(path: Path, size: int | tuple[int, int]) -> Tensor:
    """(3, S, S) uint8, or (3, H, W), of one image file, whatever its format and shape."""
    return torch.from_numpy(resize_image(read_image(path), size).copy()).permute(2, 0, 1).contiguous()


def load_mask(path: Path | None, size: int | tuple[int, int], threshold: int) -> Tensor:
    """(S, S) or (H, W) bool; without a file, nothing is marked. Binarised before it is resized, so that thin defects are not averaged away."""
    if path is None:
        return torch.zeros(size if isinstance(size, tuple) else (size, size), dtype=torch.bool)
    return torch.from_numpy(resize_mask(read_mask(path, threshold), size).copy()).bool()


@lru_cache(maxsize=IMAGES_AT_HAND)
def _tiles(image: Path, mask: Path | None, grid: Grid, threshold: int) -> tuple[Tensor, Tensor]:
    """(count, 3, tile, tile) and (count, tile, tile) of one image: a batch holds a few of its tiles, the next batch the next few."""
    canvas = (grid.height, grid.width)
    return grid.cut(load_pixels(image, canvas)[None]), grid.cut(load_mask(mask, canvas, threshold)[None])


class _Files(NamedTuple):
    image: Path
    mask: Path | None


class Decoded:
    """The samples of a prepared data set, or their tiles, decoded as they are asked for."""

    def __init__(self, samples: Path, image_size: int, grid: Grid | None = None) -> None:
        """samples: `data/<dataset>/samples.parquet`, with `dataset.json` beside it."""
        about = io.read_json(samples.with_name("dataset.json"))
        root = root_of(samples.with_name("dataset.json"))
        rows = io.read_table(samples)
        self.image_size, self.grid, self.threshold = image_size, grid, about.get("mask_threshold", 0)
        self._category = {row["sample_id"]: row["category"] for row in rows}
        self._files = {
            row["sample_id"]: _Files(root / row["image_path"], root / row["mask_path"] if row["mask_path"] else None) for row in rows
        }
        self.has_masks = any(files.mask for files in self._files.values())

    def categories(self) -> dict[str, list[str]]:
        """{category: its sample ids, or those of their tiles}, in the order of the table."""
        grouped: dict[str, list[str]] = {}
        for sample_id, category in self._category.items():
            grouped.setdefault(category, []).extend(self.grid.names(sample_id) if self.grid else [sample_id])
        return grouped

    def read(self, sample_ids: list[str], names: list[str]) -> Features:
        """{"pixels": (B, 3, S, S) uint8, "mask": (B, S, S) bool}, those of `names` that this data set has."""
        found: Features = {}
        if PIXELS in names:
            found[PIXELS] = torch.stack([self._pixels(sample_id) for sample_id in sample_ids])
        if MASK in names and self.has_masks:
            found[MASK] = torch.stack([self._mask(sample_id) for sample_id in sample_ids])
        return found

    def _pixels(self, sample_id: str) -> Tensor:
        return self._tile(sample_id)[0] if self.grid else load_pixels(self._files[sample_id].image, self.image_size)

    def _mask(self, sample_id: str) -> Tensor:
        return self._tile(sample_id)[1] if self.grid else load_mask(self._files[sample_id].mask, self.image_size, self.threshold)

    def _tile(self, tile_id: str) -> tuple[Tensor, Tensor]:
        sample_id, _, number = tile_id.rpartition("#")
        pixels, masks = _tiles(*self._files[sample_id], self.grid, self.threshold)
        return pixels[int(number)], masks[int(number)]
