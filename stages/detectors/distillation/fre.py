"""FRE: a linear auto-encoder with one matrix, used there and back, learns to give the features of normal images; what it cannot give back
is the anomaly.

The pooled features of one layer of a frozen network are one long vector v per image; encoder and decoder share the matrix W, so that the
best it can reach is the projection on the principal subspace of the normal features. The anomaly map is the squared error, summed over
channels. Ndiour et al., "FRE: Feature Reconstruction Error for Unsupervised Anomaly Detection and Segmentation", BMVC 2023; preprint "FRE: A
Fast Method For Anomaly Detection And Segmentation", arXiv:2211.12650.

Deviations from the paper:
- The backbone never runs here: v is made from the features that the encoder has stored, and its length is that of the features, not fixed.
- A grid that `pool` does not divide keeps its last row and column, which are then means of fewer cells.
- `start: pca` begins at the optimum that the paper's theory names, instead of random weights: for schedules of few steps.
- The kept state is the one with the lowest loss on held-out normal images (`val_loss`, once an epoch), and training stops after `patience`
  epochs without a better one. Without held-out images all epochs are run and the last state is kept. `steps` caps the training.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.maps import to_pixels
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run


class FRE(Detector):
    """latent: rows of W, m in the paper. pool: side of the average pooling. start: random weights (Xavier), or the principal subspace, which
    has at most one row less than there are training images.
    """

    def __init__(
        self,
        *,
        layer: str = "layer3",
        pool: int = 2,
        latent: int = 220,
        start: Literal["random", "pca"] = "random",
        epochs: int = 220,
        steps: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        if pool < 1 or latent < 1:
            raise ValueError(f"pool and latent must be at least 1, got {pool} and {latent}")
        self.needs = Need(layers=(layer,))
        self.layer, self.pool, self.latent, self.start = layer, pool, latent, start
        self.epochs, self.steps, self.batch_size = epochs, steps, batch_size
        self.learning_rate, self.patience = learning_rate, patience
        self.autoencoder = TiedAutoencoder(torch.empty(0, 0))
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        self.autoencoder = self._started(train, run)
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._mean_loss(held_out)}) if held_out else None
        run.train(self.autoencoder, train, self._loss, plan, measure, name="autoencoder")
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One product per image, so that a score cannot depend on the batch through rounding. The score is a sum over the pooled grid, not
        the highest pixel."""
        self.require_fitted(self.autoencoder.weight)
        pooled = self._pooled(features)
        if pooled[0].numel() != self.autoencoder.weight.shape[1]:
            came = f"FRE knows vectors of {self.autoencoder.weight.shape[1]} numbers, but {self.layer} of these images gives {pooled[0].numel()}"
            raise ValueError(f"{came}; give it images of the size it learnt, from the same backbone")
        errors = torch.stack([image - self.autoencoder(image.flatten()).view_as(image) for image in pooled])
        energy = errors.square().sum(dim=1)  # (B, h, w)
        return Prediction(energy.flatten(1).sum(dim=1), to_pixels(energy, tuple(features["pixels"].shape[2:])))

    def _pooled(self, features: Features) -> Tensor:
        """(B, C, h, w) of the layer after pooling."""
        values = features[self.layer].to(self.autoencoder.weight.device).float()
        return F.avg_pool2d(values, self.pool, ceil_mode=True)

    def _started(self, train: Batches, run: Run) -> TiedAutoencoder:
        if self.start == "pca":
            return principal_subspace(torch.cat([self._pooled(batch.features).flatten(1) for batch in train]), self.latent).to(run.device)
        weight = torch.empty(self.latent, self._pooled(train.take([0]).features).numel())
        nn.init.xavier_uniform_(weight, generator=run.generator("weights"))
        return TiedAutoencoder(weight).to(run.device)

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        vectors = self._pooled(batch.features).flatten(1)
        return F.mse_loss(self.autoencoder(vectors), vectors)

    def _mean_loss(self, batches: Batches) -> float:
        generator = torch.Generator()
        return sum(self._loss(batch, generator).item() * len(batch.label) for batch in batches) / batches.samples

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        stored = state_dict.get(f"{prefix}autoencoder.weight")
        if stored is not None:
            self.autoencoder = TiedAutoencoder(torch.empty_like(stored, device=self.autoencoder.weight.device)).eval()
        super()._load_from_state_dict(state_dict, prefix, *args)


class TiedAutoencoder(nn.Module):
    """W^T (W v + b_e) + b_d: three parameters, W (m, D) being shared."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.encoder_bias = nn.Parameter(torch.zeros_like(weight[:, :1]).flatten() if weight.numel() else torch.empty(0))
        self.decoder_bias = nn.Parameter(torch.zeros_like(weight[:1]).flatten() if weight.numel() else torch.empty(0))

    def forward(self, vectors: Tensor) -> Tensor:
        latent = F.linear(vectors, self.weight, self.encoder_bias)
        return F.linear(latent, self.weight.t(), self.decoder_bias)


def principal_subspace(vectors: Tensor, latent: int) -> TiedAutoencoder:
    """The auto-encoder that projects on the mean and the first principal directions of `vectors` (N, D), at most N - 1 of them.

    From the eigenvectors of the (N, N) products, for D is far larger than N; in float64.
    """
    mean = vectors.mean(dim=0)
    centred = (vectors - mean).double()
    values, directions = torch.linalg.eigh(centred @ centred.t())
    kept = min(latent, int((values > 1e-9 * values[-1].clamp_min(1e-30)).sum()))
    if kept == 0:
        raise ValueError(f"`start: pca` needs at least 2 training images that differ, got {len(vectors)}; take `start: random`")
    weight = (directions[:, -kept:].t() @ centred) / values[-kept:].sqrt()[:, None]
    autoencoder = TiedAutoencoder(weight.float())
    with torch.no_grad():
        autoencoder.encoder_bias.copy_(-(autoencoder.weight @ mean))
        autoencoder.decoder_bias.copy_(mean)
    return autoencoder
