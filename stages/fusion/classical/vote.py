"""Late fusion by a rule that an operator can follow: an alarm where any modality is over its own threshold, or only where all are.

Each modality has one logistic regression. Its threshold is the one that at most a chosen share of held-out normal records exceeds (`conformal` of the
metrics: the j-th largest of n, j = floor(rate * (n + 1)), at least 1), and its score is the distance from there in standard deviations of these records.
"Any" takes the greatest of the scores of those that are there, "all" the least: it is above 0 exactly where the rule alarms. A logistic regression of
one column turns that number into a logit without moving any order, so that a probability can be given; `alarms` tells the rule itself.

Under "any" false alarms add up over the modalities, under "all" a fault must show everywhere: both are weaker than a sum that weighs evidence, and are
here because they can be explained. Held-out records are those of val, and those of train where val has too few.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.classical.logistic import ByModality, C, labelled, logistic
from stages.fusion.classical.pooled import Pool, Rows
from stages.fusion.detector import RecordDetector
from stages.training import Run
from stages.types import Refusal

ENOUGH = 10  # held-out normal records that a threshold is taken from
GENTLEST = 1e-3  # the least that the logit rises with the number: the rule decides, and never backwards


class Vote(RecordDetector):
    """rule: "any" or "all". false_alarm_rate: of each modality by itself, in (0, 1). spread: see `pooled`. c: penalties to choose from on val."""

    drawn = False

    def __init__(
        self, *, rule: Literal["any", "all"] = "any", false_alarm_rate: float = 0.05, spread: bool = False, c: tuple[float, ...] = C
    ) -> None:
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate must be in (0, 1), got {false_alarm_rate}")
        super().__init__()
        self.rule, self.false_alarm_rate, self.spread, self.c = rule, false_alarm_rate, spread, c

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.pool = Pool(widths, self.spread)
        self.regressions = ByModality(self.pool.widths)
        self.register_buffer("threshold", torch.zeros(len(widths), dtype=torch.float64))
        self.register_buffer("deviation", torch.ones(len(widths), dtype=torch.float64))
        self.register_buffer("slope", torch.ones(1, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(1, dtype=torch.float64))

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        rows = self.pool.learn(map(self.fitting, batches(train)))
        held_out = labelled(self.pool.rows(map(self.fitting, batches(val))))
        self.regressions.learn(rows, held_out, dict.fromkeys(self.widths, self.c))
        if not self.regressions.known.any():
            raise Refusal("no modality has training records of both labels, so none can vote")
        for number in self.regressions.known.nonzero()[:, 0].tolist():
            own = self._normal(held_out, number)
            own = own if len(own) >= ENOUGH else self._normal(rows, number)
            self.threshold[number] = over(own, self.false_alarm_rate)
            self.deviation[number] = own.std(correction=0).clamp(min=1e-6)
        self._explain(held_out if len(held_out.label.unique()) == 2 else rows)

    @property
    def nothing(self) -> float:
        return float(self.regressions.prior)

    def rate(self, records: Records) -> Tensor:
        rows = self.pool(records)
        number, known = self._number(rows)
        return torch.where(known, number * self.slope + self.offset, self.regressions.prior)

    @torch.no_grad()
    def alarms(self, records: Records) -> Tensor:
        """(B,) bool: what the rule says. A record of which no modality says anything is no alarm."""
        number, known = self._number(self.pool(self.fitting(records)))
        return known & (number > 0)

    def _number(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """(B,) float64, above 0 where the rule alarms, and (B,) bool whether any modality says something."""
        speaks, scaled = self.regressions.speaks(rows), (self.regressions(rows) - self.threshold) / self.deviation
        silent = -math.inf if self.rule == "any" else math.inf
        heard = torch.where(speaks, scaled, silent)
        number = heard.amax(dim=1) if self.rule == "any" else heard.amin(dim=1)
        known = speaks.any(dim=1)
        return torch.where(known, number, 0.0), known

    def _normal(self, rows: Rows, number: int) -> Tensor:
        """The logits of one modality, of the normal records that have it."""
        return self.regressions(rows)[(rows.label == 0) & rows.present[:, number], number]

    def _explain(self, rows: Rows) -> None:
        number, known = self._number(rows)
        seen, label = number[known][:, None], rows.label[known]
        if len(label.unique()) == 2:
            line = logistic(seen, label, seen[:0], label[:0], [1.0])
            self.slope, self.offset = line.weight.clamp(min=GENTLEST), line.bias[None]


def over(normal: Tensor, rate: float) -> Tensor:
    """The threshold that at most the share `rate` of future normal scores exceeds, or the greatest of them. normal: (n,), n >= 1."""
    allowed = min(max(math.floor(rate * (len(normal) + 1) + 1e-9), 1), len(normal))
    return normal.sort(descending=True).values[allowed - 1]
