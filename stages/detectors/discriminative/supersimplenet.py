"""SuperSimpleNet: two small heads learn to tell normal features from the same features with noise in a blotchy mask.

Frozen features are brought to twice the grid of the finest layer and averaged over 3x3 neighbourhoods; a linear layer adapts them. Training
adds Gaussian noise inside masks cut from Perlin noise; the segmentation head learns the mask, the classification head, which sees features
and map, whether there is one. With `supervised` real labelled defects are learnt beside the simulated. Rolih et al., "SuperSimpleNet:
Unifying Unsupervised and Supervised Learning for Fast and Reliable Surface Defect Detection", arXiv:2408.03143, and its extension "No Label
Left Behind", arXiv:2508.19060, whose classification head sees the features before their adaptation; that is the default here.

Deviations from the papers:
- The image score is the logit of the classification head, not its sigmoid: the order is the same, and two large ones never tie at 1.
- The state of the lowest loss on held-out normal images (`val_loss`, once an epoch, the same simulated anomalies every time) is kept, and
  training may stop after `patience` epochs without a better one; the papers keep the last. Without held-out images the last is kept.
- Supervised: the stored features and masks are flipped, where the papers flip the image before its features are taken.
- The noise, 0.015 in the papers, fits features of torchvision's V1 weights; `noise_std` must grow with the features of another network
  (those of EfficientNet-Lite0 are some thirty times as large).
- `width`, `class_width`, `upscale`, `steps` and `score_from` allow a smaller schedule; their defaults are the papers'. The classification
  head needs many more steps than the map, whose largest value is then the better image score.
- The adaptor's weights decay as the heads' do; reference implementations leave it at the 0.01 of PyTorch's AdamW.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.detectors.discriminative.maths.losses import focal, truncated_l1
from stages.detectors.maps import gaussian_blur, to_pixels
from stages.detectors.perlin import perlin_masks
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction, Refusal

if TYPE_CHECKING:
    from stages.training import Run

MARGIN = 0.5  # of the truncated L1 loss: logits beyond it cost nothing
CLIP_NORM = 1.0  # of the gradient, supervised only
VAL_IMAGES = 8  # at once, when the loss on held-out images is taken
FLIPS = ((), (2,), (3,), (2, 3))


class SuperSimpleNet(Detector):
    """supervised: learn from labelled images with masks too. adapted_classification: as the first paper has it.

    learning_rate: of the adaptor; the heads have twice as much. noise_std: in units of the features. perlin_threshold: the share of a
    mask falls as it grows; 0.6 is the papers' where training is supervised. width, class_width: hidden channels of the two heads.
    upscale: the grid in multiples of the finest layer's. score_from: the classification head as in the papers, or the largest value of the
    map, which is right after fewer steps.
    """

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("layer2", "layer3"),
        supervised: bool = False,
        adapted_classification: bool = False,
        noise_std: float = 0.015,
        perlin_threshold: float = 0.2,
        width: int = 1024,
        class_width: int = 128,
        upscale: int = 2,
        epochs: int = 300,
        steps: int | None = None,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-5,
        patience: int | None = None,
        score_from: Literal["head", "map"] = "head",
        blur_sigma: float = 4.0,
    ) -> None:
        super().__init__()
        if score_from not in ("head", "map"):
            raise ValueError(f"score_from must be head or map, got {score_from!r}")
        for name, value in {"width": width, "class_width": class_width, "upscale": upscale}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if noise_std <= 0:
            raise ValueError(f"noise_std must be above 0, or there is nothing to tell apart; got {noise_std}")
        self.needs = Need(layers=tuple(layers))
        self.supervised, self.adapted_classification = supervised, adapted_classification
        self.noise_std, self.perlin_threshold, self.upscale, self.blur_sigma = noise_std, perlin_threshold, upscale, blur_sigma
        self.width, self.class_width, self.score_from = width, class_width, score_from
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.network: Network | None = None
        self.register_buffer("steps_trained", torch.empty(0, dtype=torch.int64))  # (1,) after which the kept state was reached

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        if self.supervised:
            require_labelled(train)
        self.network = self._new_network(self._embed(train.take([0]).features).shape[1], derive(run.seed, "network")).to(run.device)
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=self._optimiser,
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            schedule=decay,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._val_loss(held_out, run)}) if held_out else None
        reached = run.train(self.network, train, self._loss, plan, measure, name="network")
        self.steps_trained = torch.tensor([reached], device=run.device)
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """One image at a time, so that a score cannot depend on the batch through the rounding of a convolution."""
        self.require_fitted(self.steps_trained)
        self.network.eval()
        embedded = self._embed(features).to(self.steps_trained.device)
        found = [self.network(image, self.network.adaptor(image)) for image in embedded.split(1)]
        logits, image_score = (torch.cat(values) for values in zip(*found, strict=True))
        anomaly_map = gaussian_blur(to_pixels(logits[:, 0], tuple(features["pixels"].shape[2:])), self.blur_sigma)
        return Prediction(image_score if self.score_from == "head" else anomaly_map.flatten(1).amax(dim=1), anomaly_map)

    def _embed(self, features: Features) -> Tensor:
        """(B, C, h, w): all layers on `upscale` times the finest grid, averaged over 3x3 neighbourhoods."""
        layers = [features[layer].float() for layer in self.needs.layers]
        grid = [side * self.upscale for side in max(tuple(layer.shape[2:]) for layer in layers)]
        joined = torch.cat([F.interpolate(layer, grid, mode="bilinear", align_corners=False) for layer in layers], dim=1)
        return F.avg_pool2d(joined, kernel_size=3, stride=1, padding=1)

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Of the images twice over, each copy with noise of its own."""
        embedded, mask, label = self._targets(batch)
        if self.supervised:
            flip = FLIPS[int(torch.randint(len(FLIPS), (1,), generator=generator))]
            embedded, mask = embedded.flip(flip), mask.flip(flip)
        embedded, mask, label = (torch.cat([part, part]) for part in (embedded, mask, label))
        blotches = self._blotches(mask, generator)
        noise = self.noise_std * torch.randn(embedded.shape, generator=generator).to(embedded) * blotches
        mask, label = mask + blotches, torch.maximum(label, blotches.amax(dim=(1, 2, 3)))
        adapted = self.network.adaptor(embedded) + noise
        logits, scores = self.network(embedded + noise, adapted)
        return truncated_l1(logits, mask, MARGIN) + focal(logits, mask) + focal(scores, label)

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, h, w) features, and (B, 1, h, w) masks and (B,) labels as 0 and 1: all 0 unless supervised."""
        embedded = self._embed(batch.features)
        mask = embedded.new_zeros(len(embedded), 1, *embedded.shape[2:])
        if not self.supervised:
            return embedded, mask, embedded.new_zeros(len(embedded))
        if batch.mask is not None:
            pixels = batch.mask[:, None].to(embedded)
            mask = (F.interpolate(pixels, embedded.shape[2:], mode="bilinear", align_corners=False) >= 0.5).to(embedded)
        return embedded, mask, batch.label.to(embedded)

    def _blotches(self, mask: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 1, h, w): where noise goes, 0 or 1: none in half of the images, and none on a labelled defect."""
        drawn = perlin_masks(len(mask), tuple(mask.shape[2:]), generator, threshold=self.perlin_threshold)
        kept = torch.rand(len(mask), generator=generator) < 0.5
        return (drawn & kept[:, None, None])[:, None].to(mask) * (1 - mask)

    @torch.no_grad()
    def _val_loss(self, held_out: Batches, run: Run) -> float:
        """The training loss on held-out normal images, in batches of its own: the same anomalies however the store hands images out."""
        generator, total = run.generator("val anomalies"), 0.0
        for positions in torch.arange(held_out.samples).split(VAL_IMAGES):
            batch = held_out.take(positions.tolist())
            batch = batch._replace(features={name: values.to(run.device) for name, values in batch.features.items()})
            total += self._loss(batch, generator).item() * len(positions)
        return total / held_out.samples

    def _optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Two groups of the network, so the list that is handed in goes unused. Supervised, each step begins by clipping."""
        adaptor = list(self.network.adaptor.parameters())
        heads = [*self.network.segmentation.parameters(), *self.network.convolution.parameters(), *self.network.classification.parameters()]
        groups = [{"params": adaptor, "lr": self.learning_rate}, {"params": heads, "lr": 2 * self.learning_rate}]
        optimiser = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        if self.supervised:
            clip = partial(nn.utils.clip_grad_norm_, adaptor + heads, CLIP_NORM)
            optimiser.register_step_pre_hook(lambda *_: clip() and None)
        return optimiser

    def _new_network(self, channels: int, seed: int) -> Network:
        options = {"stop_gradient": not self.supervised, "adapted_classification": self.adapted_classification}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Network(channels, self.width, self.class_width, **options)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}network.adaptor.weight")
        if stored is not None:
            self.network = self._new_network(len(stored), seed=0).to(self.steps_trained.device).eval()
        super()._load_from_state_dict(state_dict, prefix, *args)


class Network(nn.Module):
    """The adaptor and the two heads, on features of any width. stop_gradient: the classification head leaves the map as it is."""

    def __init__(self, channels: int, width: int, class_width: int, *, stop_gradient: bool, adapted_classification: bool) -> None:
        super().__init__()
        self.stop_gradient, self.adapted_classification = stop_gradient, adapted_classification
        self.adaptor = nn.Conv2d(channels, channels, 1)
        self.segmentation = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 1, bias=False)
        )
        self.convolution = nn.Sequential(nn.Conv2d(channels + 1, class_width, 5, padding=2), nn.BatchNorm2d(class_width), nn.ReLU())
        self.classification = nn.Linear(2 * class_width + 2, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)

    def forward(self, embedded: Tensor, adapted: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, h, w) logits of the map and (B,) logits of the image, from (B, C, h, w) before and after the adaptor."""
        logits = self.segmentation(adapted)
        seen = logits.detach() if self.stop_gradient else logits
        hidden = self.convolution(torch.cat([adapted if self.adapted_classification else embedded, seen], dim=1))
        pooled = [part for values in (hidden, seen) for part in (values.amax(dim=(2, 3)), values.mean(dim=(2, 3)))]
        return logits, self.classification(torch.cat(pooled, dim=1))[:, 0]


def decay(step: int, total: int) -> float:
    """0.4 at four fifths of the steps, 0.16 at nine tenths."""
    return 0.4 ** ((step >= 0.8 * total) + (step >= 0.9 * total))


def require_labelled(train: Batches) -> None:
    """Refuses supervised training without anomalous training images, or where one of them has no mask."""
    anomalous, bare = 0, []
    for batch in train:
        for place in batch.label.nonzero()[:, 0].tolist():
            anomalous += 1
            if batch.mask is None or not batch.mask[place].any():
                bare.append(batch.sample_id[place])
    if not anomalous:
        raise Refusal(
            "supervised SuperSimpleNet needs anomalous images with masks among the training images, and there are none: "
            "add some to the train split, or set supervised to false"
        )
    if bare:
        raise Refusal(f"supervised SuperSimpleNet needs a mask for each anomalous training image; without one: {', '.join(bare[:5])}")
