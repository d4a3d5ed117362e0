"""The kind `log_mel`: statistics of a log-mel spectrogram, one token a window. No network and nothing learnt.

A sound is cut into windows that overlap; in each, every mel band gives its mean, standard deviation and maximum over time: what hums, what
changes, what clicks. The last window ends where the sound does, and a sound that is shorter than a window is one window.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.datasets.media import read_audio
from stages.datasets.records import Tokens
from stages.encoders.encoder import versions
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments

FLOOR = 1e-6  # added to a power before the logarithm: 60 dB below full scale


def build(
    place: Place,
    *,
    rate: Annotated[int, Field(ge=1000)] = 16000,
    bands: Annotated[int, Field(ge=8, le=256)] = 40,
    window_s: Annotated[float, Field(gt=0)] = 1.0,
    hop_s: Annotated[float, Field(gt=0)] = 0.5,
    frame_ms: Annotated[float, Field(gt=0)] = 32.0,
    step_ms: Annotated[float, Field(gt=0)] = 10.0,
) -> TokenEncoder:
    """rate: samples a second. bands: of the mel scale, from 0 to rate / 2. frame_ms, step_ms: of the spectrogram."""
    import torchaudio

    length, step = round(rate * frame_ms / 1000), round(rate * step_ms / 1000)
    spectrogram = torchaudio.transforms.MelSpectrogram(rate, n_fft=length, hop_length=step, n_mels=bands, center=False, norm="slaney")
    columns, hop = max(round(window_s * 1000 / step_ms), 1), max(round(hop_s * 1000 / step_ms), 1)

    @torch.no_grad()
    def encode(sounds: Any) -> list[Tokens]:
        whole = [F.pad(torch.from_numpy(sound.samples), (0, max(length - len(sound.samples), 0))) for sound in sounds]
        return [_statistics((spectrogram(samples) + FLOOR).log(), columns, hop) for samples in whole]

    identity = {"weights": "none", "versions": versions("torch", "torchaudio", "av")}
    return TokenEncoder("audio", 3 * bands, partial(read_audio, rate=rate), encode, identity)


def _statistics(levels: Tensor, columns: int, hop: int) -> Tokens:
    """levels: (bands, n) logarithms of power; windows of `columns` columns every `hop`."""
    last = max(levels.shape[1] - columns, 0)
    starts = [*range(0, last, hop), last]
    windows = [levels[:, start : start + columns] for start in starts]
    values = torch.stack([torch.cat([part.mean(1), part.std(1, correction=0), part.amax(1)]) for part in windows])
    return at_moments(values, [start + min(columns, levels.shape[1]) / 2 for start in starts], levels.shape[1])
