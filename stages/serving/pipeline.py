"""From one decoded image to one prediction: resize, encode, score. Bench times this object and serving answers with it.

Its encoder is the one that filled the feature store, built again from what the model's config records, so a stored feature and a live one cannot
differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from stages import io
from stages.datasets.images import resize_image
from stages.detectors import artefact
from stages.encoders.encoder import Encoder, resolve_device
from stages.types import Detector, Features, Prediction


class Pipeline:
    """A fitted model with everything in front of it."""

    def __init__(self, encoder: Encoder, detector: Detector) -> None:
        self.encoder, self.detector = encoder, detector

    @classmethod
    def load(cls, model: Path, device: str, threads: int, backbones: Path, encoders: dict[str, Encoder] | None = None) -> Self:
        """model: the folder models/<dataset>/<model>/<category>/seed<k>. Raises WeightsMissing where its encoder cannot be built.

        encoders: those built so far, by the hash of their identity, shared between pipelines; this one's joins them.
        """
        recorded: dict[str, Any] = io.read_json(model / "config.json")["encoder"]
        built, key = encoders if encoders is not None else {}, io.content_hash(recorded)
        if key not in built:
            built[key] = Encoder.from_identity(recorded, device, threads, backbones)
        return cls(built[key], artefact.load(model).to(resolve_device(device)))

    def __call__(self, images: list[np.ndarray]) -> Prediction:
        """images: decoded (H, W, 3) uint8 of any sizes. Maps come at the size the model works at."""
        features = self.features(self.pixels(images))
        device = next((tensor.device for tensor in self.detector.state_dict().values()), torch.device("cpu"))
        return self.detector.score({name: value.to(device) for name, value in features.items()})

    def pixels(self, images: list[np.ndarray]) -> Tensor:
        """(B, 3, S, S) uint8: the whole images at the encoder's size."""
        resized = np.stack([resize_image(image, self.encoder.image_size) for image in images])
        return torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()

    def features(self, pixels: Tensor) -> Features:
        wanted = set(self.detector.needs.layers)
        return {"pixels": pixels, **{layer: value for layer, value in self.encoder.encode(pixels).items() if layer in wanted}}

    def parameters(self) -> tuple[int, int]:
        """Total and trainable parameters; learnt buffers such as a memory bank count as parameters of the model."""
        frozen = self.encoder.identity.get("parameters", 0)
        learnt = sum(tensor.numel() for tensor in self.detector.state_dict().values())
        trainable = sum(parameter.numel() for parameter in self.detector.parameters() if parameter.requires_grad)
        return frozen + learnt, trainable
