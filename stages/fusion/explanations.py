"""Which tokens of a record its score comes from, and when in the record the fault lies.

- Integrated gradients (Sundararajan et al., arXiv:1703.01365): the gradient along the straight way from a baseline to the record, times that way. Its sum over
  all tokens is the score less the score at the baseline. Deviation: Gauss-Legendre nodes, doubled for the records where that sum is off by more than `TOLERANCE`.
- Occlusion (Zeiler and Fergus, arXiv:1311.2901): what the score loses where a window of one modality is put to the baseline.
- Attention rollout (Abnar and Zuidema, arXiv:2005.00928), for detectors that attend: how much of each token is in the queries at the end. It knows no sign.

The baseline is the mean token of normal records: a token that says nothing unusual. All but rollout works for every detector whose score has a gradient.

B records, N tokens of one modality of all of them, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.datasets.records import Ragged, Records
from stages.errors import UserError
from stages.fusion.deep.maths.detector import DeepDetector

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector

TOLERANCE = 1e-3  # of the sum of integrated gradients, relative to the difference in score where that is above 1
NODES, MOST_NODES = 32, 512
BINS = 24  # a record's clock is looked at in so many windows
SHARE_OF_PEAK = 0.5  # a span goes on while its windows say at least this share of the strongest

Baseline = Mapping[str, Tensor]  # by modality (D,)
Strengths = dict[str, Tensor]  # by modality (N,): what each token adds to the score


class NotExplained(UserError, ValueError):
    """This detector cannot be explained in the way that was asked for."""


class Integrated(NamedTuple):
    values: dict[str, Tensor]  # by modality (N, D): what each number of a token adds to the score
    gap: Tensor  # (B,) by how much their sum misses the difference in score

    @property
    def strengths(self) -> Strengths:
        return {name: one.sum(1) for name, one in self.values.items()}


class Span(NamedTuple):
    record_id: str
    modality: str
    start: float  # on the record's clock, in 0..1
    end: float
    strength: float  # share of all that speaks for a fault in this record, in any modality, that lies here


def nominal(normal: Iterable[Records]) -> dict[str, Tensor]:
    """By modality the mean token (D,) of these records; of one that none of them has, zeros."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for records in normal:
        for name, one in records.tokens.items():
            sums[name] = sums.get(name, 0) + one.values.double().sum(0)
            counts[name] = counts.get(name, 0) + len(one.values)
    return {name: (total / max(counts[name], 1)).float() for name, total in sums.items()}


def integrated_gradients(detector: RecordDetector, records: Records, baseline: Baseline) -> Integrated:
    """Raises NotExplained where the score has no gradient. Modalities come back as the model has them, whatever was given."""
    fitted = detector.fitting(records)
    reached = _record_index(fitted)
    difference = (detector.score(records) - detector.score(_mixed(fitted, baseline, 0.0))).double()
    added = {name: torch.zeros_like(one.values) for name, one in fitted.tokens.items()}
    gap, todo, nodes = difference.clone(), torch.arange(records.samples), NODES
    while len(todo) and nodes <= MOST_NODES:
        part = fitted.take(todo.tolist())
        values, index = _on_the_way(detector, part, baseline, nodes), _record_index(part)
        total = sum(
            torch.zeros(len(todo), dtype=torch.float64).index_add_(0, index[name], one.double().sum(1)) for name, one in values.items()
        )
        for name, one in values.items():
            added[name][torch.isin(reached[name], todo)] = one
        gap[todo] = total - difference[todo]
        todo = todo[gap[todo].abs() > TOLERANCE * difference[todo].abs().clamp(min=1)]
        nodes *= 2
    return Integrated(added, gap.float())


def occlusion(detector: RecordDetector, records: Records, baseline: Baseline, bins: int = BINS) -> dict[str, Tensor]:
    """By modality (B, bins): what the score loses where the tokens of one window are put to the baseline; tokens without time all lie in the first."""
    fitted, whole = detector.fitting(records), detector.score(records)
    lost = {}
    for name, one in fitted.tokens.items():
        place = _bin_of(one.time, bins)
        lost[name] = whole.new_zeros(records.samples, bins)
        for window in place.unique().tolist():
            values = torch.where((place == window)[:, None], baseline[name].to(one.values), one.values)
            without = fitted._replace(tokens={**fitted.tokens, name: one._replace(values=values)})
            lost[name][:, window] = whole - detector.score(without)
    return lost


@torch.no_grad()
def rollout(detector: RecordDetector, records: Records) -> Strengths:
    """By modality (N,) the share of each token in what is read at the end; those of a record sum to 1 over all its modalities.

    Raises NotExplained for a detector that attends to nothing. What goes to the sign of an absent modality is left out.
    """
    reading = detector(records) if isinstance(detector, DeepDetector) and detector.network is not None else None
    if reading is None or not reading.fused.weights:
        raise NotExplained(
            f"{type(detector).__name__} attends to no tokens, so there is nothing to roll out; use integrated gradients or occlusion"
        )
    share = rolled(reading.fused.weights, reading.fused.within) * reading.encoded.mask  # (B, L)
    fitted, found = detector.fitting(records), {}
    for number, (name, span) in enumerate(reading.encoded.spans.items()):
        looked = share[:, span] * reading.encoded.present[:, number, None]
        found[name] = _to_tokens(looked, fitted.tokens[name].lengths, detector.network.encoder.encoding.most(name))
    total = share.new_zeros(records.samples)
    index = _record_index(fitted)
    for name, one in found.items():
        total = total.index_add(0, index[name], one)
    return {name: one / total[index[name]].clamp(min=1e-12) for name, one in found.items()}


def rolled(weights: Iterable[Tensor], within: Iterable[Tensor]) -> Tensor:
    """(B, L) of the weights of each layer from queries to tokens, (B, heads, Q, L), and among queries, (B, heads, Q, Q).

    Each layer adds what it read to what was there, so half of a query is what it was before. What is left of the queries as they began is not given.
    """
    mixed = None
    for to_tokens, among in zip(weights, within, strict=True):
        read = to_tokens.mean(1)  # (B, Q, L)
        mixed = read / 2 if mixed is None else (mixed + read) / 2
        mixed = (mixed + among.mean(1) @ mixed) / 2
    return mixed.mean(1)


def spans(strengths: Mapping[str, Tensor], records: Records, bins: int = BINS) -> list[Span]:
    """For each record that anything speaks against the stretch of each modality that does so most, the strongest first.

    strengths: by modality (N,) of each token, or (B, bins) of each window, as `occlusion` gives them. A modality whose tokens have no time is one stretch, 0 to 1.
    """
    found: list[list[Span]] = [[] for _ in range(records.samples)]
    windows = {name: _windows(one, records.tokens[name], bins) for name, one in strengths.items()}
    total = sum(one.clamp(min=0).sum(1) for one, _ in windows.values())
    for name, (one, there) in windows.items():
        timed = bool((records.tokens[name].time != 0).any())
        for record, row in enumerate(one.clamp(min=0).tolist()):
            if max(row) > 0:
                first, last = _run(row, there[record].tolist())
                share = sum(row[first : last + 1]) / float(total[record])
                start, end = (first / bins, (last + 1) / bins) if timed else (0.0, 1.0)
                found[record].append(Span(records.record_id[record], name, start, end, share))
    return [span for one in found for span in sorted(one, key=lambda span: -span.strength)]


def _on_the_way(detector: RecordDetector, fitted: Records, baseline: Baseline, nodes: int) -> dict[str, Tensor]:
    """Integrated gradients with so many nodes, by modality (N, D)."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    way = {name: one.values - baseline[name].to(one.values) for name, one in fitted.tokens.items()}
    found = {name: torch.zeros_like(one) for name, one in way.items()}
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        at = _mixed(fitted, baseline, float(place))
        values = {name: one.values.requires_grad_() for name, one in at.tokens.items()}
        score = _with_gradient(detector, at)
        for name, gradient in zip(values, torch.autograd.grad(score.sum(), list(values.values()), allow_unused=True), strict=True):
            if gradient is not None:
                found[name] += weight * gradient * way[name]
    return found


def _with_gradient(detector: RecordDetector, fitted: Records) -> Tensor:
    reason = f"the score of {type(detector).__name__} has no gradient; use occlusion"
    try:
        score = detector.rate(fitted)
    except RuntimeError as error:
        if "requires grad" in str(error):  # it goes on in NumPy
            raise NotExplained(reason) from error
        raise
    if not score.requires_grad:
        raise NotExplained(reason)
    return score


def _mixed(fitted: Records, baseline: Baseline, share: float) -> Records:
    """The records `share` of the way from the baseline to what they are."""
    tokens = {
        name: one._replace(values=torch.lerp(baseline[name].to(one.values).expand_as(one.values), one.values, share))
        for name, one in fitted.tokens.items()
    }
    return fitted._replace(tokens=tokens)


def _record_index(records: Records) -> dict[str, Tensor]:
    """By modality (N,): which record each token is of."""
    return {
        name: torch.repeat_interleave(torch.arange(records.samples, device=one.offsets.device), one.lengths)
        for name, one in records.tokens.items()
    }


def _to_tokens(share: Tensor, lengths: Tensor, most: int) -> Tensor:
    """(B, P) of what was attended to, to (N,) of the tokens that it was made of, evenly: patches of several, all views as one, or one of several that was read.

    most: tokens of a record that were read, evenly spaced, as `encoder.padded` takes them.
    """
    longest = int(lengths.max()) if len(lengths) else 0
    patch = max(1, -(-min(longest, most) // share.shape[1]))
    token, lengths = torch.arange(longest, device=share.device), lengths.to(share.device)[:, None]
    read = ((token + 1) * lengths.clamp(max=most) - 1) // lengths.clamp(min=1)  # (B, longest): the one that stands for it
    place, there = (read // patch).clamp(0, share.shape[1] - 1), token < lengths
    count = torch.zeros_like(share).scatter_add_(1, place, there.to(share))
    return (share / count.clamp(min=1)).gather(1, place)[there]


def _bin_of(time: Tensor, bins: int) -> Tensor:
    return (time * bins).long().clamp(0, bins - 1)


def _windows(strength: Tensor, one: Ragged, bins: int) -> tuple[Tensor, Tensor]:
    """(B, bins) the sum of the tokens in each window, where it is not given, and whether there are any."""
    records = len(one.lengths)
    index = torch.repeat_interleave(torch.arange(records), one.lengths.cpu()) * bins + _bin_of(one.time.cpu(), bins)
    there = torch.bincount(index, minlength=records * bins).view(records, bins) > 0
    if strength.ndim == 2:
        return strength.cpu(), there
    return torch.zeros(records * bins).index_add_(0, index, strength.float().cpu()).view(records, bins), there


def _run(row: list[float], there: list[bool]) -> tuple[int, int]:
    """The first and last window around the strongest that say at least SHARE_OF_PEAK of what it says. Windows without a token do not end it."""
    peak = max(range(len(row)), key=row.__getitem__)
    ends = []
    for step in (-1, 1):
        place, reach = peak, peak
        while 0 <= place < len(row) and (row[place] >= SHARE_OF_PEAK * row[peak] or not there[place]):
            reach = place if there[place] else reach
            place += step
        ends.append(reach)
    return ends[0], ends[1]
