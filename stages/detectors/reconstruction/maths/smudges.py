"""Simulated defects: a blotch of a changed texture, laid half transparently on a normal image, and the mask of where it lies.

Zavrtanik et al., "DRAEM", arXiv:2108.07610, section 3.3, with the settings of the authors' code. A texture goes through three of ten
changes, in random order; where a Perlin mask is set, it covers the image, through which `opacity` times of the image still shows.

Deviations from the authors' code, which draws with imgaug and OpenCV on the CPU:
- The ten changes are written for tensors here. Hue and saturation are a turn about the grey axis and a stretch away from it, brightness is a
  factor and a summand on all colours alike; ranges are the same.
- All draws come from the generator that is given, so that a step of a training can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.detectors.perlin import perlin_masks, rotated

Change = Callable[[Tensor, torch.Generator], Tensor]  # (3, H, W) in 0..1 to the same


def smudged(
    normal: Tensor, textures: Tensor, generator: torch.Generator, *, opacity: float = 0.8, clean: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Images with simulated defects and their masks: (B, 3, H, W) in 0..1 and (B, H, W) bool, from two (B, 3, H, W) in 0..1.

    opacity: of the normal image under a defect, drawn from 0..opacity. clean: how probable it is that an image stays as it was; its mask is
    empty then, as it is where the noise never exceeds its threshold.
    """
    count, size = len(normal), (normal.shape[2], normal.shape[3])
    changed = torch.stack([changed_texture(texture, generator) for texture in textures])
    masks = perlin_masks(count, size, generator, threshold=0.5, rotation=90.0)
    masks &= (torch.rand(count, generator=generator) >= clean)[:, None, None]
    share = opacity * torch.rand(count, generator=generator)
    return laid_over(normal, changed.to(normal), masks.to(normal.device), share.to(normal)), masks.to(normal.device)


def laid_over(normal: Tensor, textures: Tensor, masks: Tensor, opacity: Tensor) -> Tensor:
    """(1 - M) I + (1 - beta) M A + beta M I: beta, `opacity` (B,), is that of the normal image I, not of the texture A."""
    covered, beta = masks[:, None].to(normal), opacity[:, None, None, None]
    return (1 - covered) * normal + (1 - beta) * covered * textures + beta * covered * normal


def changed_texture(texture: Tensor, generator: torch.Generator, changes: int = 3) -> Tensor:
    """(3, H, W) in 0..1 after `changes` different ones of the ten, in random order."""
    for index in torch.randperm(len(CHANGES), generator=generator)[:changes].tolist():
        texture = CHANGES[index](texture, generator).clamp(0, 1)
    return texture


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def gamma(texture: Tensor, generator: torch.Generator) -> Tensor:
    return texture ** uniform(generator, 0.5, 2.0, 3, 1, 1)


def brightness(texture: Tensor, generator: torch.Generator) -> Tensor:
    return texture * uniform(generator, 0.8, 1.2, 1) + uniform(generator, -30 / 255, 30 / 255, 1)


def sharpness(texture: Tensor, generator: torch.Generator) -> Tensor:
    """From smoothed (0) over unchanged (1) to sharpened (2)."""
    kernel = torch.ones(3, 1, 3, 3) / 13
    kernel[:, :, 1, 1] = 5 / 13
    smooth = F.conv2d(F.pad(texture[None], (1, 1, 1, 1), mode="replicate"), kernel, groups=3)[0]
    return torch.lerp(smooth, texture, uniform(generator, 0.0, 2.0, 1))


def hue_and_saturation(texture: Tensor, generator: torch.Generator) -> Tensor:
    """Colours turned about the grey axis by up to 50/255 of a circle, and 50/255 nearer to it or farther from it."""
    angle = 2 * math.pi * uniform(generator, -50 / 255, 50 / 255, 1).item()
    stretch = uniform(generator, 1 - 50 / 255, 1 + 50 / 255, 1)
    grey = texture.mean(dim=0, keepdim=True)
    colour = texture - grey
    across = (colour.roll(1, 0) - colour.roll(-1, 0)) / math.sqrt(3)  # at right angles to the colour and to grey
    return grey + stretch * (math.cos(angle) * colour + math.sin(angle) * across)


def solarise(texture: Tensor, generator: torch.Generator) -> Tensor:
    """Half the times: inverted where it is brighter than a threshold."""
    inverts, threshold = torch.rand(1, generator=generator) < 0.5, uniform(generator, 32 / 255, 128 / 255, 1)
    return torch.where(inverts & (texture >= threshold), 1 - texture, texture)


def posterise(texture: Tensor, generator: torch.Generator) -> Tensor:
    """Only the highest 1 to 8 bits of each level."""
    step = 2 ** torch.randint(8, (1,), generator=generator)
    levels = (texture * 255).round().long()
    return (levels - levels % step) / 255


def invert(texture: Tensor, generator: torch.Generator) -> Tensor:
    return 1 - texture


def autocontrast(texture: Tensor, generator: torch.Generator) -> Tensor:
    """Each colour stretched to the whole range, up to a fifth of the pixels cut off at either end."""
    cut = uniform(generator, 0.0, 0.2, 1)
    low, high = (texture.flatten(1).quantile(end, dim=1)[0][:, None, None] for end in (cut, 1 - cut))
    return torch.where(high > low, (texture - low) / (high - low).clamp(min=1e-6), texture)


def equalise(texture: Tensor, generator: torch.Generator) -> Tensor:
    """Each colour so that every level is as frequent: a level becomes the share of pixels that are not brighter."""
    levels = (texture * 255).round().long().flatten(1)
    counts = torch.zeros(3, 256).scatter_add_(1, levels, torch.ones(levels.shape))
    return (counts.cumsum(1) / levels.shape[1]).gather(1, levels).view_as(texture)


def rotate(texture: Tensor, generator: torch.Generator) -> Tensor:
    return rotated(texture[None], uniform(generator, -45.0, 45.0, 1))[0]


CHANGES: tuple[Change, ...] = (
    gamma,
    brightness,
    sharpness,
    hue_and_saturation,
    solarise,
    posterise,
    invert,
    autocontrast,
    equalise,
    rotate,
)
