"""The patch description network of EfficientAD: four to six convolutions, each output a description of one patch of 33 x 33 pixels.

It is so shallow that it has no trained weights of its own anywhere but in its own files: they are regressed on a deep network's features
(`distill_pdn`). Batzner et al., "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies", arXiv:2303.14535, tables 6
and 7. Deviation: `width` scales the channels of its layers, for schedules on a CPU.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Networks that the lock of weights knows: what `assay weights distill-pdn NAME` makes
TEACHERS = {
    "pdn-small": {"size": "small", "outputs": 384, "width": 1.0},
    "pdn-medium": {"size": "medium", "outputs": 384, "width": 1.0},
    "pdn-small-quarter": {"size": "small", "outputs": 96, "width": 0.25},
}
PATCH = 33  # pixels along the side of the receptive field
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# (output channels, kernel, padding where there is any, what follows); None is the number of outputs, "pool" a ReLU and then a mean over 2 x 2
LAYERS = {
    "small": ((128, 4, 3, "pool"), (256, 4, 3, "pool"), (256, 3, 1, "relu"), (None, 4, 0, "")),
    "medium": (
        (256, 4, 3, "pool"),
        (512, 4, 3, "pool"),
        (512, 1, 0, "relu"),
        (512, 3, 1, "relu"),
        (None, 4, 0, "relu"),
        (None, 1, 0, ""),
    ),
}


class PDN(nn.Module):
    """outputs: 384 of a teacher at width 1; its student has twice as many. width: scales the layers before.

    padding: zeros around every layer, so that an image of N pixels gives ceil(N / 4) outputs a side; without it N / 4 - 8, each of a whole
    patch. The weights are the same: a teacher is trained with padding and used without. Keys are conv1 .. conv4 or conv6.
    """

    def __init__(
        self, *, size: Literal["small", "medium"] = "small", outputs: int = 384, width: float = 1.0, padding: bool = False
    ) -> None:
        super().__init__()
        self.padding, self.outputs, before = padding, outputs, 3
        self.then = [then for _, _, _, then in LAYERS[size]]
        for number, (wanted, kernel, edge, _) in enumerate(LAYERS[size], start=1):
            after = scaled(wanted, width) if wanted else outputs
            self.add_module(f"conv{number}", nn.Conv2d(before, after, kernel, padding=edge if padding else 0))
            before = after

    def forward(self, levels: Tensor) -> Tensor:
        """levels: (B, 3, H, W), 0..255, uint8 or float. Returns (B, C, h, w); normalisation is inside, once."""
        value, small = imagenet_normalised(levels), min(levels.shape[2:])
        if not self.padding and small < PATCH:
            raise ValueError(
                f"a patch description needs {PATCH} pixels a side, these images have {small}: give larger ones, or set padding"
            )
        for convolution, then in zip(self.children(), self.then, strict=True):
            value = convolution(value)
            if then:
                value = F.relu(value)
            if then == "pool":
                value = F.avg_pool2d(value, 2, padding=int(self.padding))
        return value


def imagenet_normalised(levels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, device=levels.device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (levels.float() / 255 - mean) / std


def scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))
