"""UniNet: one student restores the features of two teachers, a frozen one and a copy of it that adapts to the images, each from the embedding
of the other's; where they cannot be restored, the image is not normal.

Both teachers' features pass a bottleneck of two branches and the decoder of reverse distillation. In training, the student's features are
first weighted by where and in which channels the teacher is active (domain-related feature selection), and a contrastive loss asks that each
position resemble its own counterpart more than any other. How many pixels make up the score follows from the maps' own maxima. Wei et al.,
"UniNet: A Contrastive Learning-guided Unified Framework with Feature Selection for Anomaly Detection", CVPR 2025.

Deviations from the paper:
- The frozen (source) teacher never runs here: its features are those that the encoder has stored. The adapting (target) teacher sees pixels
  and starts from the same weights, which `fit` verifies against the stored features.
- Unsupervised only: the margin for labelled anomalies is left out. One temperature for all categories; the authors set it by class.
- The wide branch has 7 x 7 convolutions; the implementation that we compare with replaces them by 3 x 3 before training (`kernel: 3`).
- Built for any channels and strides, from basic blocks where the first layer has fewer than 256 channels; `width` scales inner channels.
- One AdamW with two groups stands for the authors' two optimisers, which is the same.
- The kept state is the one with the lowest loss on held-out normal images (`val_loss`, once an epoch), not the best on the test set, and
  training stops after `patience` epochs without a better one. Without held-out images all epochs are run. `steps` caps the training.
- Similarities are computed by rows of positions and again for the gradient, so that no (h w) x (h w) matrix is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.detectors.distillation.maths.reverse import Pyramid, ReverseStudent, Style, TwoBranches, summed_map, unit_distance
from stages.detectors.maps import gaussian_blur
from stages.seed import derive
from stages.types import Batch, Batches, Detector, Features, Need, Prediction

if TYPE_CHECKING:
    from stages.training import Run

IMAGES_AT_ONCE = 4  # scored together: activations of more leave the cache
SIMILARITIES_AT_ONCE = 2**22  # of positions with positions, 16 MiB
SAME = 0.01  # mean 1 - cosine up to which a teacher's features count as those stored, which may be rounded to float16


class UniNet(Detector):
    """backbone, weights: of both teachers, as the encoder entry names them; `weights_seed` is the encoder's seed where they are "random".

    temperature: of the contrastive loss. contrast: its weight, against 1 - contrast of the cosine. select: feature selection in training.
    kernel: of the wide branch. width: of the blocks' inner channels, relative to a plain ResNet; None takes the paper's. alpha, beta: the
    share of pixels in the score is alpha times the mean of the high maxima, at least beta.
    """

    def __init__(
        self,
        *,
        backbone: str = "wide_resnet50_2.tv_in1k",
        weights: str = "wide_resnet50_2.tv_in1k",
        weights_seed: int = 0,
        layers: tuple[str, ...] = ("layer1", "layer2", "layer3"),
        kernel: int = 7,
        width: float | None = None,
        temperature: float = 2.0,
        contrast: float = 0.3,
        select: bool = True,
        alpha: float = 0.01,
        beta: float = 3e-5,
        epochs: int = 100,
        steps: int | None = None,
        batch_size: int = 8,
        learning_rate: float = 5e-3,
        teacher_learning_rate: float = 1e-6,
        weight_decay: float = 1e-5,
        patience: int | None = 20,
    ) -> None:
        super().__init__()
        if temperature <= 0 or kernel % 2 == 0:
            raise ValueError(f"temperature must be above 0 and kernel odd, got {temperature} and {kernel}")
        self.needs = Need(layers=tuple(layers), backbone=backbone)
        self.weights, self.weights_seed, self.kernel, self.width = weights, weights_seed, kernel, width
        self.temperature, self.contrast, self.select, self.alpha, self.beta = temperature, contrast, select, alpha, beta
        self.epochs, self.steps, self.batch_size, self.patience = epochs, steps, batch_size, patience
        self.learning_rate, self.teacher_learning_rate, self.weight_decay = learning_rate, teacher_learning_rate, weight_decay
        self.register_buffer("pyramid", torch.empty(0, 0, dtype=torch.int64))  # (2, layers) channels and halvings: what the student fits
        self.network = nn.Module()
        self.eval()

    def fit(self, train: Batches, val: Batches | None, run: Run) -> Self:
        from stages.training import Plan

        first = train.take([0]).features
        pyramid = Pyramid.of(first, self.needs.layers)
        self.pyramid = pyramid.to_tensor().to(run.device)
        self.network = self._new_network(pyramid, self.weights, self.weights_seed, derive(run.seed, "student")).to(run.device)
        self._require_same_start(first)
        held_out = val if val is not None and val.samples else None
        plan = Plan(
            optimiser=self._optimiser,
            epochs=self.epochs,
            steps=self.steps,
            batch_size=self.batch_size,
            watch="val_loss" if held_out else None,
            patience=self.patience if held_out else None,
        )
        measure = (lambda: {"val_loss": self._mean_loss(held_out)}) if held_out else None
        run.train(self.network, train, self._loss, plan, measure, name="student")
        return self.eval()

    @torch.no_grad()
    def score(self, features: Features) -> Prediction:
        """The map is the sum of the six without a blur; the score is the mean of the highest pixels of the blurred sum."""
        self.require_fitted(self.pyramid)
        size, parts = tuple(features["pixels"].shape[2:]), {name: value.split(IMAGES_AT_ONCE) for name, value in features.items()}
        found = [self._score(dict(zip(parts, part, strict=True)), size) for part in zip(*parts.values(), strict=True)]
        return Prediction(*(torch.cat(values) for values in zip(*found, strict=True)))

    def _score(self, features: Features, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        distances = [unit_distance(*pair) for pair in zip(*self._pairs(features), strict=True)]
        anomaly_map = summed_map(distances, size)
        shares = decided_share(torch.stack([layer.flatten(1).amax(dim=1) for layer in distances], dim=1), self.alpha, self.beta)
        return mean_of_highest(gaussian_blur(anomaly_map, 4.0), shares), anomaly_map

    def _pairs(self, features: Features) -> tuple[list[Tensor], list[Tensor]]:
        """Twice as many maps as there are layers, of the teachers (source, then target) and of the student."""
        device = self.pyramid.device
        source = [features[layer].to(device).float() for layer in self.needs.layers]
        target = self.network.target(features["pixels"].to(device))
        target = [target[layer] for layer in self.needs.layers]
        restored = self.network.student([torch.cat(pair) for pair in zip(target, source, strict=True)])
        halves = [layer.chunk(2) for layer in restored]  # the first comes from the target teacher, and is held against the source
        return source + target, [from_target for from_target, _ in halves] + [from_source for _, from_source in halves]

    def _losses(self, features: Features) -> Tensor:
        """(B,): the sum over all maps."""
        teachers, students = self._pairs(features)
        if self.select:
            thetas = [*self.network.theta, *self.network.theta]
            students = [select_features(*each) for each in zip(students, teachers, thetas, strict=True)]
        return sum(similarity_loss(*pair, self.temperature, self.contrast) for pair in zip(students, teachers, strict=True))

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self._losses(batch.features).mean()

    def _mean_loss(self, batches: Batches) -> float:
        return sum(self._losses(batch.features).double().sum().item() for batch in batches) / batches.samples

    def _optimiser(self, _parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        network = self.network
        groups = [
            {"params": [*network.student.parameters(), *network.theta.parameters()], "lr": self.learning_rate},
            {"params": [*network.target.parameters()], "lr": self.teacher_learning_rate},
        ]
        return torch.optim.AdamW(groups, weight_decay=self.weight_decay)

    def _new_network(self, pyramid: Pyramid, weights: str, weights_seed: int, seed: int) -> nn.Module:
        """target: takes uint8 pixels, as the encoder does. student. theta: of each layer, one value per channel."""
        from stages.encoders.cnn import CNN

        style = Style.of(pyramid, "auto", self.width)

        def block(inputs: int, outputs: int, stride: int) -> nn.Module:
            return TwoBranches(inputs, outputs, style.inner(outputs), self.kernel, stride)

        network = nn.Module()
        network.target = CNN(backbone=self.needs.backbone, layers=self.needs.layers, weights=weights, seed=weights_seed, trainable=True)
        network.student = ReverseStudent(pyramid, style._replace(embedding=3), seed, block)
        network.theta = nn.ParameterList(torch.zeros(1, channels, 1, 1) for channels in pyramid.channels)
        return network

    @torch.no_grad()
    def _require_same_start(self, stored: Features) -> None:
        target = self.network.eval().target(stored["pixels"].to(self.pyramid.device))
        for layer in self.needs.layers:
            values = stored[layer].to(self.pyramid.device).float()
            apart = unit_distance(values, target[layer]).mean().item() if values.shape == target[layer].shape else 1.0
            if apart > SAME:
                came = f"but its {layer} differs from the stored features (1 - cosine is {apart:.3f}, at most {SAME} is allowed)"
                raise ValueError(f"the target teacher must start as a copy of the encoder, {came}: give model and encoder the same weights")

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        stored = state_dict.get(f"{prefix}pyramid")
        if stored is not None and stored.numel():
            self.network = self._new_network(Pyramid.from_tensor(stored), "random", 0, seed=0).to(self.pyramid.device).eval()
        super()._load_from_state_dict(state_dict, prefix, *args)


def select_features(student: Tensor, teacher: Tensor, theta: Tensor) -> Tensor:
    """(B, C, h, w): the student's features times a softmax over the positions of the teacher's channel, times (theta + that channel's mean),
    where theta, learnt per channel, stays in 0.5..1."""
    weights = torch.softmax(teacher.flatten(2), dim=2).view_as(teacher)
    return student * weights * ((theta.sigmoid() + 0.5).clamp(max=1) + teacher.mean(dim=(2, 3), keepdim=True))


def similarity_loss(student: Tensor, teacher: Tensor, temperature: float, contrast: float) -> Tensor:
    """(B,): of two (B, C, h, w). With P_ii the share of position i's own counterpart in a softmax of cosines over all positions: the mean of
    1 - cosine, of -log P_ii, and of the margin 1 - P_ii that is left to 1."""
    one, other = (F.normalize(values.flatten(2).transpose(1, 2), dim=2) for values in (student, teacher))  # (B, h*w, C)
    cosine = (one * other).sum(dim=2)
    own = cosine / temperature - log_sums(one, other, temperature)  # log P_ii
    return (1 - contrast) * (1 - cosine).mean(dim=1) - contrast * own.mean(dim=1) + F.relu(1 - own.exp()).mean(dim=1)


def log_sums(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """(B, N): log of the sum over j of exp(one_i . other_j / temperature), by rows that are computed again for the gradient."""
    rows = max(1, SIMILARITIES_AT_ONCE // (one.shape[0] * other.shape[1]))
    parts = [
        checkpoint(_log_sums, part, other, temperature, use_reentrant=False, preserve_rng_state=False) for part in one.split(rows, dim=1)
    ]
    return torch.cat(parts, dim=1)


def _log_sums(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    return torch.logsumexp(one @ other.transpose(1, 2) / temperature, dim=2)


def decided_share(maxima: Tensor, alpha: float, beta: float) -> list[float]:
    """Of each image, the share of its pixels that make up the score. maxima: (B, maps). High maxima are those whose softmax is above the mean
    of all; where all are alike, all of them are."""
    chances = maxima.softmax(dim=1)
    high = chances > chances.mean(dim=1, keepdim=True)
    high |= ~high.any(dim=1, keepdim=True)
    means = (maxima * high).sum(dim=1) / high.sum(dim=1)
    return (alpha * means).clamp_min(beta).tolist()


def mean_of_highest(maps: Tensor, shares: list[float]) -> Tensor:
    """(B,): the mean of the highest share of each map's pixels, of one at least."""
    pixels = maps.flatten(1)
    counts = [max(1, int(share * pixels.shape[1])) for share in shares]
    return torch.stack([image.topk(count).values.mean() for image, count in zip(pixels, counts, strict=True)])
