"""The kind `views`: photographs of one thing from several angles, a folder of them or one file, through a frozen network of timm; a token a photograph.

The network and its pooling are those of the kind `frames`. A photograph that is missing is no token. Time tells the angle, 0 the first and 1 the last:
the number at the end of the file's name, else its place in order of the names. `crop` cuts a share off each side before the picture is scaled, such as
the strip where a paper label with the class code lies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from stages.datasets.images import resize_image
from stages.datasets.media import Clip, read_pictures
from stages.datasets.records import Tokens
from stages.datasets.weld_files import angles, cropped, photos
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments
from stages.encoders.media.frames import network_of
from stages.params import ParamsError

Share = Annotated[float, Field(ge=0, lt=1)]


def build(
    place: Place,
    *,
    views: Annotated[int, Field(ge=1)] = 5,
    crop: tuple[Share, Share, Share, Share] = (0.0, 0.0, 0.0, 0.0),
    network: Literal["cnn", "vit"] = "cnn",
    backbone: str = "tf_efficientnet_lite0",
    weights: str = "efficientnet-lite0",
    layers: tuple[str, ...] = ("layer4",),
    image_size: Annotated[int, Field(ge=32, le=4096)] = 112,
    grid: Annotated[int, Field(ge=1, le=16)] = 1,
    seed: int = 0,
) -> TokenEncoder:
    """views: angles that there are; photographs beyond them are not read. crop: shares of width and height off the left, the top, the right and the bottom.

    The rest as of `frames`. Raises ParamsError for a crop that leaves nothing.
    """
    if crop[0] + crop[2] >= 1 or crop[1] + crop[3] >= 1:
        raise ParamsError(f"crop {list(crop)} leaves nothing of a photograph; left and right, and top and bottom, must stay below 1 together")
    seen = network_of(place, network, backbone, weights, layers, image_size, grid, seed)

    def read(path: Path) -> Clip:
        pictures = [resize_image(cropped(picture, crop), image_size) for picture in read_pictures(path, views)]
        at = np.asarray(angles(photos(path)[:views], views) if path.is_dir() else [0])
        order = np.argsort(at)
        return Clip(np.stack(pictures)[order], at[order].astype(np.float64))

    def encode(clips: Any) -> list[Tokens]:
        parts = seen.parts([clip.frames for clip in clips])
        return [
            at_moments(part.flatten(0, 1), np.repeat(clip.time_s, grid * grid).tolist(), max(views - 1, 1))
            for part, clip in zip(parts, clips, strict=True)
        ]

    return TokenEncoder("image", seen.width, read, encode, seen.identity)
