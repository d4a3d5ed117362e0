"""Which detectors have a form as a graph, and what it is: the networks written out as deep/maths/graph.py says, and what the detector makes of them.

A form computes what the detector's own `score` and `classify` do, from padded tokens; a modality that is missing is all masked. Tests and every export
hold it against the detector.

B records, L tokens, D width, M modalities, C classes, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stages.datasets.records import Records, RecordSet, batches, key
from stages.fusion.deep.cross_attention import CrossAttention
from stages.fusion.deep.gated import GatedFusion
from stages.fusion.deep.late import LateFusion
from stages.fusion.deep.maths.detector import DeepDetector, distance, distances_within
from stages.fusion.deep.maths.encoder import Padded
from stages.fusion.deep.maths.graph import Scorer
from stages.fusion.deep.maths.heads import log_odds
from stages.fusion.deep.mid import MidFusion
from stages.fusion.deep.unimodal import UnimodalNetwork
from stages.types import NotFitted, Refusal


class OneNetwork(Scorer):
    """Cross-attention, mid and gated fusion: one network over the tokens of all modalities."""

    def __init__(self, detector: DeepDetector, lengths: Mapping[str, int]) -> None:
        super().__init__(detector.widths, lengths)
        self.supervised, self.network = detector.supervised, self.written_out(detector.network)
        self.register_buffer("bank", detector.bank.detach().cpu().clone())

    def judge(self, tokens: dict[str, Padded]) -> tuple[Tensor, Tensor, Tensor]:
        reading = self.network(tokens)
        score = log_odds(reading.logits) if self.supervised else distance(reading.unit, self.bank)
        return score, reading.logits, reading.unit


class OneModality(Scorer):
    """One modality alone; of a record that lacks it the graph says what the detector says of one that it knows nothing of."""

    def __init__(self, detector: UnimodalNetwork, lengths: Mapping[str, int]) -> None:
        super().__init__({detector.shown: detector.widths[detector.shown]}, lengths)
        self.supervised, self.network = detector.supervised, self.written_out(detector.network)
        bank = detector.bank.detach().cpu().clone()
        self.register_buffer("bank", bank)
        self.register_buffer("prior", detector.prior.detach().cpu().clone())
        self.register_buffer("usual", torch.zeros(()) if detector.supervised else distances_within(bank).mean().float())

    def judge(self, tokens: dict[str, Padded]) -> tuple[Tensor, Tensor, Tensor]:
        reading = self.network(tokens)
        there = next(iter(tokens.values())).mask.any(1)
        logits = torch.where(there[:, None], reading.logits, self.prior)
        score = log_odds(logits) if self.supervised else torch.where(there, distance(reading.unit, self.bank), self.usual)
        return score, logits, reading.unit


class OneEach(Scorer):
    """Late fusion: the networks of all modalities, and their combination by the detector's own formulas."""

    def __init__(self, detector: LateFusion, lengths: Mapping[str, int]) -> None:
        super().__init__(detector.widths, lengths)
        self.detector = copy.deepcopy(detector).cpu()
        for member in self.detector.members.values():
            member.network = self.written_out(member.network)

    def judge(self, tokens: dict[str, Padded]) -> tuple[Tensor, Tensor, Tensor]:
        readings = {name: self.detector.members[key(name)].network({name: one}) for name, one in tokens.items()}
        present = torch.stack([one.mask.any(1) for one in tokens.values()], 1)
        told = self.detector.told(readings, present)
        return self.detector.rated(readings, present).float(), told.logits, told.features


FORMS: dict[type[nn.Module], type[Scorer]] = {
    CrossAttention: OneNetwork,
    MidFusion: OneNetwork,
    GatedFusion: OneNetwork,
    UnimodalNetwork: OneModality,
    LateFusion: OneEach,
}


def scorer(detector: nn.Module, lengths: Mapping[str, int]) -> Scorer:
    """The form of a fitted detector. lengths: of each modality its L. Raises what `check` raises, NotFitted for what has learnt nothing."""
    check(detector)
    if not getattr(detector, "widths", None):
        raise NotFitted(f"{type(detector).__name__} has learnt nothing yet: fit or load it before it is exported")
    return FORMS[type(detector)](detector, lengths).requires_grad_(False).eval()


def check(detector: nn.Module) -> None:
    """Raises Refusal for a detector that has no form, or that moves clocks before it pads tokens."""
    name = type(detector).__name__
    if type(detector) not in FORMS:
        raise Refusal(f"{name} has no form as a graph")
    if any(getattr(part, "aligner", None) is not None for part in detector.modules()):
        raise Refusal(
            f"this {name} puts all clocks on one before tokens are padded (encoding.align), which has no form as a graph; export a row with align: false"
        )


def lengths(detector: DeepDetector, *sets: RecordSet) -> dict[str, int]:
    """The most tokens that a record of these sets has of each modality, at least 1, and no more than the detector reads."""
    most = dict.fromkeys(detector.widths, 1)
    for records in sets:
        for part in batches(records):
            for name, ragged in detector.fitting(_known(part)).tokens.items() if part.present.any() else ():
                most[name] = max(most[name], int(ragged.lengths.max()))
    return {name: min(length, detector.encoding.most(name)) for name, length in most.items()}


def _known(records: Records) -> Records:
    return records.take(records.present.any(1).nonzero()[:, 0].tolist())
