"""One modality alone: logistic regression on its pooled tokens. The best of these rows is what fusion has to beat.

A record that lacks the modality gets the logit of the share of anomalies in train: the model knows that it does not know.
"""

from __future__ import annotations

from torch import Tensor

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.classical.logistic import ByModality, C, labelled
from stages.fusion.classical.pooled import Pool
from stages.fusion.detector import RecordDetector
from stages.training import Run
from stages.types import Refusal


class Unimodal(RecordDetector):
    """modality: its name. spread: see `pooled`. c: penalties to choose from on val."""

    drawn = False

    def __init__(self, *, modality: str, spread: bool = False, c: tuple[float, ...] = C) -> None:
        super().__init__()
        self.modality, self.spread, self.c = modality, spread, c

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        if self.modality not in widths:
            raise Refusal(f"the records have no modality {self.modality!r}; they have {', '.join(widths)}")
        self.pool = Pool({self.modality: widths[self.modality]}, self.spread)
        self.regression = ByModality(self.pool.widths)

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        rows = self.pool.learn(map(self.fitting, batches(train)))
        self.regression.learn(rows, labelled(self.pool.rows(map(self.fitting, batches(val)))), {self.modality: self.c})
        if not self.regression.known.all():
            raise Refusal(f"the {int(rows.present.sum())} training records that have {self.modality} are not of both labels")

    @property
    def nothing(self) -> float:
        return float(self.regression.prior)

    def rate(self, records: Records) -> Tensor:
        return self.regression(self.pool(records))[:, 0]
