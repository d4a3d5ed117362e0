"""GANomaly: an image is encoded, drawn from its code, and encoded again; normal images come back to nearly the same code, others do not.

The generator is encoder, decoder, encoder in the manner of DCGAN; a discriminator judges image and drawing while they are trained, and is
dropped afterwards. The generator lowers the difference of the discriminator's features, of the pixels and of the two codes; the score is
the mean squared difference of the codes, and there is no map. Akcay et al., "GANomaly: Semi-Supervised Anomaly Detection via Adversarial
Training", arXiv:1805.06725, equations 1-5. Pixels are in -1..1, as the tanh of the decoder is.

Deviations from the paper:
- Generator and discriminator take their steps together, from gradients at the same weights (one Adam over both, kept apart by detaching), not
  one after the other; both have the paper's rate and momentum.
- The discriminator starts anew one step later than its loss fell below 1e-5; the authors' code looks at its two halves one by one.
- Scores are raw; the paper rescales them by the least and greatest of the test set.
- The kept state is the one with the lowest weighted error of pixels and codes on held-out normal images (`val_loss`, once an epoch), and
  training stops after `patience` epochs without a better one; the authors' code keeps the best epoch on the test set. Without held-out
  images all epochs are run. `steps` caps the training.
- An image that is no square of a power of two, 16 or more, is padded to one by repeating its border; networks are built for that side. 100
  epochs of batches of 32 (the authors' code: 15 of 64 for images of 32 pixels), as in common use for larger images.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.reconstruction.maths.padding import next_square, padded
from stages.detectors.reconstruction.maths.unet import initialised, restart
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Prediction

if TYPE_CHECKING:
    from stages.training import Run

EXHAUSTED = 1e-5  # a discriminator with a lower loss teaches nothing any more


class GANomaly(Detector):
    """latent: numbers in a code. width: channels after the first convolution; every further one doubles them, down to a grid of 4 x 4.

    adversarial, contextual, encoding: weights of the differences of the discriminator's features, of the pixels and of the codes.
    """

    def __init__(
        self,
        *,
        latent: int = 100,
        width: int = 64,
        adversarial: float = 1.0,
        contextual: float = 50.0,
        encoding: float = 1.0,
        epochs: int = 100,
        steps: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 2e-4,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        for name, value in (("latent", latent), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.latent, self.width = latent, width
        self.adversarial, self.contextual, self.encoding = adversarial, contextual, encoding
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate = learning_rate
        self.generator: Generator | None = None
        self.register_buffer("side", torch.empty(0, dtype=torch.int64))  # (1,) pixels of the square that the networks are built for
        self.register_buffer("steps_trained", torch.empty(0, dtype=torch.int64))  # (1,) after which the kept state was reached

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        side = next_square(tuple(train.take([0]).features["pixels"].shape[2:]))
        self.side = torch.tensor([side], device=run.device)
        rivals = initialised(lambda: Rivals(side, self.latent, self.width), derive(run.seed, "rivals"))
        self.generator = rivals.generator
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate, betas=(0.5, 0.999)),
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._held_out_loss(held_out)}) if held_out else None
        reached = run.train(rivals, train, partial(self._loss, rivals), plan, measure, name="rivals")
        self.steps_trained = torch.tensor([reached], device=run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        self.require_fitted(self.steps_trained)
        _, code, second_code = self.generator(self._images(features))
        return Prediction((code - second_code).square().mean(dim=1), None)

    def _images(self, features: Features) -> Tensor:
        """(B, 3, S, S) in -1..1 at the side S that the networks are built for."""
        images = features["pixels"].to(self.side.device) / 127.5 - 1
        side = int(self.side)
        if max(images.shape[2:]) > side:
            raise ValueError(f"GANomaly was built for {side} pixels a side, but these images have {tuple(images.shape[2:])}; fit it anew")
        return padded(images, (side, side))

    def _loss(self, rivals: Rivals, batch: Batch, generator: torch.Generator) -> Tensor:
        """Of both, each with gradients for itself alone."""
        rivals.restart_if_exhausted(generator)
        images = self._images(batch.features)
        drawn, code, second_code = rivals.generator(images)
        against = rivals.discriminator_loss(images, drawn.detach())
        deceives = F.mse_loss(rivals.frozen_features(drawn), rivals.frozen_features(images).detach())
        return against + self.adversarial * deceives + self._errors(images, drawn, code, second_code).mean()

    def _errors(self, images: Tensor, drawn: Tensor, code: Tensor, second_code: Tensor) -> Tensor:
        """(B,) of the generator without its rival: absolute difference of the pixels, squared difference of the codes, weighted."""
        contextual = (images - drawn).abs().mean(dim=(1, 2, 3))
        return self.contextual * contextual + self.encoding * (code - second_code).square().mean(dim=1)

    def _held_out_loss(self, batches: Batches) -> float:
        total = 0.0
        for batch in batches:
            images = self._images(batch.features)
            total += self._errors(images, *self.generator(images)).double().sum().item()
        return total / batches.samples

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """The generator is built for the side that is stored, before its own weights are loaded."""
        side = state_dict.get(prefix + "side")
        if side is not None and side.numel():
            self.generator = initialised(lambda: Generator(int(side), self.latent, self.width), seed=0).to(self.side.device).eval()
        super()._load_from_state_dict(state_dict, prefix, *args)


class Generator(nn.Module):
    """Images to their drawing and both codes: (B, 3, S, S) -> (B, 3, S, S), (B, latent), (B, latent)."""

    def __init__(self, side: int, latent: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*encoder(side, latent, width))
        self.decoder = nn.Sequential(*decoder(side, latent, width))
        self.second_encoder = nn.Sequential(*encoder(side, latent, width))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = self.encoder(images)
        drawn = self.decoder(code)
        return drawn, code.flatten(1), self.second_encoder(drawn).flatten(1)


class Rivals(nn.Module):
    """Generator and discriminator, and the loss of the latter at the last step: it decides whether it starts anew, so it is saved too."""

    def __init__(self, side: int, latent: int, width: int) -> None:
        super().__init__()
        self.generator = Generator(side, latent, width)
        *features, last = encoder(side, 1, width)
        self.features, self.verdict = nn.Sequential(*features), last
        self.register_buffer("last_loss", torch.tensor([float("inf")]))

    def discriminator_loss(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Half the sum of the cross entropies of calling images real and drawings drawn."""
        real, false = (self.verdict(self.features(shown)).flatten() for shown in (images, drawn))
        loss = (F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) + F.softplus(false).mean()) / 2
        self.last_loss = loss.detach()[None]
        return loss

    def frozen_features(self, images: Tensor) -> Tensor:
        """What the discriminator sees in images, with gradients for the images alone."""
        self.features.requires_grad_(False)
        found = self.features(images)
        self.features.requires_grad_(True)
        return found

    def restart_if_exhausted(self, generator: torch.Generator) -> None:
        if self.last_loss.item() < EXHAUSTED:
            restart(self.features, generator)
            restart(self.verdict, generator)


def encoder(side: int, outputs: int, width: int) -> list[nn.Module]:
    """Halves the grid until it is 4 x 4, doubling the channels, and ends in a convolution over all of it."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for _ in range(halvings(side)):
        layers += [
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        width *= 2
    return [*layers, nn.Conv2d(width, outputs, 4, bias=False)]


def decoder(side: int, latent: int, width: int) -> list[nn.Module]:
    """The mirror of the encoder: from one position to 4 x 4, then doubling the grid."""
    channels = [width * 2**step for step in reversed(range(halvings(side) + 1))]
    layers = [nn.ConvTranspose2d(latent, channels[0], 4, bias=False), nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)]
    for inputs, outputs in itertools.pairwise(channels):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return [*layers, nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1, bias=False), nn.Tanh()]


def halvings(side: int) -> int:
    """Between the first halving and a grid of 4 x 4."""
    return side.bit_length() - 4
