"""A second task for the features of a record: to say what the sensors read at moments that the network was not shown.

A fault that no class was learnt of still has to be in the features if they are to tell the course of the sensors, which is what the task is for. What is
predicted are steps that a record has and the view of it has not: stretches hidden here, and all of them where the whole modality was taken from the view,
so that the sensors are then told by film, sound and photos. After masked autoencoders (He et al., arXiv:2111.06377); deviation: the decoder sees nothing
but the features and the moment, as the features are what shall know.

B records, S steps, V channels, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.fusion.deep.maths.encoder import BANDS, Padded, Standard, time_code

HIDDEN = 0.3  # share of the stretches that a view does not show


class Reconstruction(nn.Module):
    """channels: V. features: F. width: of the one layer between."""

    def __init__(self, channels: int, features: int, width: int = 64) -> None:
        super().__init__()
        self.of_features, self.of_time = nn.Linear(features, width), nn.Linear(2 * BANDS, width, bias=False)
        self.out = nn.Linear(width, channels)

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """features: (B, F), time: (B, S). Returns (B, S, V) in standardised units."""
        return self.out(nn.functional.gelu(self.of_features(features)[:, None] + self.of_time(time_code(time))))

    def loss(self, features: Tensor, whole: Padded, seen: Padded, standard: Standard) -> Tensor:
        """Mean squared error over the steps that `whole` has and `seen` has not; 0 with a gradient of 0 where there are none."""
        hidden = whole.mask & ~seen.mask
        error = (self(features, whole.time) - standard(whole.values)).square().mean(2)
        return (error * hidden).sum() / hidden.sum().clamp(min=1)


def hidden(part: Padded, stretch: int, share: float, generator: torch.Generator) -> Padded:
    """The same tokens, with some runs of `stretch` neighbours masked out, but never all of a record's.

    generator: on the CPU, so that every device draws the same numbers. What is masked is not changed.
    """
    batch, length = part.mask.shape
    luck = torch.rand(batch, -(-length // stretch), generator=generator).repeat_interleave(stretch, 1)[:, :length].to(part.time)
    left = part.mask & (luck >= share)
    kept = torch.where(left.any(1, keepdim=True), left, part.mask)
    return part._replace(mask=kept)
