"""The kind `arc_film`: a film of the arc in grey, `frames` moments of it through a frozen network of timm; one token a moment.

With `onset` the moments lie at equal distances over `clock_s` from the arc on, seen as a rise of the brightness that stays; those after the end of
the film are no tokens. Where no such rise is seen the film's beginning counts. Without `onset` they lie over the whole film. A moment is the nearest
frame, or with `together` the three frames around it as the three colours, so that one token sees motion. The network and its pooling are those of the
kind `frames`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from stages.datasets.arc_clock import nearest_frames, seen
from stages.datasets.media import Clip, read_grey_film
from stages.datasets.records import Tokens
from stages.encoders.media.encoder import Place, TokenEncoder
from stages.encoders.media.frames import network_of


def build(
    place: Place,
    *,
    frames: Annotated[int, Field(ge=1)] = 10,
    onset: bool = True,
    clock_s: Annotated[float, Field(gt=0)] = 40.0,
    together: bool = False,
    network: Literal["cnn", "vit"] = "cnn",
    backbone: str = "tf_efficientnet_lite0",
    weights: str = "efficientnet-lite0",
    layers: tuple[str, ...] = ("layer4",),
    image_size: Annotated[int, Field(ge=32, le=1024)] = 96,
    grid: Annotated[int, Field(ge=1, le=16)] = 1,
    seed: int = 0,
) -> TokenEncoder:
    """clock_s: what time 1 is, from the arc on. The rest as of `frames`."""
    frozen = network_of(place, network, backbone, weights, layers, image_size, grid, seed)

    def read(path: Path) -> Clip:
        film = read_grey_film(path, image_size)
        start = (seen(film.frames, film.time_s) or 0.0) if onset else 0.0
        at = nearest_frames(film.time_s, frames, start, clock_s if onset else None)
        beside = (np.clip(at - 1, 0, None), at, np.clip(at + 1, None, len(film.frames) - 1)) if together else (at, at, at)
        end = clock_s if onset else max(float(film.time_s[-1]), 1e-9)
        return Clip(np.stack([film.frames[place] for place in beside], 3), ((film.time_s[at] - start) / end).clip(0, 1))

    def encode(clips: Any) -> list[Tokens]:
        parts = frozen.parts([clip.frames for clip in clips])
        return [
            Tokens(part.flatten(0, 1).float().contiguous(), torch.from_numpy(np.repeat(clip.time_s, grid * grid)).float())
            for part, clip in zip(parts, clips, strict=True)
        ]

    return TokenEncoder("video", frozen.width, read, encode, frozen.identity)
