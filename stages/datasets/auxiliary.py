"""Auxiliary images by name, for detectors that learn from more than normal images: `textures` (DRAEM, DSR) and `penalty` (EfficientAD).

Each comes from a local folder or, where there is none, from a built-in substitute that needs no download: generated textures, or the user's
own training images made strange. What was used is said in one line, which stands beside every result that depends on it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.datasets.images import is_image_name, read_image, resize_image
from stages.datasets.samples import DataError
from stages.detectors.perlin import perlin_noise
from stages.seed import torch_generator
from stages.types import Batch

PHOTOGRAPHS = ("brick", "grass", "gravel")  # of surfaces, those that lie inside the package scikit-image
BATCH = 32


class Auxiliary(NamedTuple):
    """images: (N, 3, S, S) uint8. name: what they are, for the tables."""

    images: Tensor
    name: str


class AuxiliaryBatches:
    """Implements stages.types.Batches: "pixels" only, the label unknown (-1). `name` is that of the images."""

    def __init__(self, auxiliary: Auxiliary) -> None:
        self.images, self.name = auxiliary
        self.samples = len(self.images)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, BATCH):
            yield self.take(list(range(start, min(start + BATCH, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        count = len(positions)
        ids = [f"auxiliary{position}" for position in positions]
        return Batch({"pixels": self.images[positions]}, torch.full((count,), -1), None, ids, ["auxiliary"] * count)


def auxiliary_batches(name: str, folder: str | None, normal: Tensor) -> AuxiliaryBatches:
    """The images that a detector asks for by `name`, at the size of its own. normal: (N, 3, S, S) uint8, the training images."""
    size, place = normal.shape[-1], Path(folder) if folder else None
    return AuxiliaryBatches(textures(size, place) if name == "textures" else penalty(size, place, normal=normal))


def textures(size: int, folder: Path | None = None, *, count: int = 128, seed: int = 0, most: int = 2000) -> Auxiliary:
    """Surfaces of all kinds: those of `folder` (DTD, or any images), else `count` generated ones and scikit-image's photographs if installed.

    most: so many of a larger folder are read, chosen by the seed. Raises DataError where the folder has no images.
    """
    if folder is not None:
        return from_folder(folder, size, most, seed)
    generator = torch_generator(seed, "textures")
    images = torch.stack([generated_texture(size, generator) for _ in range(count)])
    found = photographs(size)
    if not len(found):
        return Auxiliary(images, f"generated textures ({count} images, seed {seed})")
    name = f"generated textures ({count} images, seed {seed}) and scikit-image's photographs ({len(found)} images)"
    return Auxiliary(torch.cat([images, found]), name)


def penalty(
    size: int, folder: Path | None = None, *, normal: Tensor | None = None, count: int = 128, seed: int = 0, most: int = 2000
) -> Auxiliary:
    """Images that are none of the user's: those of `folder` (Imagenette, or any images), else `count` of his own made strange.

    normal: (N, 3, h, w) uint8, his training images. Raises DataError where neither gives an image.
    """
    if folder is not None:
        return from_folder(folder, size, most, seed)
    if normal is None or not len(normal):
        raise DataError("penalty images need a folder of images, or the training images they are to be made of; got neither")
    generator = torch_generator(seed, "penalty")
    images = torch.stack([made_strange(normal, size, generator) for _ in range(count)])
    return Auxiliary(images, f"training images under strong augmentation ({count} images, seed {seed})")


def from_folder(folder: Path, size: int, most: int, seed: int) -> Auxiliary:
    """Whatever images lie in or below it, resized whole; at most `most`, chosen by the seed and kept in the order of their paths."""
    if not folder.is_dir():
        raise DataError(f"auxiliary images: {folder} is no folder. Correct the path, or leave it out to use the built-in images")
    paths = sorted(path for path in folder.rglob("*") if is_image_name(path) and path.is_file())
    if not paths:
        raise DataError(f"auxiliary images: {folder} holds no image. Correct the path, or leave it out to use the built-in images")
    chosen = torch.randperm(len(paths), generator=torch_generator(seed, "folder"))[:most].sort().values.tolist()
    images = torch.stack([_planes(paths[index], size) for index in chosen])
    counted = f"{len(paths)} images" if len(chosen) == len(paths) else f"{len(chosen)} of {len(paths)} images, seed {seed}"
    return Auxiliary(images, f"folder {folder.name} ({counted})")


def generated_texture(size: int, generator: torch.Generator) -> Tensor:
    """(3, size, size) uint8: Perlin noise of four scales, each with a colour of its own, on a ground of random colour; half of them banded.

    Scales, colours, strengths and bands are drawn, so that fine and coarse, bright and dark, streaked and blotchy ones all occur.
    """
    scales = 2 ** torch.randint(0, 7, (4, 2), generator=generator)
    noise = perlin_noise(scales.clamp(max=max(1, size // 2)), (size, size), generator)  # (4, size, size)
    if torch.rand(1, generator=generator) < 0.5:
        noise = torch.sin(noise * (2 + 14 * torch.rand(4, 1, 1, generator=generator)))
    colours = 2 * torch.rand(4, 3, generator=generator) - 1
    strengths = (0.1 + 0.6 * torch.rand(4, 1, generator=generator)) / scales.amax(dim=1, keepdim=True) ** 0.25
    ground = torch.rand(3, 1, 1, generator=generator)
    levels = ground + torch.einsum("khw,kc->chw", noise, colours * strengths)
    return (255 * levels.clamp(0, 1)).round().to(torch.uint8)


def photographs(size: int) -> Tensor:
    """(N, 3, size, size) uint8 of scikit-image's surfaces, each whole and in quarters; none where the package is not installed.

    Its files are read where they lie: its own loader would ask the network for those that do not come with it.
    """
    package = importlib.util.find_spec("skimage")
    inside = (
        [Path(place) / "data" / f"{name}.png" for place in (package.submodule_search_locations or []) for name in PHOTOGRAPHS]
        if package
        else []
    )
    images = []
    for path in inside:
        if path.is_file():
            whole = read_image(path)
            half_height, half_width = whole.shape[0] // 2, whole.shape[1] // 2
            quarters = [whole[y : y + half_height, x : x + half_width] for y in (0, half_height) for x in (0, half_width)]
            images += [torch.from_numpy(resize_image(part, size)).permute(2, 0, 1) for part in (whole, *quarters)]
    return torch.stack(images).contiguous() if images else torch.zeros(0, 3, size, size, dtype=torch.uint8)


def made_strange(normal: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(3, size, size) uint8: a crop of one image with a patch of another, colours shuffled, turned and, half the times, inverted."""
    base, patch = (_crop(normal, size, generator) for _ in range(2))
    height, width = (int(side) for side in torch.randint(size // 8 + 1, size // 2 + 1, (2,), generator=generator))
    top, left = (int(torch.randint(size - side + 1, (1,), generator=generator)) for side in (height, width))
    base[:, top : top + height, left : left + width] = patch[
        torch.randperm(3, generator=generator), top : top + height, left : left + width
    ]
    strange = base[torch.randperm(3, generator=generator)].rot90(int(torch.randint(4, (1,), generator=generator)), (1, 2))
    inverts = torch.rand(3, generator=generator) < 0.5
    return torch.where(inverts[:, None, None], 255 - strange, strange).contiguous()


def _crop(normal: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """(3, size, size): a random part of a random image, a tenth to the whole of each side, enlarged."""
    image = normal[int(torch.randint(len(normal), (1,), generator=generator))]
    height, width = (max(1, int(side * (0.1 + 0.9 * torch.rand(1, generator=generator).item()))) for side in image.shape[1:])
    top = int(torch.randint(image.shape[1] - height + 1, (1,), generator=generator))
    left = int(torch.randint(image.shape[2] - width + 1, (1,), generator=generator))
    part = image[None, :, top : top + height, left : left + width].float()
    return F.interpolate(part, (size, size), mode="bilinear", align_corners=False)[0].round().to(torch.uint8)


def _planes(path: Path, size: int) -> Tensor:
    return torch.from_numpy(resize_image(read_image(path), size)).permute(2, 0, 1).contiguous()
