"""The kind `vjepa2`: a film through a V-JEPA 2 from a local folder of transformers; one token for each two frames.

Assran et al., arXiv:2506.09985. The encoder sees all frames together; its patches are averaged over the picture, so that a token is a moment. Without
its predictor, which is for learning. Films with fewer frames than `frames` repeat their last; the picture is scaled whole to a square.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from stages.datasets.images import resize_image
from stages.datasets.media import Clip, read_video
from stages.datasets.records import Tokens
from stages.encoders.encoder import versions
from stages.encoders.media import pretrained
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(
    place: Place,
    *,
    weights: str = "vjepa2-vitl-fpc64-256",
    frames: Annotated[int, Field(ge=2, multiple_of=2)] = 16,
) -> TokenEncoder:
    """weights: a folder in backbones/. frames: even, as two make a token."""
    folder = pretrained.find(weights, f"facebook/{weights}", place.backbones)
    network, said = pretrained.load(folder, "VJEPA2Model").to(place.device), pretrained.preprocessing(folder)
    size, together = network.config.crop_size, network.config.tubelet_size

    def read(path: Path) -> Clip:
        clip = read_video(path, frames)
        held = np.minimum(np.arange(frames), len(clip.frames) - 1)
        seen = np.stack([resize_image(frame, size) for frame in clip.frames])
        return Clip(seen[held], clip.time_s[held])

    @torch.no_grad()
    def encode(clips: Any) -> list[Tokens]:
        return [_moments(clip, _states(clip)) for clip in clips]

    def _states(clip: Clip) -> Tensor:
        pixels = pretrained.normalised(torch.from_numpy(clip.frames).permute(0, 3, 1, 2), said, MEAN, STD)
        return network(pixel_values_videos=pixels[None].to(place.device), skip_predictor=True).last_hidden_state[0].cpu()

    def _moments(clip: Clip, states: Tensor) -> Tokens:
        """states: (moments * patches, D), the patches of the first moment first."""
        moments = frames // together
        return at_moments(states.unflatten(0, (moments, -1)).mean(1), clip.time_s.reshape(moments, -1).mean(1).tolist())

    identity = {"weights": folder.identity, "image_size": size, "versions": versions("torch", "transformers")}
    return TokenEncoder("video", network.config.hidden_size, read, encode, identity)
