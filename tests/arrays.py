"""Small made-up data for tests of detectors and of the training loop: batches that lie in memory, a tiny network, images with and without a
defect."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.types import Batch, Features

SIZE = 32  # pixels along each side of a made-up image
LAYERS = ("layer1", "layer2", "layer3")


class ArrayBatches:
    """Implements stages.types.Batches over tensors; `reads` counts the batches that were handed out."""

    def __init__(self, features: Features, batch_size: int = 4) -> None:
        self.features, self.batch_size = features, batch_size
        self.samples = len(next(iter(features.values())))
        self.reads = 0

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.samples, self.batch_size):
            yield self.take(list(range(first, min(first + self.batch_size, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        self.reads += 1
        features = {name: values[positions] for name, values in self.features.items()}
        count = len(positions)
        return Batch(features, torch.zeros(count, dtype=torch.int64), None, [f"image{place}" for place in positions], ["made-up"] * count)


class TinyCNN(nn.Module):
    """Three layers at strides 2, 4, 8, called as the encoder `cnn` is; takes (B, 3, H, W) uint8."""

    def __init__(
        self, *, backbone: str = "tiny", layers: tuple[str, ...] = LAYERS, weights: str = "random", seed: int, trainable: bool
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = (3, 8, 12, 16)
            layers = (nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in itertools.pairwise(widths))
            self.stages = nn.ModuleList(layers)
        self.requires_grad_(trainable)

    def forward(self, pixels: Tensor) -> Features:
        value, found = pixels.float() / 127.5 - 1, {}
        for name, stage in zip(LAYERS, self.stages, strict=True):
            value = found[name] = stage(value)
        return {name: found[name] for name in self.layers}


def normal_pixels(count: int, seed: int = 0, noise: float = 6.0) -> Tensor:
    """(count, 3, SIZE, SIZE) uint8: one smooth pattern, the same in every image, with fresh noise."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(0, 6.0, SIZE)
    pattern = 110 + 40 * torch.sin(axis)[None, :, None] * torch.cos(axis * torch.tensor([1.0, 1.3, 0.7])[:, None])[:, None, :]
    return (pattern + noise * torch.randn(count, 3, SIZE, SIZE, generator=generator)).clamp(0, 255).to(torch.uint8)


def noise_pixels(count: int, seed: int = 0) -> Tensor:
    """(count, 3, SIZE, SIZE) uint8: blotches of every level, such as auxiliary textures have."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, (SIZE, SIZE), mode="bilinear")).to(torch.uint8)


def plant_defect(pixels: Tensor) -> Tensor:
    """The same images with a checkered square of 10 pixels, none of whose levels is normal there."""
    planted = pixels.clone()
    rows, columns = torch.meshgrid(torch.arange(10), torch.arange(10), indexing="ij")
    planted[:, :, 18:28, 3:13] = torch.where((rows // 2 + columns // 2) % 2 == 0, 255, 0).to(torch.uint8)
    return planted


def features_of(pixels: Tensor) -> Features:
    """What a frozen teacher, always the same, gives for these images, and the images.

    group1 and group2 have one width and one grid, as means of a transformer's blocks do, and `_extra` the tokens that belong to no patch. image, patches
    and windows are as of a CLIP: `read_aloud` has their width.
    """
    found = TinyCNN(seed=1234, trainable=False).eval()(pixels)
    shallow = found["layer2"]
    deep = F.interpolate(found["layer3"][:, : shallow.shape[1]], shallow.shape[2:])
    groups = {"group1": shallow, "group2": deep}
    extra = {f"{name}_extra": value.mean(dim=(2, 3), keepdim=True) for name, value in groups.items()}
    windows = {f"window{side}": F.avg_pool2d(shallow, side, 1) for side in (2, 3)}
    clip = {"image": shallow.mean(dim=(2, 3), keepdim=True), "patches": shallow, **windows}
    return {**found, **groups, **extra, **clip, "pixels": pixels}


def read_aloud(sentences: Sequence[str]) -> Tensor:
    """(n, 12): a made-up text tower for `features_of`: a sentence about damage says what the planted defect looks like, any other what is normal, each
    in a voice of its own."""
    seen = features_of(plant_defect(normal_pixels(1)))["patches"][0]
    looks = {True: seen[:, 5, 2], False: features_of(normal_pixels(1))["image"][0, :, 0, 0]}
    seeds = [int.from_bytes(hashlib.sha256(sentence.encode()).digest()[:4]) for sentence in sentences]
    voices = torch.stack([0.02 * torch.randn(12, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    damage = ("damaged", "with flaw", "with defect", "with damage")
    return voices + torch.stack([looks[any(word in sentence for word in damage)] for sentence in sentences])


def grid_features(count: int, width: int, grid: tuple[int, int] = (4, 4), seed: int = 0) -> Features:
    """Random features of one layer, "layer2", and blank images of SIZE pixels."""
    values = torch.randn(count, width, *grid, generator=torch.Generator().manual_seed(seed))
    return {"layer2": values, "pixels": torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8)}


def upsampled(values: Tensor, size: int) -> Tensor:
    """(B, h, w) -> (B, size, size) bilinear, the plain way."""
    return F.interpolate(values[:, None], (size, size), mode="bilinear", align_corners=False)[:, 0]
