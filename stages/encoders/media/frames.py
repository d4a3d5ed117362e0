"""The kind `frames`: a picture, those of a folder, or frames of a film at equal distances, through a frozen network of timm; one token a frame.

A token is the mean of a layer's feature map over the picture, of all `layers` one behind another; with `grid: 2` there are four tokens a frame,
one for each quarter in reading order, so that something small is not averaged away. A picture is seen whole: scaled to a square, never cropped.
The network is that of the image encoder `cnn`, run by ONNX Runtime on a CPU; `network: vit` takes a transformer of timm by the encoder `vit`, e.g. DINOv2
with `layers: [block11_extra]` for its class token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from stages.datasets.images import resize_image
from stages.datasets.media import Clip, read_pictures, read_video
from stages.datasets.records import Tokens
from stages.encoders import encoder
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments, in_parts


def build(
    place: Place,
    *,
    reads: Literal["image", "video"] = "image",
    frames: Annotated[int, Field(ge=1)] = 8,
    network: Literal["cnn", "vit"] = "cnn",
    backbone: str = "tf_efficientnet_lite0",
    weights: str = "efficientnet-lite0",
    layers: tuple[str, ...] = ("layer4",),
    image_size: Annotated[int, Field(ge=32, le=4096)] = 224,
    grid: Annotated[int, Field(ge=1, le=16)] = 1,
    seed: int = 0,
) -> TokenEncoder:
    """frames: of a film; a picture has one. layers, backbone, weights, seed: as of the image encoder of that name."""
    seen = network_of(place, network, backbone, weights, layers, image_size, grid, seed)

    def read(path: Path) -> Clip:
        if reads == "video":
            clip = read_video(path, frames)
            return clip._replace(frames=np.stack([resize_image(frame, image_size) for frame in clip.frames]))
        pictures = [resize_image(picture, image_size) for picture in read_pictures(path)]
        return Clip(np.stack(pictures), np.zeros(len(pictures)))

    def encode(clips: Any) -> list[Tokens]:
        parts = seen.parts([clip.frames for clip in clips])
        return [
            at_moments(part.flatten(0, 1), np.repeat(clip.time_s, grid * grid).tolist()) for part, clip in zip(parts, clips, strict=True)
        ]

    return TokenEncoder(reads, seen.width, read, encode, seen.identity)


class Network(NamedTuple):
    """A frozen network with its pooling."""

    pooled: Callable[[Tensor], Tensor]  # (N, 3, H, W) uint8 to (N, grid * grid, D)
    width: int  # D
    identity: dict[str, Any]

    def parts(self, stacks: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        """Several (T, H, W, 3) to one (T, grid * grid, D) each, all in one pass."""
        pixels = torch.from_numpy(np.concatenate(stacks)).permute(0, 3, 1, 2)
        return in_parts([len(stack) for stack in stacks], self.pooled(pixels))


def network_of(
    place: Place, network: str, backbone: str, weights: str, layers: tuple[str, ...], image_size: int, grid: int, seed: int
) -> Network:
    """network: cnn or vit. The rest as of `build`."""
    square = encoder.Place(image_size, place.device, place.threads, place.backbones)
    frozen = import_module(f"stages.encoders.{network}").build(square, backbone=backbone, layers=list(layers), weights=weights, seed=seed)

    def pooled(pixels: Tensor) -> Tensor:
        return _pooled(frozen.encode(pixels), layers, grid)

    width = pooled(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)).shape[2]
    return Network(pooled, width, frozen.identity)


def _pooled(features: dict[str, Tensor], layers: tuple[str, ...], grid: int) -> Tensor:
    """{layer: (N, C, h, w)} to (N, grid * grid, D), cells in reading order."""
    cells = [F.adaptive_avg_pool2d(features[layer].float(), grid).flatten(2).transpose(1, 2) for layer in layers]
    return torch.cat(cells, 2)
