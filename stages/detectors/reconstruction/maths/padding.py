"""Networks that halve an image several times want sides that are a multiple of a power of two: padded before, cropped after.

The border is repeated outwards, half on each side, so that no edge appears where the image ends.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def padded(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), the image in the middle; where an odd number of pixels is missing, one more at bottom and right."""
    missing_rows, missing_columns = size[0] - images.shape[2], size[1] - images.shape[3]
    if missing_rows < 0 or missing_columns < 0:
        raise ValueError(f"cannot pad {tuple(images.shape[2:])} pixels to the smaller {size}")
    top, left = missing_rows // 2, missing_columns // 2
    return F.pad(images, (left, missing_columns - left, top, missing_rows - top), mode="replicate")


def cropped(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse: the middle (B, C, *size) of what was padded."""
    top, left = (images.shape[2] - size[0]) // 2, (images.shape[3] - size[1]) // 2
    return images[:, :, top : top + size[0], left : left + size[1]]


def next_multiple(size: tuple[int, int], multiple: int, least: int = 0) -> tuple[int, int]:
    """The smallest multiples of `multiple` that hold an image of this size, each side at least `least`."""
    height, width = (max(-(-side // multiple) * multiple, least) for side in size)
    return height, width


def next_square(size: tuple[int, int], least: int = 16) -> int:
    """The side of the smallest square that holds an image of this size and is a power of two."""
    return max(least, 1 << (max(size) - 1).bit_length())
