"""The kind `dinov2`: a picture, those of a folder (views of one thing), or frames of a film, through a vision transformer of transformers from a local folder.

DINOv2 (Oquab et al., arXiv:2304.07193) is what it was written for; any vision model whose last hidden state begins with a class token and goes on
with patches fits. `pool: cls` (the class token, DINOv2's own global embedding), `mean` (of the patches) or `both`, one token a frame; `patches` gives
every patch. The picture is scaled whole to a square, not cropped as the folder's own preprocessor may say: what is wrong with a part is often at its edge.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stages.datasets.images import resize_image
from stages.datasets.media import Clip, read_pictures, read_video
from stages.datasets.records import Tokens
from stages.encoders.encoder import versions
from stages.encoders.media import pretrained
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments, in_parts

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AT_ONCE = 8  # frames in one pass


def build(
    place: Place,
    *,
    weights: str = "dinov2-small",
    reads: Literal["image", "video"] = "image",
    frames: Annotated[int, Field(ge=1)] = 8,
    pool: Literal["cls", "mean", "both", "patches"] = "cls",
    image_size: Annotated[int | None, Field(ge=14)] = None,
) -> TokenEncoder:
    """weights: a folder in backbones/. image_size: what the folder says by default."""
    folder = pretrained.find(weights, f"facebook/{weights}", place.backbones)
    network, said = pretrained.load(folder).to(place.device), pretrained.preprocessing(folder)
    size = image_size or said["size"] or 224
    extra = 1 + getattr(network.config, "num_register_tokens", 0)  # tokens before the patches

    def read(path: Path) -> Clip:
        if reads == "video":
            clip = read_video(path, frames)
            return clip._replace(frames=np.stack([resize_image(frame, size) for frame in clip.frames]))
        pictures = [resize_image(picture, size) for picture in read_pictures(path)]
        return Clip(np.stack(pictures), np.zeros(len(pictures)))

    @torch.no_grad()
    def encode(clips: Any) -> list[Tokens]:
        pixels = torch.from_numpy(np.concatenate([clip.frames for clip in clips])).permute(0, 3, 1, 2)
        states = torch.cat([_states(network, pretrained.normalised(part, said, MEAN, STD), place.device) for part in pixels.split(AT_ONCE)])
        pooled = _pooled(states, extra, pool)  # (N, tokens of a frame, D)
        parts = in_parts([len(clip.frames) for clip in clips], pooled)
        return [
            at_moments(part.flatten(0, 1), np.repeat(clip.time_s, pooled.shape[1]).tolist())
            for part, clip in zip(parts, clips, strict=True)
        ]

    width = network.config.hidden_size * (2 if pool == "both" else 1)
    identity = {"weights": folder.identity, "image_size": size, "versions": versions("torch", "transformers")}
    return TokenEncoder(reads, width, read, encode, identity)


def _states(network: torch.nn.Module, pixels: Tensor, device: str) -> Tensor:
    return network(pixel_values=pixels.to(device)).last_hidden_state.cpu()


def _pooled(states: Tensor, extra: int, pool: str) -> Tensor:
    """states: (N, extra + patches, D), the class token first."""
    if pool == "patches":
        return states[:, extra:]
    classes, patches = states[:, :1], states[:, extra:].mean(1, keepdim=True)
    return {"cls": classes, "mean": patches, "both": torch.cat([classes, patches], 2)}[pool]
