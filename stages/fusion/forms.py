"""Which detectors have a form as a graph, and what it is: the networks written out as deep/maths/graph.py says, and what the detector makes of them.

A form computes what the detector's own `score` and `classify` do, from padded tokens; a modality that is missing is all masked. Tests and every export
hold it against the detector.

B records, L tokens, D width, M modalities, C classes, F features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.datasets.records import Records, RecordSet, batches, key
from stages.fusion.deep.cross_attention import CrossAttention
from stages.fusion.deep.gated import GatedFusion
from stages.fusion.deep.late import LateFusion
from stages.fusion.deep.maths.autoencoders import TimeAutoencoder, TokenAutoencoder
from stages.fusion.deep.maths.detector import DeepDetector, distance, distances_within
from stages.fusion.deep.maths.encoder import Padded, mean
from stages.fusion.deep.maths.graph import Scorer
from stages.fusion.deep.maths.heads import log_odds
from stages.fusion.deep.mid import MidFusion
from stages.fusion.deep.paper_baseline import PaperBaseline
from stages.fusion.deep.process_to_result import ProcessToResult
from stages.fusion.deep.unimodal import UnimodalNetwork
from stages.fusion.detector import RecordDetector
from stages.fusion.perceiver.graph import WrittenNetwork
from stages.fusion.perceiver_moe import PerceiverMoE
from stages.types import NotFitted, Refusal

ODDS = "log odds of any fault"
NEAREST = "mean cosine distance to the nearest normal records"


class OneNetwork(Scorer):
    """Cross-attention, mid and gated fusion: one network over the tokens of all modalities."""

    def __init__(self, detector: DeepDetector, lengths: Mapping[str, int]) -> None:
        super().__init__(detector.widths, lengths)
        self.supervised, self.network = detector.supervised, self.written_out(detector.network)
        self.meaning = ODDS if detector.supervised else NEAREST
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
        self.meaning = ODDS if detector.supervised else NEAREST
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
        self.meaning = (
            "weighted mean of calibrated log odds"
            if detector.supervised
            else f"mean over modalities of the {NEAREST}, in deviations of these"
        )
        for member in self.detector.members.values():
            member.network = self.written_out(member.network)

    def judge(self, tokens: dict[str, Padded]) -> tuple[Tensor, Tensor, Tensor]:
        readings = {name: self.detector.members[key(name)].network({name: one}) for name, one in tokens.items()}
        present = torch.stack([one.mask.any(1) for one in tokens.values()], 1)
        told = self.detector.told(readings, present)
        return self.detector.rated(readings, present).float(), told.logits, told.features


class Perceiver(Scorer):
    """The Perceiver with or without experts; its logits are those of normal, which is 0, and anomalous."""

    meaning = ODDS

    def __init__(self, detector: PerceiverMoE, lengths: Mapping[str, int]) -> None:
        super().__init__(detector.widths, lengths)
        self.network = WrittenNetwork(detector.network, self.lengths)
        self.register_buffer("log_weight", detector.log_weight.detach().cpu().clone())

    def judge(self, tokens: dict[str, Padded]) -> tuple[Tensor, Tensor, Tensor]:
        logit, pooled = self.network(tokens)
        score = logit - self.log_weight
        return score, functional.pad(score[:, None], (1, 0)), functional.normalize(pooled, dim=1)


class Predicted(Scorer):
    """The result that the process predicts, beside the one that is seen; its features are those of what is seen, and its logits are 0."""

    meaning = "1 less the cosine of the result that is seen and the one that its process predicts"

    def __init__(self, detector: ProcessToResult, lengths: Mapping[str, int]) -> None:
        super().__init__({name: detector.widths[name] for name in detector.seen}, lengths)
        self.detector = copy.deepcopy(detector).cpu()

    def judge(self, tokens: dict[str, Padded]) -> tuple[Tensor, Tensor, Tensor]:
        there = {f"there.{name}": one.mask.any(1) for name, one in tokens.items()}
        process = torch.stack([there[f"there.{name}"] for name in self.detector.made], 1).any(1)
        means = {name: mean(one.values.double(), one.mask).float() for name, one in tokens.items()}
        score = self.detector.judged({**means, **there, "judgeable": there[f"there.{self.detector.image}"] & process}).float()
        return score, 0 * score[:, None], functional.normalize(means[self.detector.image], dim=1)


class Reconstructed(Scorer):
    """The paper's two autoencoders and their weighted sum; its features are the two scores, in deviations of good welds, and its logits are 0."""

    meaning = "weighted sum of the errors of reconstruction of sound and film, in deviations of good records"

    def __init__(self, detector: PaperBaseline, lengths: Mapping[str, int]) -> None:
        super().__init__({name: detector.widths[name] for name in (detector.audio, detector.video)}, lengths)
        self.detector = copy.deepcopy(detector).cpu()

    def judge(self, tokens: dict[str, Padded]) -> tuple[Tensor, Tensor, Tensor]:
        own = self.detector
        sound, film = tokens[own.audio], tokens[own.video]
        audio = mean(along_time(own.sound, sound).double()[..., None], sound.mask)[:, 0]
        video = worst_of(token_by_token(own.film, film).double(), film, own.window)
        scores = (torch.stack([audio, video], 1) - own.centre) / own.scale
        there = torch.stack([sound.mask.any(1), film.mask.any(1)], 1)
        score = own.together(scores, there, own.weight).float()
        return score, 0 * score[:, None], (scores * there).float()


def along_time(network: TimeAutoencoder, given: Padded) -> Tensor:
    """(B, L): what `TimeAutoencoder` says of each token, from padded ones."""
    there = given.mask[..., None].to(given.values.dtype)
    values = seen = network.standardised(given.values)
    for layer in network.layers:
        norm = layer.norm
        values = (values - norm.running_mean) * (norm.running_var + norm.eps).rsqrt() * norm.weight + norm.bias
        values = values * there  # beyond the ends of a record there is 0
        before, behind = functional.pad(values[:, :-1], (0, 0, 1, 0)), functional.pad(values[:, 1:], (0, 0, 0, 1))
        values = layer.mix(torch.cat([before, values, behind], 2))
        last = layer is network.layers[-1]
        values = torch.where(values > 0, values, values * network.last.weight) if last else network.between(values)
    return (values - seen).square().mean(2)


def token_by_token(network: TokenAutoencoder, given: Padded) -> Tensor:
    """(B, L): what `TokenAutoencoder` says of each token."""
    seen = network.standardised(given.values)
    return (network.layers(seen) - seen).square().mean(2)


def worst_of(errors: Tensor, given: Padded, window: float) -> Tensor:
    """(B,): `worst_stretch` of padded tokens. errors: (B, L)."""
    age = given.time[:, :, None] - given.time[:, None]
    within = ((age >= 0) & (age < window) & given.mask[:, None]).to(errors.dtype)  # (B, L, L)
    means = (within * errors[:, None]).sum(2) / within.sum(2).clamp(min=1)
    return (means * given.mask).amax(1)  # errors are squares: 0 is the least


FORMS: dict[type[nn.Module], type[Scorer]] = {
    CrossAttention: OneNetwork,
    MidFusion: OneNetwork,
    GatedFusion: OneNetwork,
    UnimodalNetwork: OneModality,
    LateFusion: OneEach,
    PerceiverMoE: Perceiver,
    ProcessToResult: Predicted,
    PaperBaseline: Reconstructed,
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
        raise Refusal(f"{name} does not get its score from a network over padded tokens, so it has no form as a graph")
    if any(getattr(part, "aligner", None) is not None for part in detector.modules()):
        raise Refusal(
            f"this {name} puts all clocks on one before tokens are padded (encoding.align), which has no form as a graph; export a row with align: false"
        )


def lengths(detector: RecordDetector, *sets: RecordSet) -> dict[str, int]:
    """The most tokens that a record of these sets has of each modality, at least 1, and no more than the detector reads."""
    most = dict.fromkeys(detector.widths, 1)
    for records in sets:
        for part in batches(records):
            for name, ragged in detector.fitting(_known(part)).tokens.items() if part.present.any() else ():
                most[name] = max(most[name], int(ragged.lengths.max()))
    return {name: min(length, _read_of(detector, name)) for name, length in most.items()}


def _read_of(detector: RecordDetector, modality: str) -> float:
    """How many tokens of a modality the detector reads."""
    if isinstance(detector, DeepDetector):
        return detector.encoding.most(modality)
    return detector.shape.max_tokens if isinstance(detector, PerceiverMoE) else math.inf


def _known(records: Records) -> Records:
    return records.take(records.present.any(1).nonzero()[:, 0].tolist())
