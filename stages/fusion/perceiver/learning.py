"""What the Perceiver learns by: its losses, modality dropout with a start where nothing is dropped, a running mean of its weights, and what it is kept for.

Deviations from multi-modal practice that matter: modalities are dropped per record and never all; the running mean (Polyak) starts with a short memory that
grows, min(ema, (1 + t) / (10 + t)) after t steps, so that a run of a few hundred steps is not a mean of its start; the state that is kept is the mean's with
the best AUROC on validation records, ties (small sets have many) going to the lower cross-entropy.

B records, M modalities.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.datasets.records import Ragged, Records, RecordSet, batches
from stages.fusion.perceiver.experts import balance_loss, z_loss
from stages.fusion.perceiver.tokens import dropped, without
from stages.fusion.perceiver.trunk import Network, Reading
from stages.metrics.ranking import auroc
from stages.types import Batch

CLIP_NORM = 1.0
WARMUP = 0.05  # share of the steps over which the learning rate rises
HEAVIEST = 10.0  # the most that an anomalous record counts
IN_MEMORY = 512 * 2**20  # bytes of records that are held in memory while they are learnt from
TERMS = ("loss", "cross_entropy", "balance", "z", "unimodal", "consistency")


class Objective(NamedTuple):
    """Weights of the losses and the share of modalities dropped, named as the detector's options are."""

    balance: float = 0.01
    z: float = 0.001
    auxiliary: float = 0.3
    consistency: float = 0.0
    modality_dropout: float = 0.3
    curriculum: float = 0.1  # share of the steps before modalities are dropped


class Source:
    """Records as the training loop takes them: batches of ragged tensors, "<number>.<part>" for each modality, and the label."""

    def __init__(self, records: RecordSet) -> None:
        self.records, self.samples = _held(records), records.samples

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, 256):
            yield self.take(list(range(start, min(start + 256, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        taken = self.records.take(positions)
        features = {f"{number}.{part}": tensor for number, one in enumerate(taken.tokens.values()) for part, tensor in one._asdict().items()}
        return Batch({**features, "label": taken.label.float()}, taken.label.long(), None, taken.record_id, [""] * len(positions))


class Trainee(nn.Module):
    """The network that descends, the running mean of its weights that is kept, and how far they are; one state for the training loop to save."""

    def __init__(self, kept: Network, ema: float, objective: Objective, total: int, log_weight: float) -> None:
        super().__init__()
        self.live, self.kept = copy.deepcopy(kept), kept.requires_grad_(False)
        self.ema, self.objective, self.total, self.log_weight = ema, objective, total, log_weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(len(TERMS), dtype=torch.float64))
        self.register_buffer("summed", torch.zeros((), dtype=torch.int64))

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        tokens = ragged(batch.features, self.live.tokeniser.names)
        seen = tokens
        if self.objective.modality_dropout and int(self.steps) >= self.objective.curriculum * self.total:
            present = torch.stack([one.lengths > 0 for one in tokens.values()], 1)
            gone = dropped(present.cpu(), self.objective.modality_dropout, generator).to(present.device)
            seen = {name: without(one, gone[:, number]) for number, (name, one) in enumerate(tokens.items())}
        terms = self.terms(self.live(seen), batch.features["label"])
        if self.objective.consistency and seen is not tokens:
            terms["consistency"] = consistency(self._full_view(tokens), terms["logit"])
        weights = {"cross_entropy": 1.0, "balance": self.objective.balance, "z": self.objective.z, "unimodal": self.objective.auxiliary}
        loss = sum(weight * terms[name] for name, weight in {**weights, "consistency": self.objective.consistency}.items())
        self._remember(loss, terms)
        return loss

    def terms(self, reading: Reading, label: Tensor) -> dict[str, Tensor]:
        """The losses by name, and the logit. label: (B,) float."""
        zero = reading.logit.new_zeros(())
        heavy = reading.logit.new_tensor(math.exp(self.log_weight))
        alone = functional.binary_cross_entropy_with_logits(reading.unimodal, label[:, None].expand_as(reading.unimodal), reduction="none", pos_weight=heavy)
        unimodal = (alone * reading.present).sum(1) / reading.present.sum(1).clamp(min=1)
        return {
            "logit": reading.logit,
            "cross_entropy": functional.binary_cross_entropy_with_logits(reading.logit, label, pos_weight=heavy),
            "balance": torch.stack([balance_loss(one) for one in reading.routings]).mean() if reading.routings else zero,
            "z": torch.stack([z_loss(one) for one in reading.routings]).mean() if reading.routings else zero,
            "unimodal": unimodal.mean(),
            "consistency": zero,
        }

    @torch.no_grad()
    def follow(self) -> None:
        """Move the running mean after a step of the optimiser."""
        count = int(self.steps)
        self.steps += 1
        decay = min(self.ema, (1 + count) / (10 + count)) if self.ema else 0.0
        kept, live = list(self.kept.parameters()), list(self.live.parameters())
        torch._foreach_lerp_(kept, live, 1 - decay)

    def spent(self) -> dict[str, float]:
        """The mean of each loss since this was last asked."""
        means = (self.sums / self.summed.clamp(min=1)).tolist()
        self.sums.zero_()
        self.summed.zero_()
        return {f"train_{name}": value for name, value in zip(TERMS, means) if name != "loss"}

    @torch.no_grad()
    def _full_view(self, tokens: Mapping[str, Ragged]) -> Tensor:
        return self.live(tokens).logit

    def _remember(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        self.sums += torch.stack([loss.detach(), *(terms[name].detach() for name in TERMS[1:])]).double()
        self.summed += 1


def consistency(full: Tensor, seen: Tensor) -> Tensor:
    """Mean KL divergence from the verdict on the full view to that on what was left of it; (B,) logits each."""
    odds = full.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(full, odds)
    return functional.binary_cross_entropy_with_logits(seen, odds) - entropy


def optimiser(trainee: Trainee, learning_rate: float, weight_decay: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """AdamW without decay of biases and vectors, gradients clipped before each step and the running mean moved after it."""

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        biases = {id(one) for name, one in trainee.live.named_parameters() if name.endswith("bias")}  # those of experts have three axes
        matrices, others = ([one for one in parameters if (one.ndim > 1 and id(one) not in biases) is wanted] for wanted in (True, False))
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        made = torch.optim.AdamW(groups, lr=learning_rate, fused=True)

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(parameters, CLIP_NORM)

        made.register_step_pre_hook(clip)
        made.register_step_post_hook(lambda *_: trainee.follow())
        return made

    return make


def cosine(step: int, total: int) -> float:
    return min((step + 1) / max(WARMUP * total, 1), (1 + math.cos(math.pi * step / total)) / 2)


def log_weight(label: Tensor) -> float:
    """The logarithm of how much an anomalous record counts: normal ones per anomalous one, at most HEAVIEST."""
    return math.log(min(float((label == 0).sum()) / float((label == 1).sum()), HEAVIEST))


def ragged(features: Mapping[str, Tensor], names: list[str]) -> dict[str, Ragged]:
    """What `Source.take` took apart."""
    return {name: Ragged(*(features[f"{number}.{part}"] for part in Ragged._fields)) for number, name in enumerate(names)}


def judged(score: Tensor, label: Tensor) -> dict[str, float]:
    """`val_auroc`, `val_cross_entropy`, and `val_rank_loss`: 1 - AUROC, where ties are told apart by the cross-entropy.

    score: (B,) logits; label: (B,). Without both labels there is only the cross-entropy.
    """
    entropy = float(functional.binary_cross_entropy_with_logits(score.float(), label.float()))
    if len(label.unique()) < 2:
        return {"val_cross_entropy": entropy}
    area = auroc(score.double().cpu().numpy(), label.cpu().numpy())
    step = 1 / (2 * int((label == 0).sum()) * int((label == 1).sum()))  # the least that two AUROCs differ by
    return {"val_auroc": area, "val_cross_entropy": entropy, "val_rank_loss": 1 - area + step * entropy / (1 + entropy)}


def _held(records: RecordSet) -> Any:
    """In memory where that is little."""
    if isinstance(records, Records) or records.samples == 0:
        return records
    sample = next(batches(records, 64))
    size = sum(one.values.numel() * 4 for one in sample.tokens.values()) / sample.samples * records.samples
    return records.take(range(records.samples)) if size < IN_MEMORY else records
