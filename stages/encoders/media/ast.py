"""The kind `ast`: a sound through an Audio Spectrogram Transformer from a local folder of transformers; one token for each window.

Gong, Chung and Glass, arXiv:2104.01778. A window is as long as the network's input (10.24 s for its published weights); the last one is padded with
silence. The token is the mean of the class and the distillation token, as the paper's own head takes it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

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
) -> TokenEncoder:
    """weights: a folder in backbones/."""
    folder = pretrained.find(weights, f"MIT/{weights}", place.backbones)
    network, spectrogram = pretrained.load(folder, "ASTModel").to(place.device), pretrained.part(folder, "ASTFeatureExtractor")
    rate, length = spectrogram.sampling_rate, round(network.config.max_length * STEP_S * spectrogram.sampling_rate)
    spectrogram.max_length = network.config.max_length

    @torch.no_grad()
    def encode(sounds: Any) -> list[Tokens]:
        return [_windows(sound) for sound in sounds]

    def _windows(sound: Sound) -> Tokens:
        parts = [sound.samples[start : start + length] for start in range(0, len(sound.samples), length)]
        parts = [part for part in parts if len(part) >= rate * 0.025] or [_padded(sound)]  # one column needs 25 ms
        rows = []
        for part in parts:
            seen = spectrogram(part, sampling_rate=rate, return_tensors="pt")["input_values"]  # (1, columns, bands)
            rows.append(network(input_values=seen.to(place.device)).last_hidden_state[:, :2].mean(1).cpu())
        return at_moments(torch.cat(rows), [number * length for number in range(len(rows))], max(len(rows) - 1, 1) * length)

    def _padded(sound: Sound) -> Any:
        return torch.nn.functional.pad(torch.from_numpy(sound.samples), (0, round(rate * 0.025) - len(sound.samples))).numpy()

    identity = {"weights": folder.identity, "versions": versions("torch", "torchaudio", "transformers", "av")}
    return TokenEncoder("audio", network.config.hidden_size, partial(read_audio, rate=rate), encode, identity)
