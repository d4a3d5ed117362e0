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
from stages.datasets.tiles import Grid
from stages.detectors import artefact
from stages.detectors.prediction import predict, whole_image
from stages.encoders.encoder import Encoder, resolve_device
from stages.types import Detector, Features, Prediction

TILES_AT_ONCE = 16


class Pipeline:
    """A fitted model with everything in front of it."""

    def __init__(self, encoder: Encoder, detector: Detector, grid: Grid | None = None) -> None:
        """grid: how images were cut into tiles, where the detector has learnt from tiles."""
        self.encoder, self.detector, self.grid = encoder, detector, grid

    @classmethod
    def load(cls, model: Path, device: str, threads: int, backbones: Path, encoders: dict[str, Encoder] | None = None) -> Self:
        """model: the folder models/<dataset>/<model>/<category>/seed<k>. Raises WeightsMissing where its encoder cannot be built.

        encoders: those built so far, by the hash of their identity, shared between pipelines; this one's joins them.
        """
        recorded: dict[str, Any] = io.read_json(model / "config.json")["encoder"]
        built, key = encoders if encoders is not None else {}, io.content_hash(recorded)
        if key not in built:
            built[key] = Encoder.from_identity(recorded, device, threads, backbones)
        return cls(built[key], artefact.load(model).to(resolve_device(device)), Grid.of(recorded))

    def __call__(self, images: list[np.ndarray]) -> Prediction:
        """images: decoded (H, W, 3) uint8 of any sizes. Maps come at the size the model works at: the encoder's, or the canvas of the tiles."""
        if self.grid is None:
            return predict(self.detector, self.features(self.pixels(images)))
        found = [self._in_tiles(self.pixels([image])) for image in images]
        maps = torch.cat([one.anomaly_map for one in found]) if found[0].anomaly_map is not None else None
        return Prediction(torch.cat([one.image_score for one in found]), maps)

    def _in_tiles(self, tiles: Tensor) -> Prediction:
        """One image, a few of its tiles at a time: memory does not grow with the canvas."""
        return whole_image(self.grid, [predict(self.detector, self.features(some)) for some in tiles.split(TILES_AT_ONCE)])

    def pixels(self, images: list[np.ndarray]) -> Tensor:
        """(B, 3, S, S) uint8: the whole images at the encoder's size, or their tiles."""
        size = (self.grid.height, self.grid.width) if self.grid else self.encoder.image_size
        resized = torch.from_numpy(np.stack([resize_image(image, size) for image in images])).permute(0, 3, 1, 2).contiguous()
        return self.grid.cut(resized) if self.grid else resized

    def features(self, pixels: Tensor) -> Features:
        wanted = set(self.detector.needs.layers)
        return {"pixels": pixels, **{layer: value for layer, value in self.encoder.encode(pixels).items() if layer in wanted}}

    def parameters(self) -> tuple[int, int]:
        """Total and trainable parameters; learnt buffers such as a memory bank count as parameters of the model."""
        frozen = self.encoder.identity.get("parameters", 0)
        learnt = sum(tensor.numel() for tensor in self.detector.state_dict().values())
        trainable = sum(parameter.numel() for parameter in self.detector.parameters() if parameter.requires_grad)
        return frozen + learnt, trainable
