"""What all deep detectors share: a network whose fusion each of them brings, how it is trained, and what is read off it.

Supervised, it tells the classes that it learnt from, and its score is the log odds of any fault, at the shares of the training records. With
`learning.normal_only` it learns from good records alone, tells nothing, and its score is the mean cosine distance to the five nearest of them.

B records, N records learnt from, M modalities, C classes, F features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.datasets.records import Records, RecordSet, batches
from stages.fusion.deep.maths.encoder import Encoding
from stages.fusion.deep.maths.heads import log_odds
from stages.fusion.deep.maths.learning import Learning, Source, train_network
from stages.fusion.deep.maths.network import Network, Reading
from stages.fusion.detector import Classified, RecordDetector, class_of
from stages.seed import derive
from stages.types import NotFitted

if TYPE_CHECKING:
    from stages.training import Run

NEIGHBOURS = 5
ENCODING, LEARNING = Encoding(), Learning()


class DeepDetector(RecordDetector, ABC):
    """encoding: sizes of what stands before the fusion. features: F. learning: the budget and the loss."""

    telling = True

    def __init__(self, *, encoding: Encoding = ENCODING, features: int = 512, learning: Learning = LEARNING) -> None:
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        super().__init__()
        self.encoding, self.features, self.learning = encoding, features, learning
        self.supervised = self.telling = not learning.normal_only
        self.network: Network | None = None
        self.register_buffer("bank", torch.empty(0))  # (N, F) of unit length: features of good records, where only they are learnt from

    @abstractmethod
    def fusion(self, modalities: Sequence[str]) -> nn.Module:
        """The layers from `Encoded`, of width `encoding.width`, to `Fused`, of width `features`."""

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.network = self.drawn_network(widths, seed, "network")

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        self.to(run.device)
        self.train_one(self.network, train, val, run, "network")
        if not self.supervised:
            self.bank = self._read_all(train).cpu().to(run.device)

    def rate(self, records: Records) -> Tensor:
        reading = self.read(records)
        score = log_odds(reading.logits) if self.supervised else distance(reading.unit, self.bank)
        return score.to(records.label.device)

    def tell(self, records: Records) -> Classified:
        if not self.telling:
            raise NotFitted(f"{type(self).__name__} learnt from normal records alone and tells no classes; its score is all that it gives")
        reading = self.read(records)
        return Classified(reading.logits.to(records.label.device), reading.unit.to(records.label.device))

    def forward(self, records: Records) -> Reading:
        """Everything that the network makes of these records, on its own device, with a gradient. Raises WrongRecords as `score` does."""
        return self.read(self.fitting(records))

    def read(self, records: Records) -> Reading:
        """Records as `fitting` gives them."""
        tokens = records.to(self.bank.device).tokens
        return self.network(self.network.encoder.padded(tokens))

    def drawn_network(self, widths: dict[str, int], seed: int, name: str) -> Network:
        """A network for these modalities as drawn by the seed, whatever their order."""
        classes = max(len(self.classes), 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, name))
            made = Network(widths, self.encoding, self.fusion(list(widths)), self.features, classes)
        return made.to(self.bank.device).eval()

    def train_one(self, network: Network, train: RecordSet, val: RecordSet, run: Run, name: str) -> int:
        """Train a network of this detector; returns after how many steps the kept state was reached."""
        known = (val.label == 0) if self.learning.normal_only else (val.label >= 0)
        judged = val.kept(known.nonzero()[:, 0].tolist())
        network.encoder.standardise(self.fitting(part) for part in batches(train))
        return train_network(network, self._source(train), self._source(judged), self.learning, run, name)

    def _source(self, records: RecordSet) -> Source:
        kind = class_of(records, self.classes) if self.supervised else torch.zeros(records.samples, dtype=torch.int64)
        return Source(records, kind, list(self.widths))

    @torch.no_grad()
    def _read_all(self, records: RecordSet) -> Tensor:
        """(N, F) unit features."""
        return torch.cat([self.read(self.fitting(part)).unit for part in batches(records)])


def distance(features: Tensor, bank: Tensor) -> Tensor:
    """(B,): mean cosine distance to the nearest of the bank. features: (B, F), bank: (N, F), of unit length."""
    near = (features @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1).values
    return 1 - near.mean(1)
