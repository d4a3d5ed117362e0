"""A vector-quantised autoencoder with two levels: an image becomes two grids of codes out of two codebooks, and codes become an image.

The low level (stride 8) holds the arrangement, the high level (stride 4) the detail that it leaves; what no code says cannot be drawn.
Razavi et al., "Generating Diverse High-Fidelity Images with VQ-VAE-2", arXiv:1906.00446, as DSR uses it (Zavrtanik et al., "DSR - A Dual
Subspace Re-Projection Network for Surface Anomaly Detection", ECCV 2022, arXiv:2208.01521, section 3.1). Codebooks follow exponential
means of what they stand for: van den Oord et al., arXiv:1711.00937, appendix A.1.

Deviations: weights start as He et al. advise before a ReLU, so that embeddings vary as much as images do. The two codebooks start as
embeddings of images, and a code that stands for next to nothing is moved to an embedding drawn from the step's images, so that none is
lost in a short training. The number of channels is one option: DSR's 128 for hidden layers and codes, half of it inside the residual
blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Networks that the lock of weights knows: what `assay weights train-vq NAME` makes
KNOWN = {"vq-dsr": {"channels": 128, "codes": 4096}, "vq-dsr-quarter": {"channels": 32, "codes": 512}}
DECAY, COMMITMENT = 0.99, 0.25
DEAD = 0.01  # a code that stands for fewer embeddings a step than this, on average, is moved
FRESH = 0.02  # what a code counts that has just been placed: little, so that it follows the next embeddings at once
STRIDE_LOW, STRIDE_HIGH = 8, 4


class Encoded(NamedTuple):
    """Of one batch: what the encoder says before quantisation, and the nearest codes. (B, C, h, w) each."""

    edges: Tensor  # of the high encoder, which the embedding of the high level needs besides the low codes
    embedded_low: Tensor
    low: Tensor
    embedded_high: Tensor
    high: Tensor


class Quantiser(nn.Module):
    """A codebook. The order of its buffers is that of published checkpoints: sums, counts, codes."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.randn(codes, channels))  # exponential mean of the sum of what each code stands for
        self.register_buffer("counts", torch.zeros(codes))  # ... and of how much that is
        self.register_buffer("codes", torch.randn(codes, channels))  # (K, C)

    def forward(self, embedded: Tensor) -> Tensor:
        """The nearest code of each position of (B, C, h, w); the gradient passes as if nothing had been changed."""
        return embedded + (self.nearest(embedded) - embedded).detach()

    @torch.no_grad()
    def nearest(self, embedded: Tensor) -> Tensor:
        rows = embedded.permute(0, 2, 3, 1)
        return self.codes[self.distances(rows.flatten(0, 2)).argmin(dim=1)].view_as(rows).permute(0, 3, 1, 2)

    def distances(self, rows: Tensor) -> Tensor:
        """(N, C) -> (N, K), squared."""
        return rows.square().sum(dim=1, keepdim=True) + self.codes.square().sum(dim=1) - 2 * rows @ self.codes.T

    @torch.no_grad()
    def start(self, rows: Tensor, generator: torch.Generator) -> None:
        """Every code an embedding of (N, C), drawn, each at most once as long as there are enough."""
        self.codes.copy_(rows[_drawn(len(rows), len(self.codes), generator)])
        self.counts.fill_(FRESH)
        self.sums.copy_(FRESH * self.codes)

    @torch.no_grad()
    def follow(self, rows: Tensor, generator: torch.Generator) -> None:
        """One step of the exponential means over (N, C); dead codes move to rows that are drawn."""
        chosen = self.distances(rows).argmin(dim=1)
        counts = torch.zeros_like(self.counts).index_add_(0, chosen, torch.ones_like(rows[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, rows)
        self.counts.lerp_(counts, 1 - DECAY)
        self.sums.lerp_(sums, 1 - DECAY)
        dead = (self.counts < DEAD).nonzero().flatten()
        moved = rows[_drawn(len(rows), len(dead), generator)]
        self.counts[dead], self.sums[dead] = FRESH, FRESH * moved
        self.codes.copy_(self.sums / self.counts[:, None])


class VQ(nn.Module):
    """Images (B, 3, H, W) in 0..1, sides multiples of 8. The order of its parts is that of published checkpoints."""

    def __init__(self, *, channels: int = 128, codes: int = 4096) -> None:
        super().__init__()
        half = channels // 2
        self.encoder_low = nn.Sequential(
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            residual_stack(channels),
        )
        self.encoder_high = nn.Sequential(
            nn.Conv2d(3, half, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(half, channels, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            residual_stack(channels),
        )
        self.embed_high = nn.Conv2d(2 * channels, channels, 1)
        self.embed_low = nn.Conv2d(channels, channels, 1)
        self.codes_low, self.codes_high = Quantiser(codes, channels), Quantiser(codes, channels)
        self.decoder = decoder(2 * channels, channels)
        self.rise = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)  # low codes to the grid of the high ones
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> tuple[Tensor, Encoded]:
        """What can be drawn of the images, and their codes."""
        encoded = self.encode(images)
        return self.decode(encoded.low, encoded.high), encoded

    def encode(self, images: Tensor) -> Encoded:
        edges = self.encoder_high(images)
        embedded_low = self.embed_low(self.encoder_low(edges))
        low = self.codes_low(embedded_low)
        embedded_high = self.embedding_high(edges, low)
        return Encoded(edges, embedded_low, low, embedded_high, self.codes_high(embedded_high))

    def embedding_high(self, edges: Tensor, low: Tensor) -> Tensor:
        return self.embed_high(torch.cat([edges, self.rise(low)], dim=1))

    def decode(self, low: Tensor, high: Tensor) -> Tensor:
        return self.decoder(torch.cat([self.rise(low), high], dim=1))

    @torch.no_grad()
    def start(self, images: Tensor, generator: torch.Generator) -> None:
        """Both codebooks become embeddings of these images."""
        edges = self.encoder_high(images)
        embedded_low = self.embed_low(self.encoder_low(edges))
        self.codes_low.start(as_rows(embedded_low), generator)
        self.codes_high.start(as_rows(self.embedding_high(edges, self.codes_low.nearest(embedded_low))), generator)


def loss(network: VQ, images: Tensor, variance: float, generator: torch.Generator) -> Tensor:
    """Error of the drawing over the images' variance, and a quarter of each encoder's distance from its codes; the codebooks take their
    step here too."""
    drawn, encoded = network(images)
    committed = F.mse_loss(encoded.embedded_low, encoded.low.detach()) + F.mse_loss(encoded.embedded_high, encoded.high.detach())
    network.codes_low.follow(as_rows(encoded.embedded_low.detach()), generator)
    network.codes_high.follow(as_rows(encoded.embedded_high.detach()), generator)
    return F.mse_loss(drawn, images) / variance + COMMITMENT * committed


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels // 2, channels, 1, bias=False),
        )

    def forward(self, value: Tensor) -> Tensor:
        return F.relu(value) + self.block(value)


def residual_stack(channels: int) -> nn.Sequential:
    return nn.Sequential(Residual(channels), Residual(channels), nn.ReLU())


def decoder(inputs: int, channels: int) -> nn.Sequential:
    """A grid of stride 4 to an image."""
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1),
        residual_stack(channels),
        nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(channels // 2, 3, 4, stride=2, padding=1),
    )


def as_rows(grid: Tensor) -> Tensor:
    """(B, C, h, w) -> (B*h*w, C)."""
    return grid.permute(0, 2, 3, 1).flatten(0, 2)


def _drawn(available: int, wanted: int, generator: torch.Generator) -> Tensor:
    """(wanted,) positions in 0..available: a random order, repeated where there are too few."""
    order = torch.randperm(available, generator=generator)
    return order.repeat(-(-wanted // available))[:wanted]
