"""Early fusion at its plainest: the pooled modalities side by side, 0 where one is missing, and what is there as indicators, into a small network.

Two hidden layers with GELU and dropout; AdamW; the state with the least loss on val is kept. `modality_dropout` hides each modality of a training
record with that probability, never all of them (as in ModDrop; Neverova et al., TPAMI 38, 2016, arXiv:1501.00102, where a hidden modality is 0
as well), so that the network meets every subset before a user's machine shows it one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.classical.logistic import labelled
from stages.fusion.classical.pooled import Pool, Rows
from stages.fusion.detector import RecordDetector
from stages.training import Plan, Run
from stages.types import Batch


class ConcatMLP(RecordDetector):
    """hidden: width of both layers. spread: see `pooled`. patience: epochs without a lower loss on val."""

    def __init__(
        self,
        *,
        hidden: int = 128,
        dropout: float = 0.2,
        modality_dropout: float = 0.0,
        spread: bool = False,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.05,
        epochs: int = 100,
        batch_size: int = 32,
        patience: int = 15,
    ) -> None:
        if not 0 <= modality_dropout < 1:
            raise ValueError(f"modality_dropout must be in [0, 1), got {modality_dropout}")
        super().__init__()
        self.hidden, self.dropout, self.modality_dropout, self.spread = hidden, dropout, modality_dropout, spread
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.epochs, self.batch_size, self.patience = epochs, batch_size, patience

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.pool = Pool(widths, self.spread)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Linear(sum(self.pool.widths.values()) + len(widths), self.hidden),
                nn.GELU(),
                nn.Dropout(self.dropout),
                nn.Linear(self.hidden, self.hidden),
                nn.GELU(),
                nn.Dropout(self.dropout),
                nn.Linear(self.hidden, 1),
            )

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        rows = self.pool.learn(map(self.fitting, batches(train)))
        held_out = labelled(self.pool.rows(map(self.fitting, batches(val))))
        shares = list(self.pool.widths.values())

        def loss(batch: Batch, generator: torch.Generator) -> Tensor:
            kept = thinned(batch.features["present"], self.modality_dropout, generator)
            parts = batch.features["values"].split(shares, dim=1)
            values = torch.cat([part * there[:, None] for part, there in zip(parts, kept.T, strict=True)], dim=1)
            return binary_cross_entropy_with_logits(self._logit(values, kept), batch.features["label"])

        def measure() -> dict[str, float]:
            logit = self._logit(held_out.together.to(run.device), held_out.present.to(run.device))
            return {"val_loss": binary_cross_entropy_with_logits(logit.cpu(), held_out.label.float()).item()}

        plan = Plan(self._optimiser, self.epochs, self.batch_size)
        if len(held_out.label.unique()) == 2:  # with one label the best would be what says that label always
            plan = Plan(self._optimiser, self.epochs, self.batch_size, watch="val_loss", patience=self.patience)
        run.train(self, InMemory(rows), loss, plan, measure if plan.watch else None, name="network")

    def rate(self, records: Records) -> Tensor:
        rows = self.pool(records)
        return self._logit(rows.together, rows.present)

    def _logit(self, values: Tensor, present: Tensor) -> Tensor:
        return self.network(torch.cat([values, present.float()], dim=1))[:, 0]

    def _optimiser(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)


def thinned(present: Tensor, chance: float, generator: torch.Generator) -> Tensor:
    """(B, M) bool: each modality that is there is kept with probability 1 - chance, and where none would be, one of them, drawn evenly."""
    drawn = torch.rand(present.shape, generator=generator).to(present.device).masked_fill(~present, -1)
    luckiest = nn.functional.one_hot(drawn.argmax(dim=1), present.shape[1]).bool()
    return present & ((drawn >= chance) | luckiest & present)


class InMemory:
    """Rows as the training loop takes them."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.samples = rows, len(rows.label)
        self.values = rows.together

    def take(self, positions: list[int]) -> Batch:
        label = self.rows.label[positions]
        features = {"values": self.values[positions], "present": self.rows.present[positions], "label": label.float()}
        return Batch(features, label.long(), None, [], [])
