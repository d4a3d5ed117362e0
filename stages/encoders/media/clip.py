"""The kind `clip`: a picture, the frames of a film, or a note into the space that a CLIP has in common for both, from a local folder of transformers.

Radford et al., arXiv:2103.00020. `reads` chooses the tower; two entries on the same folder, one for pictures and one for notes, give tokens whose
inner products mean something (a pair that does not match is far apart). Tokens have unit length. Pictures are scaled whole to a square, where
CLIP's own preprocessing crops the centre.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.datasets.images import resize_image
from stages.datasets.media import Clip, read_pictures, read_text, read_video
from stages.datasets.records import Tokens
from stages.encoders.encoder import versions
from stages.encoders.media import pretrained
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments, in_parts

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
AT_ONCE = 16  # frames or notes in one pass


def build(
    place: Place,
    *,
    weights: str = "clip-vit-base-patch16",
    reads: Literal["image", "video", "text"] = "image",
    frames: Annotated[int, Field(ge=1)] = 8,
) -> TokenEncoder:
    """weights: a folder in backbones/."""
    folder = pretrained.find(weights, f"openai/{weights}", place.backbones)
    network = pretrained.load(folder, "CLIPModel").to(place.device)
    identity = {"weights": folder.identity, "versions": versions("torch", "transformers", "tokenizers")}
    width = network.config.projection_dim
    if reads == "text":
        return TokenEncoder("text", width, read_text, _of_notes(network, folder, place.device), identity)
    size = network.config.vision_config.image_size

    def read(path: Path) -> Clip:
        if reads == "video":
            clip = read_video(path, frames)
            return clip._replace(frames=np.stack([resize_image(frame, size) for frame in clip.frames]))
        pictures = [resize_image(picture, size) for picture in read_pictures(path)]
        return Clip(np.stack(pictures), np.zeros(len(pictures)))

    return TokenEncoder(reads, width, read, _of_clips(network, folder, place.device), identity)


def _of_clips(network: Any, folder: pretrained.Folder, device: str) -> Callable[[Any], list[Tokens]]:
    said = pretrained.preprocessing(folder)

    @torch.no_grad()
    def encode(clips: Any) -> list[Tokens]:
        pixels = torch.from_numpy(np.concatenate([clip.frames for clip in clips])).permute(0, 3, 1, 2)
        seen = [pretrained.normalised(part, said, MEAN, STD).to(device) for part in pixels.split(AT_ONCE)]
        rows = torch.cat([_unit(network.visual_projection(network.vision_model(pixel_values=part).pooler_output)) for part in seen])
        parts = in_parts([len(clip.frames) for clip in clips], rows)
        return [at_moments(part, clip.time_s.tolist()) for part, clip in zip(parts, clips, strict=True)]

    return encode


def _of_notes(network: Any, folder: pretrained.Folder, device: str) -> Callable[[Any], list[Tokens]]:
    tokenizer, longest = pretrained.part(folder, "AutoTokenizer"), network.config.text_config.max_position_embeddings

    @torch.no_grad()
    def encode(notes: Any) -> list[Tokens]:
        rows = []
        for start in range(0, len(notes), AT_ONCE):
            some = list(notes[start : start + AT_ONCE])
            batch = tokenizer(some, padding="max_length", truncation=True, max_length=longest, return_tensors="pt").to(device)
            rows.append(_unit(network.text_projection(network.text_model(**batch).pooler_output)))
        return [at_moments(row[None], [0.0]) for row in torch.cat(rows)]

    return encode


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=1).cpu()
