"""Late fusion: one network for each modality, each trained by itself, and a convex combination of what they say.

Each network's log odds are divided by a temperature (Guo et al., arXiv:1706.04599) and combined by weights of a grid of .05, both chosen on validation
records: the highest AUROC, then the least negative log-likelihood. Of a record that lacks a modality the other weights are scaled up. Without validation
records of both labels, temperatures are 1 and all count alike. The classes are combined by the same weights.

From normal records alone (`normal_only`) each network's distance is in deviations of the distances of the training records among each other, and all count
alike, as weights would need labels.

B records, N records learnt from, M modalities, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.datasets.records import Records, RecordSet, batches, key
from stages.fusion.deep.maths.alone import Alone, having
from stages.fusion.deep.maths.detector import DeepDetector, distance, distances_within
from stages.fusion.deep.maths.heads import log_odds
from stages.fusion.deep.maths.network import Reading
from stages.fusion.deep.maths.simplex import best, shares, weighted
from stages.fusion.detector import Classified
from stages.metrics.calibration import temperature
from stages.training import Run
from stages.types import Refusal, Resizing


class LateFusion(DeepDetector):
    def fusion(self, modalities: Sequence[str]) -> nn.Module:
        return Alone(self.encoding.width, self.features, self.encoding.dropout)

    def prepare(self, widths: dict[str, int], seed: int) -> None:
        self.members = nn.ModuleDict({key(name): Member(self.drawn_network({name: size}, seed, name)) for name, size in widths.items()})
        self.register_buffer("weight", torch.full((len(widths),), 1 / len(widths), dtype=torch.float64))
        self.members.to(self.bank.device)

    def learn(self, train: RecordSet, val: RecordSet, run: Run) -> None:
        self.to(run.device)
        for name in self.widths:
            network, own = self.members[key(name)].network, having(train, name)
            if self.supervised and len(own.label.unique()) < 2:
                raise Refusal(f"the {own.samples} training records that have {name} are not of both labels")
            self.train_one(network, own, having(val, name), run, key(name))
            if not self.supervised:
                self.members[key(name)].remember(torch.cat([self._reading(name, part).unit for part in map(self.fitting, batches(own))]))
        if self.supervised:
            self._combine(val.kept((val.label >= 0).nonzero()[:, 0].tolist()), run)

    def rate(self, records: Records) -> Tensor:
        return self.rated(self._readings(records), records.present.to(self.weight.device)).to(records.label.device)

    def tell(self, records: Records) -> Classified:
        told = self.told(self._readings(records), records.present.to(self.weight.device))
        return Classified(*(one.to(records.label.device) for one in told))

    def rated(self, readings: Mapping[str, Reading], present: Tensor) -> Tensor:
        """(B,) of what each network read, in the order of `widths`. present: (B, M) bool."""
        return weighted(torch.stack([self._score(name, one) for name, one in readings.items()], 1), present, self.weight)

    def told(self, readings: Mapping[str, Reading], present: Tensor) -> Classified:
        """The features are those of all modalities side by side, (B, M * F), each by the root of its weight."""
        share = shares(present, self.weight).float().T[:, :, None]  # (M, B, 1)
        logits = torch.stack([(one.logits / self.members[key(name)].scale).log_softmax(1) for name, one in readings.items()])
        features = torch.cat([part.sqrt() * one.unit for part, one in zip(share, readings.values(), strict=True)], 1)
        return Classified((share * logits).sum(0), functional.normalize(features, dim=1))

    def read(self, records: Records) -> Reading:
        raise TypeError("late fusion is one network a modality and has no reading of all of them; see `members`")

    def _readings(self, records: Records) -> dict[str, Reading]:
        return {name: self._reading(name, records) for name in self.widths}

    def _reading(self, name: str, records: Records) -> Reading:
        network = self.members[key(name)].network
        one = {name: type(records.tokens[name])(*(tensor.to(self.weight.device) for tensor in records.tokens[name]))}
        return network(network.encoder.padded(one))

    def _score(self, name: str, reading: Reading) -> Tensor:
        """(B,) float64, calibrated where there was something to do that on."""
        member = self.members[key(name)]
        raw = log_odds(reading.logits) if self.supervised else distance(reading.unit, member.bank)
        return (raw.double() - member.centre) / member.scale

    @torch.no_grad()
    def _combine(self, val: RecordSet, run: Run) -> None:
        """Temperatures and weights, where validation records of both labels allow it."""
        if len(val.label.unique()) < 2:
            run.say("no validation records of both labels: all modalities count alike")
            return
        parts = [self.fitting(part) for part in batches(val)]
        present = torch.cat([part.present for part in parts])
        for name, there in zip(self.widths, present.T, strict=True):
            if len(val.label[there].unique()) == 2:
                said = torch.cat([self._score(name, self._reading(name, part)) for part in parts]).cpu()
                self.members[key(name)].scale.fill_(temperature(said[there].numpy(), val.label[there].numpy()))
        scores = torch.cat([torch.stack([self._score(name, self._reading(name, part)) for name in self.widths], 1) for part in parts]).cpu()
        self.weight.copy_(best(scores, present, val.label))


class Member(Resizing):
    """One modality's network and the units of its score: a temperature, or what is usual among normal records."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("bank", torch.empty(0))  # (N, F)
        self.register_buffer("centre", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    @torch.no_grad()
    def remember(self, features: Tensor) -> None:
        """features: (N, F) of unit length. Each record's own distance is to the others."""
        self.bank = features.detach()
        if len(features) < 3:
            return
        own = distances_within(features)
        self.centre.copy_(own.mean())
        self.scale.copy_(own.std().clamp(min=1e-6))
