"""Perceiver with a mixture of experts: a few latents read whatever tokens a record has, and experts chosen by what is present weigh them up to one logit.

The parts are in perceiver/: tokens.py, trunk.py, experts.py, learning.py; their heads name the papers (Perceiver IO arXiv:2107.14795, top-k gates 1701.06538,
Switch 2101.03961, ST-MoE 2202.08906, FuseMoE 2402.03226) and every deviation. docs/perceiver_moe.md has the shapes and what was measured.

Deviation in the score: anomalous records count more while it learns (`pos_weight`); the logarithm of that weight is taken off the logit afterwards, so that
it is the logit of the probability at the share of anomalies that was learnt from.

B records, M modalities, N latents, E experts, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.detector import RecordDetector
from stages.fusion.perceiver import learning, usage
from stages.fusion.perceiver.experts import Gate
from stages.fusion.perceiver.trunk import Network, Shape
from stages.seed import derive

if TYPE_CHECKING:
    from stages.training import Run

RECOMMENDED = 256  # the width of embeddings below which training says so


class PerceiverMoEOutput(NamedTuple):
    logits: Tensor  # (B,) of the probability of being anomalous
    probs: Tensor  # (B,)
    score: Tensor  # (B,) what `score` gives: the logits
    gates: Tensor  # (layers, B, N, E), sum to 1 over E; E is 0 where the feed-forward layer is dense
    modality_attention: Tensor  # (B, M) share of attention, rows sum to 1; what goes to the sign of an absent modality counts for it
    latents: Tensor  # (B, N, D)


class PerceiverMoE(RecordDetector):
    """width, latents, heads, blocks, experts, top_k, hidden (of one expert), max_tokens (of one modality): the sizes.

    ffn: "dense" has one layer with as many parameters as the experts have together (match "total") or as are used for one latent (match "active").
    routing: "uniform" gives every expert the same weight. gate: how the router's logits become weights. share_weights: all blocks but the first are one.
    balance, z, auxiliary, consistency: weights of the losses; auxiliary is that of each modality alone. modality_dropout: probability that a modality is
    taken away while learning, after the share `curriculum` of the steps. epochs, steps: whichever ends first. patience: epochs without a better validation
    AUROC before it stops; None never. ema: memory of the running mean of the weights; 0 for none.
    """

    def __init__(
        self,
        *,
        width: int = 256,
        latents: int = 32,
        heads: int = 4,
        blocks: int = 3,
        experts: int = 4,
        top_k: int = 2,
        hidden: int = 512,
        max_tokens: int = 256,
        ffn: Literal["moe", "dense"] = "moe",
        match: Literal["active", "total"] = "total",
        routing: Literal["learned", "uniform"] = "learned",
        gate: Gate = "softmax",
        share_weights: bool = False,
        dropout: float = 0.1,
        modality_dropout: float = 0.3,
        curriculum: float = 0.1,
        balance: float = 0.01,
        z: float = 0.001,
        auxiliary: float = 0.3,
        consistency: float = 0.0,
        learning_rate: float = 3e-4,
        weight_decay: float = 0.05,
        epochs: int = 50,
        steps: int | None = None,
        batch_size: int = 8,
        ema: float = 0.999,
        patience: int | None = 10,
    ) -> None:
        super().__init__()
        self.shape = Shape(
            width=width, latents=latents, heads=heads, blocks=blocks, experts=experts, top_k=top_k, hidden=hidden, max_tokens=max_tokens, ffn=ffn,
            match=match, routing=routing, gate=gate, share_weights=share_weights, dropout=dropout,
        )  # fmt: skip
        self.shape.check()
        for name, value in {"modality_dropout": modality_dropout, "curriculum": curriculum, "ema": ema, "dropout": dropout}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in 0..1, 1 left out, got {value}")
        self.objective = learning.Objective(balance, z, auxiliary, consistency, modality_dropout, curriculum)
        self.learning_rate, self.weight_decay, self.ema, self.patience = learning_rate, weight_decay, ema, patience
        self.epochs, self.step_limit, self.batch_size = epochs, steps, batch_size
        self.network: Network | None = None
        self.register_buffer("log_weight", torch.zeros(()))  # of an anomalous record in training

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "network"))
            self.network = Network(widths, self.shape).to(self.log_weight.device)

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        narrow = [f"{name} {width}" for name, width in self.widths.items() if width < RECOMMENDED]
        if narrow:
            run.say(f"embeddings narrower than {RECOMMENDED}, which is what is recommended: {', '.join(narrow)}")
        source = learning.Source(train)
        self.network.tokeniser.standardise(batches(source.records))
        self.log_weight.fill_(learning.log_weight(train.label))
        self.to(run.device)
        self._train(source, _labelled(val), run)
        self.network.requires_grad_(True)

    def rate(self, records: Records) -> Tensor:
        return self._read(records).logits

    def forward(self, records: Records) -> PerceiverMoEOutput:
        """Everything that is known of these records, on their own device. Raises WrongRecords as `score` does."""
        return self._read(self.fitting(records))

    def _read(self, records: Records) -> PerceiverMoEOutput:
        given = records.label.device
        reading = self.network(records.to(self.log_weight.device).tokens)
        logits = (reading.logit - self.log_weight).to(given)
        rest = (one.to(given) for one in (reading.gates, reading.attention, reading.latents))
        return PerceiverMoEOutput(logits, logits.sigmoid(), logits, *rest)

    @torch.no_grad()
    def experts_usage(self, records: RecordSet) -> dict[str, Any]:
        """How the experts are used over these records; see `usage.summary`. Where nothing is routed there are no layers to tell of."""
        if self.shape.ffn == "dense" or self.shape.routing == "uniform":
            return {"experts": 0 if self.shape.ffn == "dense" else self.shape.experts, "layers": []}
        gates, present = [], []
        for part in batches(records):
            fitted = self.fitting(part)
            gates.append(self._read(fitted).gates)
            present.append(fitted.present)
        return usage.summary(torch.cat(gates, 1), torch.cat(present), list(self.widths), records.label)

    def _train(self, source: learning.Source, val: Records | None, run: Run) -> None:
        from stages.training import Plan

        per_epoch = math.ceil(source.samples / self.batch_size)
        total = min(self.epochs * per_epoch, self.step_limit or math.inf)
        trainee = learning.Trainee(self.network, self.ema, self.objective, total, float(self.log_weight))
        watch = "val_rank_loss" if val is not None and len(val.label.unique()) == 2 else None
        if watch is None:
            run.say("no validation records of both kinds: the last state is kept")
        plan = Plan(
            learning.optimiser(trainee, self.learning_rate, self.weight_decay), self.epochs, self.batch_size, self.step_limit,
            schedule=learning.cosine, watch=watch, patience=self.patience if watch else None,
        )  # fmt: skip
        run.train(trainee, source, trainee.loss, plan, self._measure(trainee, val), name="network")

    def _measure(self, trainee: learning.Trainee, val: Records | None) -> Callable[[], Mapping[str, float]]:
        def measure() -> dict[str, float]:
            row = trainee.spent()
            if val is not None:
                row |= learning.judged(torch.cat([self.rate(self.fitting(part)) for part in batches(val)]), val.label)
            return row

        return measure


def _labelled(val: RecordSet) -> Records | None:
    """The records of validation that somebody judged, in memory; None where there are none."""
    known = (val.label >= 0).nonzero()[:, 0].tolist()
    return val.take(known) if known else None
