"""DSR: defects are simulated among the codes of a general autoencoder, networks learn to lead such codes back to normal ones, and the image
that is drawn of the normal codes is compared with the one that is drawn of the codes as they came.

Because the codes are those of natural images, a simulated defect is something that could be there, close to normal or far from it.
Stage 1, once for all: the autoencoder `vq_weights` names (stages/encoders/vq.py). Stage 2: inside a Perlin mask, codes give way to near ones;
two networks restore them, a decoder of this kind of part draws the result, and a marking network learns the mask from both drawings. Stage 3:
a second marking network sharpens the mask, on images with textures laid over. Zavrtanik et al., "DSR - A Dual Subspace Re-Projection Network
for Surface Anomaly Detection", ECCV 2022, arXiv:2208.01521; settings that the paper leaves open are those of the authors' code.

Deviations from the paper:
- The autoencoder is one that was trained here, or a published one that fits. With "textures" it is trained in `fit`, on the run's auxiliary
  textures: a first stage for every category, where the paper has one for all. With "random" it stays untrained, but for its codebooks,
  which are embeddings of those textures.
- `channels` and `codes` are those of the autoencoder's weights; `width` is that of both marking networks. Defaults are the paper's.
- The simulated defects differ in what maths/smudges.py and stages/detectors/perlin.py say of themselves; a mask may be empty.
- Only positions inside a mask are given another code (elsewhere the draw would be thrown away).
- An image is padded to multiples of 32, at least 64 pixels, by repeating its border; maps are cropped again.
- `steps` caps stage 2, half as many stage 3. Each stage keeps the state with the lowest loss on held-out normal images under the same
  simulated defects each time (`val_loss`, once an epoch), and stops after `patience` epochs without a better one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.perlin import perlin_masks
from stages.detectors.reconstruction.maths.padding import cropped, next_multiple, padded
from stages.detectors.reconstruction.maths.smudges import smudged
from stages.detectors.reconstruction.maths.subspaces import Marker, ObjectDecoder, Restriction
from stages.encoders.vq import VQ, Quantiser, as_rows
from stages.encoders.vq import loss as vq_loss
from stages.encoders.weights import RANDOM, load_or_refuse
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.training import Run

MULTIPLE, LEAST = 32, 64  # of the sides of an image: the low codes (stride 8) are halved twice and must not end as one
NEAREST, WEAKEST = 0.05, 0.2  # codes nearer than this share of the codebook are not drawn; farther ones up to a share from U[0.2, 1]
BOTH, LOW, HIGH = 0, 1, 2  # which level a simulated defect is in
TEXTURES = "textures"  # as vq_weights: the autoencoder is trained in `fit`
STARTING_IMAGES = 64  # whose embeddings the codebooks start as, without weights from elsewhere


class DSR(Detector):
    """vq_weights: of the lock of weights, or "textures", or "random". clean: share of the images that get no simulated defect. score_window: the image score
    is the maximum of stage 2's mask after a mean filter of so many pixels."""

    def __init__(
        self,
        *,
        vq_weights: str = "vq-dsr",
        channels: int = 128,
        codes: int = 4096,
        width: int = 64,
        clean: float = 0.5,
        score_window: int = 21,
        epochs: int = 100,
        steps: int | None = None,
        batch_size: int = 8,
        learning_rate: float = 2e-4,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        if score_window < 1 or score_window % 2 == 0:
            raise ValueError(f"score_window must be odd, so that the mean filter has a middle, got {score_window}")
        self.needs = Need(aux=("textures",))
        self.vq_weights, self.channels, self.codes, self.width = vq_weights, channels, codes, width
        self.clean, self.score_window = clean, score_window
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate = learning_rate
        if vq_weights == RANDOM:
            self.blind = "an untrained autoencoder draws nothing that a few steps of training could compare"
        self.register_buffer("steps_trained", torch.empty(0, dtype=torch.int64))  # (2,) after which the kept states were reached
        self._new_networks(seed=0)

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        textures = run.aux.get("textures")
        if textures is None or not textures.samples:
            raise Refusal(
                "DSR lays textures over images in its third stage, and this run has none: give it auxiliary images named 'textures'"
            )
        self._new_networks(run.seed)
        self.to(run.device)
        if self.vq_weights in (TEXTURES, RANDOM):
            self._first_stage(textures, run)
        else:
            run.history.append({"vq": load_or_refuse(self.vq, self.vq_weights, run.backbones)})
        held_out = val if val is not None and val.samples else None
        second = self._train(
            self.restoring, self._restoring_loss, 1, lambda step, total: 1.0 if step < int(0.8 * total) else 0.1, train, held_out, run
        )
        self.restoring.requires_grad_(False)
        third = self._train(self.sharpening, partial(self._sharpening_loss, textures), 2, None, train, held_out, run)
        self.steps_trained = torch.tensor([second, third], device=run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One image at a time, so that a score cannot depend on its company through rounding."""
        self.require_fitted(self.steps_trained)
        size = tuple(features["pixels"].shape[2:])
        pairs = [self._masks(padded_images(image.to(self.steps_trained.device))) for image in features["pixels"].split(1)]
        coarse, anomaly_map = (cropped(torch.cat(masks)[:, 1:], size) for masks in zip(*pairs, strict=True))
        means = F.avg_pool2d(coarse, self.score_window, stride=1, padding=self.score_window // 2)
        return Prediction(means.flatten(1).amax(dim=1), anomaly_map[:, 0])

    def _masks(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (B, 2, H, W) of stage 2 and of stage 3."""
        with torch.no_grad():
            drawn, encoded = self.vq(images)
            own, _, _ = self._redrawn(encoded.low, encoded.high)
            coarse = self.restoring["marker"](own, drawn).softmax(dim=1)
        return coarse, self.sharpening(own, drawn, coarse).softmax(dim=1)

    def _redrawn(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The image of this kind of part that these codes lead to, and the features that both restrictions made of them."""
        restored_low, restored_high = self.restoring["low"](low), self.restoring["high"](high)
        codes = torch.cat([self.vq.rise(self.vq.codes_low(restored_low)), self.vq.codes_high(restored_high)], dim=1)
        return self.restoring["decoder"](codes), restored_low, restored_high

    def _restoring_loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        masks = perlin_masks(len(images), tuple(images.shape[2:]), generator, rotation=90.0)
        masks &= (torch.rand(len(images), generator=generator) >= self.clean)[:, None, None]
        low, high, normal_low, normal_high, marked = self._with_defects(images, masks.to(images.device), generator)
        own, restored_low, restored_high = self._redrawn(low, high)
        logits = self.restoring["marker"](own.detach(), self.vq.decode(low, high).detach())
        features = F.mse_loss(restored_high, normal_high) + F.mse_loss(restored_low, normal_low)
        return features + 10 * F.mse_loss(own, images) + focal_loss(logits, marked)

    def _sharpening_loss(self, textures: Batches, images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(textures.samples, (len(images),), generator=generator).tolist()
        others = F.interpolate(
            textures.take(chosen).features["pixels"].float() / 255, tuple(images.shape[2:]), mode="bilinear", antialias=True
        )
        smudges, masks = smudged(images, others, generator, clean=self.clean)
        with torch.no_grad():
            drawn, encoded = self.vq(smudges)
            own, _, _ = self._redrawn(encoded.low, encoded.high)
            coarse = self.restoring["marker"](own, drawn).softmax(dim=1)
        return focal_loss(self.sharpening(own, drawn, coarse), masks)

    @torch.no_grad()
    def _with_defects(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Codes with defects, low and high, the normal ones, and (B, H, W) where a defect is, as coarse as the level that it is in.

        A low defect changes the high codes too, for they are embedded with the low ones; where only the low level is to have one, the
        high codes stay those of the normal image.
        """
        found = self.vq.encode(images)
        level = torch.tensor([BOTH, BOTH, LOW, HIGH])[torch.randint(4, (len(images),), generator=generator)].to(images.device)
        shares = WEAKEST + (1 - WEAKEST) * torch.rand(2, len(images), generator=generator)
        level, coarse, fine = level[:, None, None], pooled(masks, found.low), pooled(masks, found.high)
        low = other_codes(found.embedded_low, found.low, coarse & (level != HIGH), shares[0], self.vq.codes_low, generator)
        embedded = torch.where((level == BOTH)[:, None], self.vq.embedding_high(found.edges, low), found.embedded_high)
        high = other_codes(embedded, self.vq.codes_high.nearest(embedded), fine & (level != LOW), shares[1], self.vq.codes_high, generator)
        marked = torch.where(level == HIGH, enlarged(fine, images), enlarged(coarse, images))
        return low, high, found.low, found.high, marked

    def _first_stage(self, textures: Batches, run: Run) -> None:
        """Codebooks that start as embeddings of textures and, unless they are to stay untrained, an autoencoder of them."""
        from stages.training import Plan

        positions = torch.randperm(textures.samples, generator=run.generator("start"))[:STARTING_IMAGES].tolist()
        images = _images(textures.take(positions), run)
        self.vq.start(images, run.generator("codes"))
        if self.vq_weights == RANDOM:
            return
        variance = images.var(dim=(0, 2, 3), correction=0).mean().clamp_min(1e-4).item()
        adam = partial(torch.optim.Adam, lr=self.learning_rate)
        plan = Plan(optimiser=adam, epochs=self.epochs, steps=self.steps, batch_size=self.batch_size)
        self.vq.requires_grad_(True)
        run.train(
            self.vq, textures, lambda batch, generator: vq_loss(self.vq, _images(batch, run), variance, generator), plan, name="codes"
        )
        self.vq.requires_grad_(False)

    def _train(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, torch.Generator], Tensor],
        part: int,
        schedule: Callable[[int, int], float] | None,
        train: Batches,
        held_out: Batches | None,
        run: Run,
    ) -> int:
        """One stage; `part`: the schedule is divided by it."""
        from stages.training import Plan

        def measure() -> dict[str, float]:
            generator, total = run.generator("held-out defects", part), 0.0
            for batch in held_out or ():
                total += len(batch.sample_id) * loss(_images(batch, run), generator).item()
            return {"val_loss": total / held_out.samples if held_out else 0.0}

        plan = Plan(
            optimiser=partial(torch.optim.Adam, lr=self.learning_rate),
            epochs=max(1, self.epochs // part),
            steps=self.steps and max(1, self.steps // part),
            batch_size=self.batch_size,
            schedule=schedule,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )

        def descend(batch: Batch, generator: torch.Generator) -> Tensor:
            return loss(_images(batch, run), generator)

        return run.train(network, train, descend, plan, measure if held_out else None, name=("restoring", "sharpening")[part - 1])

    def _new_networks(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(0, "vq"))
            self.vq = VQ(channels=self.channels, codes=self.codes).requires_grad_(False)
            torch.manual_seed(derive(seed, "networks"))
            low, high = Restriction(self.channels), Restriction(self.channels)
            parts = {"low": low, "high": high, "decoder": ObjectDecoder(self.channels), "marker": Marker(6, self.width)}
            self.restoring, self.sharpening = nn.ModuleDict(parts), Marker(8, self.width)
        self.eval()


def other_codes(embedded: Tensor, nearest: Tensor, inside: Tensor, share: Tensor, book: Quantiser, generator: torch.Generator) -> Tensor:
    """`nearest` (B, C, h, w) where `inside` (B, h, w) is not set; elsewhere a code that is drawn from those whose rank, by distance from the
    embedding, is from 5 % of the codebook to `share` (B,) of it."""
    count = len(book.codes)
    first, last = int(NEAREST * count), (share * count).long().clamp(0, count - 2)  # ranks, both included
    image, _, _ = inside.nonzero(as_tuple=True)
    draws = torch.rand(len(image), generator=generator)
    ranks = (first + draws * (last[image.cpu()] + 1 - first)).long().to(embedded.device)
    ordered = book.distances(as_rows(embedded)[inside.flatten()]).argsort(dim=1)
    changed = as_rows(nearest).clone()
    changed[inside.flatten()] = book.codes[ordered.gather(1, ranks[:, None])[:, 0]]
    return changed.unflatten(0, (len(embedded), *embedded.shape[2:])).permute(0, 3, 1, 2)


def focal_loss(logits: Tensor, marked: Tensor) -> Tensor:
    """Mean of -(1 - p)^2 log p of the right answer, over all pixels; gamma is 2 and both answers weigh the same."""
    log = logits.log_softmax(dim=1).gather(1, marked[:, None].long())
    return -((1 - log.exp()).square() * log).mean()


def pooled(masks: Tensor, grid: Tensor) -> Tensor:
    """(B, H, W) bool to (B, h, w): set where any pixel of the cell is."""
    return F.adaptive_max_pool2d(masks[:, None].float(), tuple(grid.shape[2:]))[:, 0] > 0


def enlarged(cells: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(cells[:, None].float(), tuple(images.shape[2:]))[:, 0] > 0


def padded_images(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) levels to 0..1, with sides that all networks take."""
    return padded(pixels.float() / 255, next_multiple(tuple(pixels.shape[2:]), MULTIPLE, LEAST))


def _images(batch: Batch, run: Run) -> Tensor:
    return padded_images(batch.features["pixels"].to(run.device))
