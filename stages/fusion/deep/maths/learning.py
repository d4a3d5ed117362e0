"""How every deep detector learns: two views of each record, contrast between classes beside the cross-entropy, batches balanced by class.

Two views of a record (another dropout, other modalities taken away, other augmentations) go through the network together, so that a batch of two has
positives already. What is kept is the state with the least cross-entropy on validation records (`watch: loss`): it has no ties on small sets, as
accuracy, F1 and AUROC have, and goes up as soon as a network is too sure of what it remembers. `watch: macro_f1` keeps the best F1 instead.
Beside it the history says how well the training and the validation records are told, so that over-fitting is seen.

Without faults to learn from (`normal_only`) the contrast is between records, each its own class, and the last state is kept.

B records, V views, M modalities, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from stages.datasets.records import Ragged, Records, RecordSet, batches, key
from stages.fusion.deep.maths.augment import augmented, check
from stages.fusion.deep.maths.encoder import Padded, SensorEncoder
from stages.fusion.deep.maths.heads import shift
from stages.fusion.deep.maths.network import Network
from stages.fusion.deep.maths.reconstruction import HIDDEN, Reconstruction, hidden
from stages.fusion.deep.maths.sampler import balanced
from stages.fusion.deep.maths.supcon import SupConLoss
from stages.metrics.classes import class_counts, macro_f1
from stages.seed import derive
from stages.training import Plan, Run
from stages.types import Batch

CLIP_NORM = 1.0
WARMUP = 0.1  # the largest share of the steps over which the learning rate rises
IN_MEMORY = 512 * 2**20  # bytes of records that are held in memory while they are learnt from
VIEWS = 2
COUNTED = ("loss", "contrast", "accuracy", "reconstruction")


class Learning(BaseModel):
    """The budget and the loss, the same for all deep detectors.

    epochs, steps: whichever ends first. classes_per_batch, per_class: what a batch is made of; batch_size, where given, sets them. contrast, alpha: weights
    of the contrast and of the cross-entropy. hard_negatives: beta, 0 for none. modality_dropout: chance that a modality is taken from a view, after the
    share `curriculum` of the steps. augment: names of augmentations. reconstruction: weight of a second task, to tell
    hidden steps of the sensors (.1 is usual). pretrain_epochs: before any label is looked at. labels: the share of the records of each class whose labels
    are learnt from. plateau: measurements without a better one before the rate is divided by ten.
    patience: measurements without a better one before it stops; None never. normal_only: learn from good records alone, without labels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(50, ge=1)
    steps: int | None = Field(None, ge=1)
    classes_per_batch: int = Field(3, ge=1)
    per_class: int = Field(4, ge=1)
    batch_size: int | None = Field(None, ge=2)
    balanced: bool = True
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    warmup: int = Field(500, ge=0)
    schedule: Literal["cosine", "plateau"] = "cosine"
    plateau: int = Field(5, ge=1)
    tau: float = Field(0.07, gt=0)
    contrast: float = Field(1.0, ge=0)
    alpha: float = Field(1.0, ge=0)
    label_smoothing: float = Field(0.05, ge=0, lt=1)
    hard_negatives: float = Field(0.0, ge=0)
    modality_dropout: float = Field(0.3, ge=0, lt=1)
    curriculum: float = Field(0.1, ge=0, le=1)
    augment: list[str] = []
    reconstruction: float = Field(0.0, ge=0)
    pretrain_epochs: int = Field(0, ge=0)
    labels: float = Field(1.0, gt=0, le=1)
    watch: Literal["loss", "macro_f1"] = "loss"
    patience: int | None = Field(None, ge=1)
    mixed_precision: bool = False
    normal_only: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check(self.augment)
        if not self.normal_only and self.contrast == self.alpha == 0:
            raise ValueError("contrast and alpha are both 0, so there is nothing to learn")
        return self

    @property
    def cell(self) -> tuple[int, int]:
        """How many classes a batch has, and how many records of each."""
        if self.batch_size is None:
            return self.classes_per_batch, self.per_class
        if self.batch_size < 2 * self.per_class:
            return 2, self.batch_size // 2
        return self.batch_size // self.per_class, self.per_class

    @property
    def batch(self) -> int:
        """Records of a batch; a `batch_size` that is no multiple of `per_class` is rounded down to one."""
        return math.prod(self.cell)

    def total(self, samples: int) -> int:
        """Steps of a whole training."""
        return min(self.epochs * math.ceil(samples / self.batch), self.steps or self.epochs * samples)

    def rate(self, step: int, total: int) -> float:
        """The factor on the learning rate at a step."""
        rising = min(1.0, (step + 1) / max(min(self.warmup, WARMUP * total), 1))
        return min(rising, (1 + math.cos(math.pi * step / total)) / 2) if self.schedule == "cosine" else rising


class Source:
    """Records as the training loop takes them: ragged tensors, "<number>.<part>" for each modality, and the class of each record, -1 for none known.

    classes: (N,) int64. modalities: those that are given, in this order; they must have all of them.
    """

    def __init__(self, records: RecordSet, classes: Tensor, modalities: Sequence[str]) -> None:
        self.records, self.classes, self.samples, self.modalities = _held(records), classes, records.samples, modalities

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, 256):
            yield self.take(list(range(start, min(start + 256, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        taken = self.records.take(positions)
        given = enumerate(taken.tokens[name] for name in self.modalities)
        features = {f"{number}.{part}": tensor for number, one in given for part, tensor in one._asdict().items()}
        return Batch({**features, "class": self.classes[positions]}, taken.label.long(), None, taken.record_id, [""] * len(positions))


class Told(NamedTuple):
    """What was learnt by, of one step."""

    loss: Tensor
    contrast: Tensor
    accuracy: Tensor
    reconstruction: Tensor


class Trainee(nn.Module):
    """The network that learns, and how far it is; one state for the training loop to save."""

    def __init__(self, network: Network, learning: Learning, total: int, seed: int = 0) -> None:
        super().__init__()
        self.network, self.learning, self.total = network, learning, total
        self.contrast = SupConLoss(learning.tau, learning.hard_negatives)
        self.reconstruction = _reconstruction(network, seed) if learning.reconstruction else None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(len(COUNTED), dtype=torch.float64))
        self.register_buffer("summed", torch.zeros((), dtype=torch.int64))

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        tokens = ragged(batch.features, self.network.encoder.names)
        share = self.learning.modality_dropout if int(self.steps) >= self.learning.curriculum * self.total else 0.0
        told, total = self.told(tokens, batch.features["class"], share, generator)
        self.steps += 1
        self.sums += torch.stack([one.detach() for one in told]).double()
        self.summed += 1
        return total

    def told(self, tokens: Mapping[str, Ragged], kind: Tensor, share: float, generator: torch.Generator) -> tuple[Told, Tensor]:
        """What is counted, and the loss. kind: (B,) int64 classes; share: chance of each modality to be taken away."""
        learning, heads, twice = self.learning, self.network.heads, kind.repeat(VIEWS)
        whole, seen = self.views(tokens, kind, share, generator)
        features = self.network(seen).features
        contrast = self.contrast(heads.project(features).unflatten(0, (VIEWS, -1)).transpose(0, 1), None if learning.normal_only else kind)
        told = Told(contrast.detach(), contrast, torch.ones_like(contrast), self._reconstructed(features, whole, seen))
        loss = contrast + learning.reconstruction * told.reconstruction
        if learning.normal_only:
            return told, loss
        logits = heads.balanced(features)
        entropy = functional.cross_entropy(logits.detach(), twice)
        loss = learning.contrast * contrast + learning.reconstruction * told.reconstruction
        loss = loss + learning.alpha * functional.cross_entropy(logits, twice, label_smoothing=learning.label_smoothing)
        return told._replace(loss=entropy, accuracy=(logits.argmax(1) == twice).float().mean()), loss

    def views(
        self, tokens: Mapping[str, Ragged], kind: Tensor, share: float, generator: torch.Generator
    ) -> tuple[dict[str, Padded], dict[str, Padded]]:
        """V * B records, all of the first view, then all of the second: augmented and padded, and what of it is shown, some modalities being taken away."""
        padded, names = self.network.encoder.padded, self.learning.augment
        if names:
            whole = side_by_side([padded(augmented(names, dict(tokens), kind, generator)) for _ in range(VIEWS)])
        else:
            whole = {name: Padded(*(torch.cat([one] * VIEWS) for one in part)) for name, part in padded(tokens).items()}
        present = torch.stack([part.mask.any(1) for part in whole.values()], 1)
        left = thinned(present, share, generator)
        seen = {name: part._replace(mask=part.mask & left[:, number, None]) for number, (name, part) in enumerate(whole.items())}
        if self.reconstruction is not None:
            sensors = self.network.encoder.encoding.sensors
            seen[sensors] = hidden(seen[sensors], self.network.encoder.encoding.patch, HIDDEN, generator)
        return whole, seen

    def _reconstructed(self, features: Tensor, whole: Mapping[str, Padded], seen: Mapping[str, Padded]) -> Tensor:
        if self.reconstruction is None:
            return features.new_zeros(())
        encoder = self.network.encoder
        name = encoder.encoding.sensors
        return self.reconstruction.loss(features, whole[name], seen[name], encoder.adapters[key(name)].standard)

    def spent(self) -> dict[str, float]:
        """The means since this was last asked."""
        means = (self.sums / self.summed.clamp(min=1)).tolist()
        self.sums.zero_()
        self.summed.zero_()
        counted = dict(zip(COUNTED, means))
        if self.learning.normal_only:
            counted.pop("accuracy")
        if self.reconstruction is None:
            counted.pop("reconstruction")
        return {f"train_{name}": value for name, value in counted.items()}


def train_network(network: Network, source: Source, val: Source, learning: Learning, run: Run, name: str = "network") -> int:
    """Train a network in place; returns after how many steps the kept state was reached. val: labelled records; there may be none."""
    network.heads.shift.copy_(shift(source.classes, network.heads.shift.numel(), learning.balanced))
    trainee = Trainee(network, learning, learning.total(source.samples), derive(run.seed, name, "reconstruction"))
    judged = bool((val.classes >= 0).any())
    watch = {"loss": "val_loss", "macro_f1": "val_f1_loss"}[learning.watch] if judged and not learning.normal_only else None
    if not judged:
        run.say("no validation records of the classes that are learnt: the last state is kept")
    if watch is None and (learning.patience or learning.schedule == "plateau"):
        run.say("nothing says which state is best here, so patience and the schedule plateau change nothing")
    plan = Plan(
        _optimiser(learning), learning.epochs, learning.batch, learning.steps, schedule=learning.rate, watch=watch,
        patience=learning.patience if watch else None,
        order=balanced(source.classes, *learning.cell) if learning.balanced and not learning.normal_only else None,
        plateau=learning.plateau if watch and learning.schedule == "plateau" else None,
        mixed_precision=learning.mixed_precision,
    )  # fmt: skip

    def measure() -> dict[str, float]:
        return trainee.spent() | (judge(trainee, val, run) if judged else {})

    return run.train(trainee, source, trainee.loss, plan, measure, name=name)


def _reconstruction(network: Network, seed: int) -> Reconstruction | None:
    """The second task; None where the network reads no steps of sensors."""
    adapters, name = network.encoder.adapters, network.encoder.encoding.sensors
    if key(name) not in adapters or not isinstance(adapters[key(name)], SensorEncoder):
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Reconstruction(network.encoder.widths[name], network.heads.classes.in_features)


def judge(trainee: Trainee, val: Source, run: Run) -> dict[str, float]:
    """How well the validation records of known classes are told; without faults, the contrast between two views that are always the same."""
    kept = (val.classes >= 0).nonzero()[:, 0].tolist()
    network, names, found = trainee.network, trainee.network.encoder.names, []
    generator = run.generator("views of validation")
    contrast, weight = 0.0, 0
    for start in range(0, len(kept), 256):
        batch = val.take(kept[start : start + 256])
        tokens = {name: Ragged(*(one.to(run.device) for one in part)) for name, part in ragged(batch.features, names).items()}
        if trainee.learning.normal_only:
            told, _ = trainee.told(tokens, batch.features["class"].to(run.device), trainee.learning.modality_dropout, generator)
            contrast, weight = contrast + float(told.contrast) * len(batch.label), weight + len(batch.label)
        else:
            found.append(network(network.encoder.padded(tokens)).logits.cpu())
    return {"val_loss": contrast / weight} if trainee.learning.normal_only else judged_by(torch.cat(found), val.classes[kept])


def judged_by(logits: Tensor, kind: Tensor) -> dict[str, float]:
    """logits: (B, C); kind: (B,) int64, the classes. `val_f1_loss` is 1 - macro F1, where ties are told apart by the loss."""
    loss = float(functional.cross_entropy(logits.float(), kind))
    said = logits.argmax(1)
    f1 = float(macro_f1(class_counts(kind.numpy(), said.numpy(), logits.shape[1])))
    return {
        "val_loss": loss,
        "val_accuracy": float((said == kind).double().mean()),
        "val_macro_f1": f1,
        "val_f1_loss": 1 - f1 + 1e-6 * loss / (1 + loss),
    }


def thinned(present: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B, M) bool, what is left of `present`: each modality is taken away with probability `share`, but never all that a record has.

    generator: on the CPU, so that every device draws the same numbers.
    """
    luck = torch.rand(present.shape, generator=generator).to(present.device).masked_fill(~present, -1)
    luckiest = functional.one_hot(luck.argmax(1), present.shape[1]).bool()
    return present & ((luck >= share) | luckiest)


def side_by_side(views: Sequence[Mapping[str, Padded]]) -> dict[str, Padded]:
    """Views of B records each, one after another: V * B records, padded to the longest."""
    found = {}
    for name in views[0]:
        parts = [view[name] for view in views]
        length = max(part.mask.shape[1] for part in parts)
        grown = [_grown(part, length) for part in parts]
        found[name] = Padded(*(torch.cat(tensors) for tensors in zip(*grown, strict=True)))
    return found


def ragged(features: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Ragged]:
    """What `Source.take` took apart."""
    return {name: Ragged(*(features[f"{number}.{part}"] for part in Ragged._fields)) for number, name in enumerate(names)}


def _grown(part: Padded, length: int) -> Padded:
    short = length - part.mask.shape[1]
    if not short:
        return part
    return Padded(
        functional.pad(part.values, (0, 0, 0, short)), functional.pad(part.time, (0, short)), functional.pad(part.mask, (0, short))
    )


def _optimiser(learning: Learning) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """AdamW without decay of vectors, gradients clipped before each step."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices, vectors = ([one for one in parameters if (one.ndim > 1) is wanted] for wanted in (True, False))
        groups = [{"params": matrices, "weight_decay": learning.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        made = torch.optim.AdamW(groups, lr=learning.learning_rate, fused=True)

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)

        made.register_step_pre_hook(clip)
        return made

    return make


def _held(records: RecordSet) -> RecordSet:
    """In memory where that is little."""
    if isinstance(records, Records) or records.samples == 0:
        return records
    sample = next(batches(records, 64))
    size = sum(one.values.numel() * 4 for one in sample.tokens.values()) / sample.samples * records.samples
    return records.take(range(records.samples)) if size < IN_MEMORY else records
