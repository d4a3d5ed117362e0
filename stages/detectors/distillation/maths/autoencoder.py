"""The autoencoder of EfficientAD: a whole image through one position, and back to the grid of a teacher."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from stages.encoders.pdn import imagenet_normalised, scaled

STRIDE = 32  # of the autoencoder before its bottleneck
GROWTH = ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1))  # sides of its decoder: that part of the image's, less so much


class Autoencoder(nn.Module):
    """The whole image through one position of 64 channels, and back to the grid of the teacher. No skips."""

    def __init__(self, outputs: int, width: float, bottleneck: tuple[int, int]) -> None:
        super().__init__()
        narrow, wide = scaled(32, width), scaled(64, width)
        widths = (3, narrow, narrow, wide, wide, wide)
        self.encoder = nn.Sequential(
            *(nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)), nn.Conv2d(wide, wide, bottleneck)
        )
        self.decoder = nn.Sequential(*(nn.Conv2d(wide, wide, 4, padding=2) for _ in range(6)), nn.Conv2d(wide, wide, 3, padding=1))
        self.last = nn.Conv2d(wide, outputs, 3, padding=1)

    @staticmethod
    def bottleneck(pixels: Tensor) -> tuple[int, int]:
        """The kernel of the encoder's last layer: the paper's 8 x 8, or all there is of a smaller image."""
        height, width = (min(8, -(-side // STRIDE)) for side in pixels.shape[2:])
        return height, width

    def forward(self, levels: Tensor, grid: tuple[int, int]) -> Tensor:
        """levels: (B, 3, H, W), 0..255. Returns (B, outputs, *grid)."""
        height, width = levels.shape[2:]
        value = F.pad(imagenet_normalised(levels), (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        for convolution in self.encoder[:-1]:
            value = F.relu(convolution(value))
        value = self.encoder[-1](value)
        for convolution, (part, less) in zip(self.decoder, GROWTH, strict=False):
            size = tuple(max(1, side // part - less) for side in (height, width))
            value = F.relu(convolution(F.interpolate(value, size, mode="bilinear")))
            value = F.dropout(value, 0.2, self.training)
        return self.last(F.relu(self.decoder[-1](F.interpolate(value, grid, mode="bilinear"))))
