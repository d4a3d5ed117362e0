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
from stages.fusion.deep.maths.pretraining import labelled_share, pretrain
from stages.fusion.detector import Classified, RecordDetector, class_of
from stages.seed import derive

if TYPE_CHECKING:
    from stages.training import Run

NEIGHBOURS = 5
PRIMED = 300  # records that the clocks' envelopes are taken from
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
            self.bank = self._read_all(train)

    def rate(self, records: Records) -> Tensor:
        reading = self.read(records)
        score = log_odds(reading.logits) if self.supervised else distance(reading.unit, self.bank)
        return score.to(records.label.device)

    def tell(self, records: Records) -> Classified:
        reading = self.read(records)
        return Classified(reading.logits.to(records.label.device), reading.unit.to(records.label.device))

    @torch.no_grad()
    def classify(self, records: Records) -> Classified:
        if not self.telling:
            raise TypeError(
                f"{type(self).__name__} learns from normal records alone here (normal_only) and tells no classes; ask for its score"
            )
        return super().classify(records)

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
        encoder, chosen = network.encoder, self.learning
        encoder.standardise(self.fitting(part) for part in batches(train))
        if encoder.aligner is not None:
            some = self.fitting(train.take(range(min(train.samples, PRIMED)))).to(run.device)
            encoder.aligner.to(run.device).prime(some.tokens)
        source = self._source(train, encoder.names)
        if chosen.pretrain_epochs:
            pretrain(encoder, source, chosen.pretrain_epochs, run, f"{name}-pretraining")
        if chosen.labels < 1 and self.supervised:
            looked_at = labelled_share(source.classes, chosen.labels, run.generator("labels"))
            source = self._source(train.kept(looked_at), encoder.names)
        return train_network(network, source, self._source(judged, encoder.names), chosen, run, name)

    def _source(self, records: RecordSet, modalities: Sequence[str]) -> Source:
        kind = class_of(records, self.classes) if self.supervised else torch.zeros(records.samples, dtype=torch.int64)
        return Source(records, kind, modalities)

    @torch.no_grad()
    def _read_all(self, records: RecordSet) -> Tensor:
        """(N, F) unit features."""
        return torch.cat([self.read(self.fitting(part)).unit for part in batches(records)])


def distances_within(bank: Tensor) -> Tensor:
    """(N,) float64: the same for each of the bank, to the others; 0 where there is no other. bank: (N, F), of unit length."""
    if len(bank) < 2:
        return torch.zeros(len(bank), dtype=torch.float64, device=bank.device)
    alike = (bank @ bank.T).fill_diagonal_(-torch.inf)
    return 1 - alike.topk(min(NEIGHBOURS, len(bank) - 1), dim=1).values.double().mean(1)


def distance(features: Tensor, bank: Tensor) -> Tensor:
    """(B,): mean cosine distance to the nearest of the bank. features: (B, F), bank: (N, F), of unit length."""
    near = (features @ bank.T).topk(min(NEIGHBOURS, len(bank)), dim=1).values
    return 1 - near.mean(1)
