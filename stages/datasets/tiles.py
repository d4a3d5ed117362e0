"""Large images in tiles: an image is resized whole to a canvas, cut into overlapping squares that are learnt from and scored like images of
their own, and put together again.

The starts of the tiles are spread evenly, so that sizes that do not divide need no padding and every tile is full of image. Where tiles
overlap, each counts by its distance from its own border: what two tiles say differs by a slope, not by a step. The weights are whole
numbers and the sums are float64, so that tiles which agree give back exactly what was cut.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from stages.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


class Grid(NamedTuple):
    """How a canvas is cut. All in pixels."""

    height: int  # of the canvas
    width: int
    tile: int
    overlap: int  # of neighbours, at least

    @classmethod
    def over(cls, canvas: tuple[int, int], tile: int, overlap: int) -> Self:
        """Raises UserError for tiles that do not fit into the canvas, or whose overlap leaves nothing to step on by."""
        if min(canvas) < tile:
            raise UserError(
                f"canvas {canvas[0]} x {canvas[1]} is smaller than image_size, which is the side of a tile: {tile}. Make it larger"
            )
        if not 0 <= overlap < tile:
            raise UserError(f"overlap must be at least 0 and less than image_size, the side of a tile ({tile}), got {overlap}")
        return cls(*canvas, tile, overlap)

    @classmethod
    def of(cls, about: dict[str, Any]) -> Self | None:
        """The grid that a store's encoder.json or a model's config records, or None where its images are whole."""
        return cls(**about["tiles"]) if about.get("tiles") else None

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of each tile, row by row."""
        return [(top, left) for top in self._starts(self.height) for left in self._starts(self.width)]

    @property
    def count(self) -> int:
        return len(self._starts(self.height)) * len(self._starts(self.width))

    def names(self, sample_id: str) -> list[str]:
        """What the tiles of one image are called in a store, in the order of `corners`."""
        return [f"{sample_id}#{number}" for number in range(self.count)]

    def cut(self, images: Tensor) -> Tensor:
        """(B, ..., height, width) to (B * count, ..., tile, tile), image by image."""
        import torch

        tiles = [images[..., top : top + self.tile, left : left + self.tile] for top, left in self.corners]
        return torch.stack(tiles, dim=1).flatten(0, 1)

    def merge(self, tiles: Tensor) -> Tensor:
        """(B * count, ..., t, t) to (B, ..., height, width) in the type of `tiles`, for anything that `cut` may be given."""
        import torch

        each = tiles.unflatten(0, (-1, self.count))
        weight = self._weight(tiles.device)
        total = torch.zeros(len(each), *tiles.shape[1:-2], self.height, self.width, dtype=torch.float64, device=tiles.device)
        sums = torch.zeros(self.height, self.width, dtype=torch.float64, device=tiles.device)
        for number, (top, left) in enumerate(self.corners):
            place = (..., slice(top, top + self.tile), slice(left, left + self.tile))
            total[place] += weight * each[:, number]
            sums[place] += weight
        merged = total / sums
        return merged.to(tiles.dtype) if tiles.is_floating_point() else merged.round().to(tiles.dtype)

    def _starts(self, length: int) -> list[int]:
        steps = max(1, math.ceil((length - self.overlap) / (self.tile - self.overlap))) - 1
        return [round(step * (length - self.tile) / steps) for step in range(steps + 1)] if steps else [0]

    def _weight(self, device: Any) -> Tensor:
        """(tile, tile): from 1 at the border to overlap + 1 inside, along each side."""
        import torch

        place = torch.arange(self.tile, dtype=torch.float64, device=device)
        along = torch.minimum(place, place.flip(0)).add(1).clamp(max=self.overlap + 1)
        return along[:, None] * along[None, :]


def in_tiles(name: str, entry: dict[str, Any], canvas: int | tuple[int, int], overlap: int | None = None) -> tuple[str, dict[str, Any]]:
    """An entry of the encoder `pixels` with its images cut into tiles, and a name for it.

    canvas: height and width, or both at once. overlap: an eighth of a tile by default. Raises UserError as `Grid.over` does.
    """
    sides = (canvas, canvas) if isinstance(canvas, int) else tuple(canvas)
    grid = Grid.over(sides, entry["image_size"], entry["image_size"] // 8 if overlap is None else overlap)
    return f"{name}-in-{grid.height}x{grid.width}", entry | {"canvas": [grid.height, grid.width], "overlap": grid.overlap}
