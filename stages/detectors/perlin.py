"""Perlin noise and the blotchy masks cut from it, with which detectors simulate anomalies: DRAEM, DSR, SuperSimpleNet.

A lattice of random unit gradients; a pixel blends, with a quintic fade, what the gradients of its cell's four corners say about its
offset from them. Perlin, "Improving Noise", SIGGRAPH 2002; the masks as in Zavrtanik et al., "DRAEM", arXiv:2108.07610, section 3.3.

Deviations from the masks of DRAEM:
- Any size of image, any number of cells: a pixel's place in its cell is computed exactly. At powers of two nothing changes.
- No more cells than half the pixels of a side, for where every pixel is a corner the noise is zero. At 64 pixels nothing changes.

Every draw comes from the generator that is given, on the CPU; a whole batch, each image with its own number of cells, is one computation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def perlin_noise(cells: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, H, W) float32 in -1..1, zero at every corner of a cell. cells: (B, 2) int64, how many along height and width of each image."""
    if (cells < 1).any():
        raise ValueError(f"Perlin noise needs at least one cell along each side, got {cells.min().item()}")
    rows, columns = cells.amax(dim=0).tolist()
    angles = 2 * math.pi * torch.rand(len(cells), rows + 1, columns + 1, generator=generator)
    return noise_of(angles, cells, size)


def noise_of(angles: Tensor, cells: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) from the directions of the gradients. angles: (B, R, S) in radians, of which each image uses as many as its cells need."""
    image = torch.arange(len(cells))[:, None, None]
    row, down = _places(cells[:, 0], size[0])
    column, right = _places(cells[:, 1], size[1])
    row, down, column, right = row[:, :, None], down[:, :, None], column[:, None, :], right[:, None, :]
    along, across = angles.cos(), angles.sin()

    def corner(i: int, j: int) -> Tensor:
        place = (image, row + i, column + j)
        return along[place] * (down - i) + across[place] * (right - j)

    fade_down, fade_right = _fade(down), _fade(right)
    at_left, at_right = torch.lerp(corner(0, 0), corner(1, 0), fade_down), torch.lerp(corner(0, 1), corner(1, 1), fade_down)
    return math.sqrt(2) * torch.lerp(at_left, at_right, fade_right)


def random_cells(count: int, size: tuple[int, int], generator: torch.Generator, exponents: tuple[int, int] = (0, 5)) -> Tensor:
    """(count, 2) int64: 2 to a power drawn from `exponents`, both ends included, for each side of each image."""
    drawn = 2 ** torch.randint(exponents[0], exponents[1] + 1, (count, 2), generator=generator)
    return drawn.minimum(torch.tensor(size) // 2).clamp(min=1)


def perlin_masks(
    count: int,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    threshold: float = 0.5,
    exponents: tuple[int, int] = (0, 5),
    rotation: float = 0.0,
) -> Tensor:
    """(count, H, W) bool, True where the noise exceeds `threshold`. A mask may be empty.

    rotation: in degrees; the noise of each image is turned by an angle drawn from -rotation..rotation before it is cut.
    """
    noise = perlin_noise(random_cells(count, size, generator, exponents), size, generator)
    if rotation:
        noise = rotated(noise[:, None], rotation * (2 * torch.rand(count, generator=generator) - 1))[:, 0]
    return noise > threshold


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """(B, C, H, W) float, each turned counter-clockwise about its centre by its own angle; bilinear, zero where nothing was.

    degrees: (B,). No resize: what leaves the frame is lost.
    """
    height, width = images.shape[2:]
    angle = torch.deg2rad(degrees).to(images.device)[:, None, None]
    down = (torch.arange(height, device=images.device) - (height - 1) / 2)[None, :, None]
    right = (torch.arange(width, device=images.device) - (width - 1) / 2)[None, None, :]
    from_right = right * angle.cos() - down * angle.sin()
    from_down = right * angle.sin() + down * angle.cos()
    grid = torch.stack([2 * from_right / width, 2 * from_down / height], dim=-1)  # (B, H, W, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _places(cells: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """For each pixel along one side, its cell (B, length) and where it lies in it, 0..1."""
    scaled = torch.arange(length)[None] * cells[:, None]
    return scaled // length, (scaled % length) / length


def _fade(place: Tensor) -> Tensor:
    return place**3 * (place * (6 * place - 15) + 10)
