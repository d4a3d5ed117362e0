"""The kind `wav2vec2`: a sound through a Wav2Vec 2.0 from a local folder of transformers; the mean of its states in each window is a token.

Baevski et al., arXiv:2006.11477. Each window is standardised if the folder's preprocessor says so, and goes through the network alone: nothing is
padded, so that the network's missing attention mask (it has none where layers are group-normalised) cannot matter.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.datasets.media import Sound, read_audio
from stages.datasets.records import Tokens
from stages.encoders.encoder import versions
from stages.encoders.media import pretrained
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments

RATE = 16000
SHORTEST = 400  # samples that one state of the network is made of


def build(
    place: Place,
    *,
    weights: str = "wav2vec2-base",
    window_s: Annotated[float, Field(ge=0.1)] = 1.0,
) -> TokenEncoder:
    """weights: a folder in backbones/. A rest of less than half a window joins the one before it."""
    folder = pretrained.find(weights, f"facebook/{weights}", place.backbones)
    network = pretrained.load(folder, "Wav2Vec2Model").to(place.device)
    standardise = pretrained.part(folder, "Wav2Vec2FeatureExtractor").do_normalize
    length = round(window_s * RATE)

    @torch.no_grad()
    def encode(sounds: Any) -> list[Tokens]:
        return [_windows(sound) for sound in sounds]

    def _windows(sound: Sound) -> Tokens:
        samples = F.pad(torch.from_numpy(sound.samples), (0, max(SHORTEST - len(sound.samples), 0)))
        bounds = [*range(0, max(len(samples) - length // 2, 1), length), len(samples)]
        rows = [_state(samples[start:stop]) for start, stop in pairwise(bounds)]
        middles = [(start + stop) / 2 for start, stop in pairwise(bounds)]
        return at_moments(torch.stack(rows), middles, len(samples))

    def _state(samples: Tensor) -> Tensor:
        if standardise:
            samples = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        return network(samples[None].to(place.device)).last_hidden_state[0].mean(0).cpu()

    identity = {"weights": folder.identity, "versions": versions("torch", "transformers", "av")}
    return TokenEncoder("audio", network.config.hidden_size, partial(read_audio, rate=RATE), encode, identity)
