"""How unsure a network is, and why: of what it sees, or because it has learnt too little to know.

Asked several times, each time a little otherwise, it gives several probabilities. The entropy of their mean is all of the uncertainty; what remains when
the entropy within each answer is taken off is their disagreement (mutual information of answer and model; Depeweg et al., ICML 2018,
arXiv:1710.07283), which more records would lessen. The answers come from passes with dropout on (Gal and Ghahramani, ICML 2016, arXiv:1506.02142), or
from the seeds of one row (deep ensembles; Lakshminarayanan et al., NeurIPS 2017, arXiv:1612.01474).

P answers, B records, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from stages.datasets.records import Records
from stages.fusion.detector import RecordDetector
from stages.seed import derive
from stages.types import Refusal

PASSES = 20
# These ask whether they train before they drop anything; none of them changes otherwise. What else a network does only in training stays off.
WITH_DROPOUT = (_DropoutNd, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class Uncertainty(NamedTuple):
    probability: Tensor  # (B, C) the mean of the answers
    entropy: Tensor  # (B,) nats in 0..log C: all of the uncertainty
    disagreement: Tensor  # (B,) nats in 0..entropy: what the answers differ by


def mc_dropout(detector: RecordDetector, records: Records, passes: int = PASSES, seed: int = 0) -> Tensor:
    """(P, B, C) float64 probabilities with dropout on, drawn by `seed`; the detector, and the global generators, are left as they were.

    The draws of a record depend on the batch that it is in. Raises Refusal where the detector tells no classes or has no dropout.
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")
    _telling(detector)
    devices = [tensor.device for tensor in detector.state_dict().values() if tensor.is_cuda][:1]
    with torch.random.fork_rng(devices=devices), dropping(detector):
        found = []
        for number in range(passes):
            torch.manual_seed(derive(seed, "dropout", number))
            found.append(detector.classify(records).logits.double().softmax(dim=1))
    return torch.stack(found)


def ensemble(detectors: Sequence[RecordDetector], records: Records) -> Tensor:
    """(P, B, C) float64 probabilities of the fits of one row, one a seed. Raises Refusal where they do not tell the same classes."""
    if not detectors:
        raise ValueError("an ensemble needs at least one detector")
    for one in detectors:
        _telling(one)
        if one.classes != detectors[0].classes:
            raise Refusal(f"the seeds of a row must tell the same classes, got {', '.join(one.classes)} and {', '.join(detectors[0].classes)}")
    return torch.stack([one.classify(records).logits.double().softmax(dim=1) for one in detectors])


def uncertainty(answers: Tensor) -> Uncertainty:
    """answers: (P, B, C) probabilities."""
    mean = answers.double().mean(dim=0)
    whole = entropy(mean)
    return Uncertainty(mean, whole, (whole - entropy(answers.double()).mean(dim=0)).clamp(min=0))


def entropy(probability: Tensor) -> Tensor:
    """(..., C) to (...), nats; of a class that has none nothing is counted."""
    return -torch.special.xlogy(probability, probability).sum(dim=-1)


def anomalous(probability: Tensor) -> Tensor:
    """(B,): the probability of any class but normal, which is the first. probability: (B, C)."""
    return 1 - probability[:, 0]


@contextmanager
def dropping(detector: nn.Module) -> Iterator[None]:
    """Dropout on inside, and nothing else that only training does."""
    found = [module for module in detector.modules() if isinstance(module, WITH_DROPOUT) and not module.training]
    if not any(_share(module) for module in detector.modules()):
        raise Refusal(f"{type(detector).__name__} has no dropout, so its passes would all be the same; ask the seeds of its row instead")
    for module in found:
        module.training = True
    try:
        yield
    finally:
        for module in found:
            module.training = False


def _share(module: nn.Module) -> float:
    """The probability with which a module drops what it is given."""
    if isinstance(module, _DropoutNd):
        return module.p
    return module.dropout if isinstance(module, nn.MultiheadAttention) else 0.0


def _telling(detector: RecordDetector) -> None:
    if not detector.telling or not detector.classes:
        raise Refusal(f"{type(detector).__name__} tells no classes: uncertainty is that of class probabilities")
