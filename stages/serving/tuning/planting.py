"""Synthetic defects in copies of good images, for a search that has no bad ones it may look at.

Three kinds: a texture blended in through a Perlin mask (as DRAEM's, arXiv:2108.07610), a piece of another image pasted (CutPaste,
arXiv:2104.04015), and a thin scratch (its "scar"). Each comes small and large, at moderate contrast: a task that every model solves ranks none, and
neither does one that none solves (defects half as wide and half as strong ranked PaDiM's parameters on `parts` by luck).
They are no real defects. What ranks two parameter sets on them may rank them otherwise on yours, so every figure made of them says so.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stages.detectors.perlin import perlin_masks

KINDS = ("texture", "patch", "scratch")
EXTENTS = (1 / 9, 1 / 4)  # sides of the box that holds a defect, as shares of the image's
COPIES = 72  # of one category at most; so few images to encode cost seconds
VISIBLE = 8.0  # grey levels of mean change; less is no defect, and is drawn anew
TRIES = 10


class Plan(NamedTuple):
    """One copy: of which image, and what is done to it."""

    image: int
    kind: str
    extent: float


def plan(images: int) -> list[Plan]:
    """Every kind and extent once for each image; where that is more than COPIES, so many, of all kinds in turn and of as many images as can be."""
    ways = [(kind, extent) for extent in EXTENTS for kind in KINDS]
    copies = [Plan(image, *ways[(turn + image) % len(ways)]) for turn in range(len(ways)) for image in range(images)]
    return copies[:COPIES]


def plant(images: Tensor, planned: Plan, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A copy with its defect, (3, H, W) uint8, and the defect's mask, (H, W) bool; outside of the mask no pixel changes.

    images: (N, 3, H, W) uint8, all that pieces may be cut from. A defect that cannot be seen, for instance background on background, is
    drawn anew, at most TRIES times.
    """
    image = images[planned.image]
    for _ in range(TRIES):
        changed, mask = DEFECTS[planned.kind](images, image, planned.extent, generator)
        mask = mask & (changed != image).any(dim=0)
        change = (changed.float() - image.float()).abs().mean(dim=0)[mask]
        if len(change) and change.mean() >= VISIBLE:
            break
    return torch.where(mask, changed, image), mask


def _texture(images: Tensor, image: Tensor, extent: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A piece of any image, made lighter or darker, shines through a blotch."""
    side = _side(image, extent)
    top, left = _corner(image, side, generator)
    blotch = perlin_masks(1, (side, side), generator, threshold=0.1, exponents=(0, 2))[0] & _ellipse(side)
    piece = _piece(images, side, generator).float() + _either_side(10, 40, generator)
    opacity = _between(0.3, 0.8, generator)
    box = image[:, top : top + side, left : left + side].float()
    return _placed(image, torch.lerp(box, piece, opacity), blotch, top, left)


def _patch(images: Tensor, image: Tensor, extent: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A piece of any image, from anywhere and turned, lies on this one."""
    side = _side(image, extent)
    top, left = _corner(image, side, generator)
    return _placed(image, _piece(images, side, generator).float(), _ellipse(side), top, left)


def _scratch(images: Tensor, image: Tensor, extent: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A bent line, a hundredth of the side wide, lighter or darker than what it crosses."""
    size = image.shape[1:]
    length, turn, bend = 2 * extent * min(size), _between(0, math.pi, generator), _between(-0.4, 0.4, generator)
    along = torch.linspace(-0.5, 0.5, max(2, int(4 * length))) * length
    aside = bend * along**2 / length
    middle = [_between(0.15, 0.85, generator) * side for side in size]
    rows = (middle[0] + along * math.sin(turn) + aside * math.cos(turn)).round().long()
    columns = (middle[1] + along * math.cos(turn) - aside * math.sin(turn)).round().long()
    width = max(1, round(min(size) / 100))
    mask = torch.zeros(size, dtype=torch.bool)
    for down in range(width):
        for right in range(width):
            mask[(rows + down).clamp(0, size[0] - 1), (columns + right).clamp(0, size[1] - 1)] = True
    return _levels(image.float() + _either_side(20, 60, generator)), mask


DEFECTS = {"texture": _texture, "patch": _patch, "scratch": _scratch}


def _placed(image: Tensor, box: Tensor, shape: Tensor, top: int, left: int) -> tuple[Tensor, Tensor]:
    side = shape.shape[0]
    changed, mask = image.clone(), torch.zeros(image.shape[1:], dtype=torch.bool)
    changed[:, top : top + side, left : left + side] = _levels(box)
    mask[top : top + side, left : left + side] = shape
    return changed, mask


def _piece(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """(3, side, side) from any place of any image, turned by quarters and perhaps mirrored."""
    other = images[int(torch.randint(len(images), (1,), generator=generator))]
    top, left = _corner(other, side, generator)
    piece = other[:, top : top + side, left : left + side].rot90(int(torch.randint(4, (1,), generator=generator)), (1, 2))
    return piece.flip(2) if torch.rand(1, generator=generator) < 0.5 else piece


def _ellipse(side: int) -> Tensor:
    offset = (torch.arange(side) + 0.5) / side - 0.5
    return offset[:, None] ** 2 + offset[None, :] ** 2 <= 0.25


def _side(image: Tensor, extent: float) -> int:
    return max(4, round(extent * min(image.shape[1:])))


def _corner(image: Tensor, side: int, generator: torch.Generator) -> tuple[int, int]:
    height, width = image.shape[1:]
    return tuple(int(torch.randint(length - side + 1, (1,), generator=generator)) for length in (height, width))


def _between(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand(1, generator=generator).item()


def _either_side(low: float, high: float, generator: torch.Generator) -> float:
    """From low..high, or its negative."""
    return _between(low, high, generator) * (1 if torch.rand(1, generator=generator) < 0.5 else -1)


def _levels(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 255).round().to(torch.uint8)
