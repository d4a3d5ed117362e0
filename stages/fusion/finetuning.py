"""Train the weld model end to end from raw media: the fusion network, and of the encoders nothing, low-rank adapters, or the last layers.

The loss, the batches and what is measured are those of detectors that learn from stored tokens (deep/maths/learning.py); here tokens are made anew in each
step where something of an encoder learns, and once where nothing does. The two views of a record share its tokens and differ by what modality dropout takes
away, by dropout and by `learning.augment`. Variants that are fitted with one seed draw the same batches and the same views.

Deviations: an encoder is run once for both views, not twice; media themselves are not augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.datasets.records import Records, batches
from stages.errors import UserError
from stages.fusion.deep.maths.heads import log_odds, shift
from stages.fusion.deep.maths.learning import CLIP_NORM, Learning, Source, Trainee, judge
from stages.fusion.deep.maths.sampler import balanced
from stages.fusion.deep.maths.sota_model import SPELT, QuadModalSOTAModel
from stages.fusion.raw_media import MediaSource, encoded, extracted
from stages.seed import derive
from stages.training import Plan, Run
from stages.types import Batch

if TYPE_CHECKING:
    from stages.types import Batches

NAMES = list(SPELT)
SLOWER = 0.01  # rate of a backbone's own layers, as a share of that of the head: 1e-6 to 1e-4, as `QuadModalSOTAModel.parameter_groups` has it
UNFIT = {"pretrain_epochs": 0, "labels": 1.0, "normal_only": False}  # what the learning must be here; the rest is as of stored tokens


class CannotLearn(UserError, ValueError):
    """Settings, or records, that raw media cannot be learnt from with."""


class FineTuner(Trainee):
    """What learns of a model, as one state for the training loop to save; what is frozen is no part of that state."""

    def __init__(self, model: QuadModalSOTAModel, learning: Learning, total: int, seed: int = 0) -> None:
        super().__init__(model.network, learning, total, seed)
        self.whole = (model,)  # in a tuple it is no module of this one
        self.layers = nn.ParameterList(one for one in model.encoders.parameters() if one.requires_grad)

    def train(self, mode: bool = True) -> FineTuner:
        super().train(mode)
        self.whole[0].encoders.train(mode)
        return self

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """batch: of a `MediaSource`, or of stored tokens."""
        if "media.video" in batch.features:
            tokens = encoded(self.whole[0], batch.features)
            parts = {f"{number}.{part}": one for number, name in enumerate(NAMES) for part, one in tokens[name]._asdict().items()}
            batch = batch._replace(features={**parts, "class": batch.features["class"]})
        return super().loss(batch, generator)


def learns(model: QuadModalSOTAModel) -> bool:
    """Whether anything of an encoder does."""
    return any(one.requires_grad for one in model.encoders.parameters())


def check(learning: Learning, encoding_aligns: bool) -> None:
    """Raises CannotLearn for settings that only stored tokens can be learnt from with."""
    for name, value in UNFIT.items():
        if getattr(learning, name) != value:
            raise CannotLearn(f"learning.{name} must be {value} where raw media are learnt from, got {getattr(learning, name)}. Choose another row by --model")
    if encoding_aligns:
        raise CannotLearn("encoding.align is for stored tokens. Choose a row without it by --model")


def fit(model: QuadModalSOTAModel, train: MediaSource, val: MediaSource, learning: Learning, run: Run, start: tuple[Records, Records], name: str) -> int:
    """Train a model in place; returns after how many steps the kept state was reached.

    start: the tokens of train and val as the encoders make them before anything is learnt; where nothing of the encoders learns they are all that is looked at.
    """
    model.to(run.device)
    network = model.network
    network.encoder.standardise(batches(start[0]))
    network.heads.shift.copy_(shift(train.classes, network.heads.shift.numel(), learning.balanced))
    trainee = FineTuner(model, learning, learning.total(train.samples), derive(run.seed, name, "reconstruction"))
    moving = learns(model)
    source: Batches = train if moving else Source(start[0], train.classes, NAMES)
    still = Source(start[1], val.classes, NAMES)

    def measure() -> dict[str, float]:
        known = Source(extracted(model, val, run.device), val.classes, NAMES) if moving else still
        return trainee.spent() | judge(trainee, known, run)

    return run.train(trainee, source, trainee.loss, plan(model, learning, train.classes), measure, name=name)


def plan(model: QuadModalSOTAModel, learning: Learning, classes: Tensor) -> Plan:
    watch = {"loss": "val_loss", "macro_f1": "val_f1_loss"}[learning.watch]
    return Plan(
        optimiser(model, learning), learning.epochs, learning.batch, learning.steps, schedule=learning.rate, watch=watch, patience=learning.patience,
        order=balanced(classes, *learning.cell) if learning.balanced else None,
        plateau=learning.plateau if learning.schedule == "plateau" else None,
        mixed_precision=learning.mixed_precision,
    )  # fmt: skip


def optimiser(model: QuadModalSOTAModel, learning: Learning) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """As that of stored tokens (AdamW without decay of vectors, gradients clipped), with the rates of `parameter_groups`."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        rates = {id(one): group["lr"] for group in model.parameter_groups(learning.learning_rate, SLOWER * learning.learning_rate) for one in group["params"]}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for one in parameters:
            rate = rates.get(id(one), learning.learning_rate)  # what is no part of the model (a second task) learns as the head does
            groups.setdefault((rate, learning.weight_decay if one.ndim > 1 else 0.0), []).append(one)
        made = torch.optim.AdamW([{"params": part, "lr": rate, "weight_decay": decay} for (rate, decay), part in groups.items()], fused=True)

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)

        made.register_step_pre_hook(clip)
        return made

    return make


@torch.no_grad()
def answers(model: QuadModalSOTAModel, records: Records) -> tuple[Tensor, Tensor]:
    """(B,) scores, log odds of any fault, and (B, C) logits, on the CPU. records: as `extracted` gives them."""
    model.eval()
    logits = torch.cat(list(_logits(model, records)))
    return log_odds(logits), logits


def _logits(model: QuadModalSOTAModel, records: Records) -> Iterator[Tensor]:
    network = model.network
    place = network.heads.shift.device
    for part in batches(records):
        yield network(network.encoder.padded(part.to(place).tokens)).logits.cpu()
