"""Late fusion that learns whom to trust (stacked generalisation; Wolpert, Neural Networks 5, 1992): a logistic regression over what one logistic
regression for each modality says, and over which modalities are there.

The second level must not see how well the first one remembers: it learns from out-of-fold logits, each from models that were fitted without the record.
The folds are drawn by seed and balanced by label. Deviation: what belongs together (a shift, a patient) may be parted by the folds, as a detector is not
told of groups; where records of one group are much alike, the first level is trusted too much. The scale of the tokens is that of all of train.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.classical.logistic import ByModality, C, labelled, logistic
from stages.fusion.classical.pooled import Pool, Rows
from stages.fusion.detector import RecordDetector
from stages.training import Run
from stages.types import Refusal


class Stacking(RecordDetector):
    """folds: of the training records. spread: see `pooled`. c: penalties of the first level to choose from on val; second: that of the second level."""

    def __init__(self, *, folds: int = 5, spread: bool = False, c: tuple[float, ...] = C, second: float = 1.0) -> None:
        if folds < 2:
            raise ValueError(f"folds must be at least 2, got {folds}")
        super().__init__()
        self.folds, self.spread, self.c, self.second = folds, spread, c, second

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.pool = Pool(widths, self.spread)
        self.first = ByModality(self.pool.widths)
        self.register_buffer("weight", torch.zeros(2 * len(widths), dtype=torch.float64))
        self.register_buffer("bias", torch.zeros((), dtype=torch.float64))

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        rows = self.pool.learn(map(self.fitting, batches(train)))
        self.first.learn(rows, labelled(self.pool.rows(map(self.fitting, batches(val)))), dict.fromkeys(self.widths, self.c))
        said = self._out_of_fold(rows, run)
        line = logistic(said, rows.label, said[:0], rows.label[:0], [self.second])
        self.weight, self.bias = line.weight, line.bias

    def rate(self, records: Records) -> Tensor:
        return evidence(self.first, self.pool(records)) @ self.weight + self.bias

    def _out_of_fold(self, rows: Rows, run: Run) -> Tensor:
        """(N, 2M). The penalties are those chosen on all of train."""
        fewest = int(torch.bincount(rows.label.long(), minlength=2).min())
        if fewest < 2:
            raise Refusal("stacking needs at least 2 training records of each label, so that folds can leave one out")
        fold = balanced_folds(rows.label, min(self.folds, fewest), run.generator("folds"))
        chosen = {name: [self.first.chosen.get(name, self.c[0])] for name in self.widths}
        said = torch.empty(len(fold), 2 * len(self.widths), dtype=torch.float64)
        for number in fold.unique():
            level = ByModality(self.pool.widths)
            level.learn(rows.take(fold != number), rows.take(fold < 0), chosen)
            said[fold == number] = evidence(level, rows.take(fold == number))
        return said


def evidence(level: ByModality, rows: Rows) -> Tensor:
    """(B, 2M) float64: by how much each modality moves the logit away from the prior, 0 where it says nothing; then 1 where it says something."""
    speaks = level.speaks(rows)
    return torch.cat([level(rows) - level.prior, speaks.double()], dim=1)


def balanced_folds(label: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """(N,) int64, the fold of each record: sizes differ by at most one in each class."""
    fold = torch.empty(len(label), dtype=torch.int64)
    for one in (0, 1):
        places = (label == one).nonzero()[:, 0]
        fold[places[torch.randperm(len(places), generator=generator)]] = torch.arange(len(places)) % folds
    return fold
