"""Logistic regression: fitted by scikit-learn, kept as a weight and a bias, scored by one product.

The penalty is the one of several with the least negative log-likelihood on val. Cross-validation inside train would need to know which training records
belong together; val is apart from train by construction. The bias is not penalised and classes are not re-weighted, so that probabilities stay honest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stages.fusion.classical.pooled import Rows
from stages.types import Resizing

C = (0.0001, 0.001, 0.01, 0.1, 1.0)  # of standardised embeddings of some hundreds of columns; larger is a weaker penalty


class Line(NamedTuple):
    """A linear model of the logit."""

    weight: Tensor  # (D,) float64
    bias: Tensor  # () float64
    c: float  # the penalty that was chosen

    def logit(self, values: Tensor) -> Tensor:
        """(B, D) to (B,) float64."""
        return values.double() @ self.weight + self.bias


def logistic(values: Tensor, label: Tensor, val_values: Tensor, val_label: Tensor, c: Sequence[float] = C) -> Line:
    """values: (N, D) of both classes, label: (N,) 0 or 1. Where val does not hold both classes, the middle one of `c` is taken."""
    if len(c) > 1 and len(val_label.unique()) < 2:
        c = [sorted(c)[len(c) // 2]]
    lines = [_fitted(values, label, one) for one in c]
    if len(lines) == 1:
        return lines[0]
    return min(lines, key=lambda line: binary_cross_entropy_with_logits(line.logit(val_values), val_label.double()).item())


def _fitted(values: Tensor, label: Tensor, c: float) -> Line:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=5000, tol=1e-6).fit(values.double().numpy(), label.numpy())
    return Line(torch.from_numpy(model.coef_[0].copy()), torch.tensor(float(model.intercept_[0]), dtype=torch.float64), c)


def prior(label: Tensor) -> float:
    """The logit of the share that is anomalous; label: (N,) of both classes."""
    anomalous = int((label == 1).sum())
    return math.log(anomalous / (len(label) - anomalous))


class ByModality(Resizing):
    """One logistic regression for each modality, fitted on the records that have it. Where they are all of one label there is none."""

    def __init__(self, widths: dict[str, int]) -> None:
        super().__init__()
        self.widths = dict(widths)
        self.chosen: dict[str, float] = {}  # by modality the penalty; of a fit, not of the model
        self.register_buffer("weight", torch.zeros(sum(widths.values()), dtype=torch.float64))
        self.register_buffer("bias", torch.zeros(len(widths), dtype=torch.float64))
        self.register_buffer("known", torch.zeros(len(widths), dtype=torch.bool))
        self.register_buffer("prior", torch.zeros(1, dtype=torch.float64))

    def learn(self, train: Rows, val: Rows, c: dict[str, Sequence[float]]) -> None:
        """c: by modality the penalties to choose from. val: labelled."""
        self.prior = torch.tensor([prior(train.label)], dtype=torch.float64)
        for number, (name, part) in enumerate(zip(self.widths, self.weight.split(list(self.widths.values())), strict=True)):
            seen, held_out = train.take(train.present[:, number]), val.take(val.present[:, number])
            self.known[number] = len(seen.label.unique()) == 2
            if self.known[number]:
                line = logistic(seen.parts[name], seen.label, held_out.parts[name], held_out.label, c[name])
                part.copy_(line.weight)  # a view of self.weight
                self.bias[number], self.chosen[name] = line.bias, line.c

    def speaks(self, rows: Rows) -> Tensor:
        """(B, M) bool: the modality is there and has a model."""
        return rows.present & self.known

    def forward(self, rows: Rows) -> Tensor:
        """(B, M) float64 logits; that of the share of anomalies on train where a modality says nothing."""
        weights = self.weight.split(list(self.widths.values()))
        logits = torch.stack([part.double() @ weight for part, weight in zip(rows.parts.values(), weights, strict=True)], dim=1) + self.bias
        return torch.where(self.speaks(rows), logits, self.prior)


def labelled(rows: Rows) -> Rows:
    """Those that somebody judged."""
    return rows.take(rows.label >= 0)
