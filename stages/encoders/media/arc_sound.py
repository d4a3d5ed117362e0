"""The kind `arc_sound`: a weld's sound as `windows` tokens, each the mean and the maximum of every mel band over its window. Nothing is learnt.

With `onset` windows begin at the arc on, heard as a rise of the loudness that stays, and last `clock_s / windows`, so that the same token is the
same moment of every weld; those after the end of the sound are no tokens. Where no such rise is heard the sound's beginning counts. Without `onset` the
windows share out the whole sound.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.datasets.arc_clock import heard
from stages.datasets.media import Sound, read_audio
from stages.datasets.records import Tokens
from stages.encoders.encoder import versions
from stages.encoders.media.encoder import Place, TokenEncoder

FLOOR = 1e-6  # added to a power before the logarithm: 60 dB below full scale


def build(
    place: Place,
    *,
    rate: Annotated[int, Field(ge=1000)] = 16000,
    bands: Annotated[int, Field(ge=8, le=256)] = 48,
    windows: Annotated[int, Field(ge=1, le=512)] = 24,
    frame_ms: Annotated[float, Field(gt=0)] = 32.0,
    step_ms: Annotated[float, Field(gt=0)] = 16.0,
    onset: bool = True,
    clock_s: Annotated[float, Field(gt=0)] = 40.0,
) -> TokenEncoder:
    """rate: samples a second. bands: of the mel scale, from 0 to rate / 2. frame_ms, step_ms: of the spectrogram. clock_s: what time 1 is."""
    import torchaudio

    del place
    length, step = round(rate * frame_ms / 1000), round(rate * step_ms / 1000)
    spectrogram = torchaudio.transforms.MelSpectrogram(rate, n_fft=length, hop_length=step, n_mels=bands, center=False, norm="slaney")

    @torch.no_grad()
    def encode(sounds: Any) -> list[Tokens]:
        return [_tokens(sound) for sound in sounds]

    def _tokens(sound: Sound) -> Tokens:
        start = round((heard(sound.samples, rate) or 0.0) * rate) if onset else 0
        samples = torch.from_numpy(sound.samples[start:])
        levels = (spectrogram(F.pad(samples, (0, max(length - len(samples), 0)))) + FLOOR).log()  # (bands, n)
        return _windows(levels, clock_s * rate / step if onset else levels.shape[1], windows)

    identity = {"weights": "none", "versions": versions("torch", "torchaudio", "av", "numpy")}
    return TokenEncoder("audio", 2 * bands, partial(read_audio, rate=rate), encode, identity)


def _windows(levels: Tensor, columns: float, windows: int) -> Tokens:
    """levels: (bands, n) logarithms of power. columns: how many of them the clock has, which n may exceed or not reach."""
    bounds = [round(columns * number / windows) for number in range(windows + 1)]
    parts = [(first, max(last, first + 1)) for first, last in pairwise(bounds)]
    parts = [(first, min(last, levels.shape[1])) for first, last in parts if first < levels.shape[1]]
    values = torch.stack([torch.cat([levels[:, first:last].mean(1), levels[:, first:last].amax(1)]) for first, last in parts])
    time = torch.tensor([(first + last) / 2 / columns for first, last in parts], dtype=torch.float64).clamp(0, 1)
    return Tokens(values.float().contiguous(), time.float())
