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
from stages.encoders.encoder import Encoder
from stages.types import Detector, Features, Prediction


class Pipeline:
    """A fitted model with everything in front of it."""

    def __init__(self, encoder: Encoder, detector: Detector) -> None:
        self.encoder, self.detector = encoder, detector

    @classmethod
    def load(cls, model: Path, device: str, threads: int, backbones: Path) -> Self:
        """model: the folder models/<dataset>/<model>/<category>/seed<k>. Raises WeightsMissing where its encoder cannot be built."""
        recorded: dict[str, Any] = io.read_json(model / "config.json")["encoder"]
        return cls(Encoder.from_identity(recorded, device, threads, backbones), artefact.load(model))

    def __call__(self, images: list[np.ndarray]) -> Prediction:
        """images: decoded (H, W, 3) uint8 of any sizes. Maps come at the size the model works at."""
        return self.detector.score(self.features(self.pixels(images)))

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
