"""The stem of `tiny-clip`: in place of one convolution over each patch, what the built-in EfficientNet-Lite0 sees at strides 4, 8 and 16, brought to
stride 16 and to the width of the tokens. The network is frozen, so that a few minutes of training are enough for the transformer behind it.

A token knows of its surroundings through the convolutions: windows of this network are not quite deaf to what lies outside them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.encoders.cnn import CNN, STRIDES

LAYERS, PATCH = ("layer1", "layer2", "layer3"), 16


class Stem(nn.Module):
    """Called as a patch embedding is: (B, 3, H, W) images with CLIP's mean and std taken off, to (B, width, H / 16, W / 16)."""

    kernel_size = (PATCH, PATCH)

    def __init__(self, width: int) -> None:
        super().__init__()
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        self.cnn = CNN(backbone="tf_efficientnet_lite0", layers=LAYERS, weights="random")
        with torch.no_grad():
            seen = self.cnn(torch.zeros(1, 3, PATCH, PATCH))
        channels = sum(value.shape[1] for value in seen.values())
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("clip_mean", torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("clip_std", torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1))
        self.mix = nn.Conv2d(channels, width, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(self.see(255 * (images * self.clip_std + self.clip_mean)))

    @torch.no_grad()
    def see(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) levels 0..255 to what the frozen network says at stride 16, all layers."""
        found = self.cnn(pixels)
        return torch.cat([F.avg_pool2d(found[layer], PATCH // STRIDES[layer]) for layer in LAYERS], dim=1)

    def tokens(self, seen: Tensor) -> Tensor:
        """From `see`, every channel at its usual place and spread, to the width of tokens."""
        return self.mix((seen - self.centre[:, None, None]) / self.spread[:, None, None])
