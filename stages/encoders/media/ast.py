"""The kind `ast`: a sound through an Audio Spectrogram Transformer from a local folder of transformers; one token for each window.

Gong, Chung and Glass, arXiv:2104.01778. A window is as long as the network's input (10.24 s for its published weights) and begins `stride_s` after the
one before it; the last one is padded with silence. With `stride_s: 10` and `windows: 3` a weld of 25 to 38 s gives three tokens. The token is the mean
of the class and the distillation token, as the paper's own head takes it.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field

from stages.datasets.media import Sound, read_audio
from stages.datasets.records import Tokens
from stages.encoders.encoder import versions
from stages.encoders.media import pretrained
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments

STEP_S = 0.01  # between two columns of the spectrogram


def build(
    place: Place,
    *,
    weights: str = "ast-finetuned-audioset-10-10-0.4593",
    stride_s: Annotated[float | None, Field(gt=0)] = None,
    windows: Annotated[int | None, Field(ge=1)] = None,
) -> TokenEncoder:
    """weights: a folder in backbones/. stride_s: as long as a window by default. windows: at most; what comes after them is not heard."""
    folder = pretrained.find(weights, f"MIT/{weights}", place.backbones)
    network, spectrogram = pretrained.load(folder, "ASTModel").to(place.device), pretrained.part(folder, "ASTFeatureExtractor")
    rate, length = spectrogram.sampling_rate, round(network.config.max_length * STEP_S * spectrogram.sampling_rate)
    spectrogram.max_length = network.config.max_length
    stride = length if stride_s is None else max(round(stride_s * rate), 1)

    @torch.no_grad()
    def encode(sounds: Any) -> list[Tokens]:
        return [_windows(sound) for sound in sounds]

    def _windows(sound: Sound) -> Tokens:
        starts = range(0, max(len(sound.samples) - max(length - stride, 0), 1), stride)[:windows]
        parts = [sound.samples[start : start + length] for start in starts]
        parts = [part for part in parts if len(part) >= rate * 0.025] or [_padded(sound)]  # one column needs 25 ms
        rows = []
        for part in parts:
            seen = spectrogram(part, sampling_rate=rate, return_tensors="pt")["input_values"]  # (1, columns, bands)
            rows.append(network(input_values=seen.to(place.device)).last_hidden_state[:, :2].mean(1).cpu())
        return at_moments(torch.cat(rows), [number * stride for number in range(len(rows))], max(len(rows) - 1, 1) * stride)

    def _padded(sound: Sound) -> Any:
        return torch.nn.functional.pad(torch.from_numpy(sound.samples), (0, round(rate * 0.025) - len(sound.samples))).numpy()

    identity = {"weights": folder.identity, "versions": versions("torch", "torchaudio", "transformers", "av")}
    return TokenEncoder("audio", network.config.hidden_size, partial(read_audio, rate=rate), encode, identity)
