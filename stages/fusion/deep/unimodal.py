"""One modality alone, with the same encoding, heads, loss and budget as the fusions: the best of these rows is what fusion has to beat.

It learns from the records that have the modality. Of one that lacks it the classes are as likely as in the training records: the model knows that it does
not know. Learnt from normal records alone, it gives such a one the mean distance of these from each other.

B records, C classes, W width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.datasets.records import Records, RecordSet
from stages.fusion.deep.maths.alone import Alone, having
from stages.fusion.deep.maths.detector import ENCODING, LEARNING, DeepDetector, distances_within
from stages.fusion.deep.maths.encoder import Encoding
from stages.fusion.deep.maths.heads import log_odds, log_shares
from stages.fusion.deep.maths.learning import Learning
from stages.fusion.detector import Classified, class_of
from stages.training import Run
from stages.types import Refusal


class UnimodalNetwork(DeepDetector):
    """modality: its name; may be left out where the records show one alone."""

    def __init__(
        self, *, modality: str | None = None, encoding: Encoding = ENCODING, features: int = 512, learning: Learning = LEARNING
    ) -> None:
        super().__init__(encoding=encoding, features=features, learning=learning)
        self.modality = modality
        self.register_buffer("prior", torch.empty(0))  # (C,) logits of a record of which nothing is known

    def fusion(self, modalities: Sequence[str]) -> nn.Module:
        return Alone(self.encoding.width, self.features, self.encoding.dropout)

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        if self.modality is None and len(widths) > 1:
            raise Refusal(f"the records show {', '.join(widths)}; name one by `modality`, or show one alone by `modalities`")
        self.shown = self.modality or next(iter(widths))
        if self.shown not in widths:
            raise Refusal(f"the records have no modality {self.shown!r}; they have {', '.join(widths)}")
        self.network = self.drawn_network({self.shown: widths[self.shown]}, seed, "network")

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        self.prior = log_shares(class_of(train, self.classes), len(self.classes)) if self.telling else torch.zeros(1)
        own = having(train, self.shown)
        if self.supervised and len(own.label.unique()) < 2:
            raise Refusal(f"the {own.samples} training records that have {self.shown} are not of both labels")
        super().learn(own, having(val, self.shown), run)

    @property
    def nothing(self) -> float | None:
        return float(log_odds(self.prior[None])) if self.supervised and len(self.prior) else None

    def rate(self, records: Records) -> Tensor:
        there = self._there(records)
        if self.supervised:
            return log_odds(self.tell(records).logits)
        usual = distances_within(self.bank).mean().float()
        return torch.where(there, super().rate(records), usual.to(there.device))

    def tell(self, records: Records) -> Classified:
        told, there = super().tell(records), self._there(records)[:, None]
        return Classified(torch.where(there, told.logits, self.prior.to(there.device)), told.features)

    def _there(self, records: Records) -> Tensor:
        return records.tokens[self.shown].lengths > 0
