"""Which tokens of a record its score comes from, and when in the record the fault lies.

- Integrated gradients (Sundararajan et al., arXiv:1703.01365): the gradient along the straight way from a baseline to the record, times that way. Its sum
  over all tokens is the score less the score at the baseline. Deviation: the way is cut into pieces by how well each piece adds up, as a trained score
  often rises in one short stretch of it.
- Occlusion (Zeiler and Fergus, arXiv:1311.2901): what the score loses where a window of one modality is put to the baseline. Of
  two media that show the same fault neither is missed, and their windows say little.
- Attention rollout (Abnar and Zuidema, arXiv:2005.00928), for detectors that attend: how much of each token is in the queries at the end. It knows no sign.

The baseline is what a typical normal record shows at that moment. A mean token would be none that any record has: layers that look at the direction of a
token and not at its size make much of the little that is left there. All but rollout works for every detector whose score has a gradient.

B records, N tokens of one modality of all of them, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.datasets.records import Ragged, Records, RecordSet, Tokens, batches, key
from stages.errors import UserError
from stages.fusion.deep.maths.detector import DeepDetector
from stages.fusion.deep.maths.encoder import mean
from stages.fusion.deep.maths.network import Reading
from stages.fusion.occlusion import moments

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector

TOLERANCE = 1e-3  # of the sum of integrated gradients, relative to the difference in score where that is above 1
NODES, PIECES, HALVINGS = 3, 4, 10  # gradients on each piece of the way, pieces to begin with, how often one may be halved
BINS = 24  # a record's clock is looked at in so many windows
SHARE_OF_PEAK = 0.5  # a span goes on while its windows say at least this share of the strongest

Baseline = Mapping[str, Tokens]  # by modality what a normal record shows
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


def typical(normal: RecordSet) -> dict[str, Tokens]:
    """By modality the tokens of the record whose mean token is nearest to that of all, in deviations. Modalities that none has are left out."""
    means: dict[str, list[Tensor]] = {}
    for records in batches(normal):
        for name, one in records.tokens.items():
            total = one.values.new_zeros(records.samples, one.values.shape[1]).index_add_(0, _index(one), one.values)
            means.setdefault(name, []).append(total / one.lengths.to(total)[:, None])  # NaN for a record that lacks it
    found = {}
    for name, parts in means.items():
        mean = torch.cat(parts)
        have = mean.isfinite().all(1).nonzero()[:, 0]
        if len(have):
            off = (mean[have] - mean[have].mean(0)) / mean[have].std(0, correction=0).clamp(min=1e-6)
            nearest = normal.take([int(have[off.square().sum(1).argmin()])]).tokens[name]
            found[name] = Tokens(nearest.values, nearest.time)
    return found


def stand_ins(one: Ragged, baseline: Tokens) -> Tensor:
    """(N, D): for each token that of the baseline at the nearest time; without time the first for the first, and again from the start where there are more."""
    if not len(one.values):
        return one.values
    if not (baseline.time != 0).any():
        place = torch.arange(len(one.values), device=one.values.device) - one.offsets[_index(one)]
        return baseline.values.to(one.values)[place % len(baseline.values)]
    return baseline.values.to(one.values)[(one.time[:, None] - baseline.time.to(one.time)).abs().argmin(1)]


def integrated_gradients(detector: RecordDetector, records: Records, baseline: Baseline) -> Integrated:
    """Raises NotExplained where the score has no gradient. Modalities come back as the model has them, whatever was given."""
    fitted = detector.fitting(records)
    added = {name: torch.zeros_like(one.values) for name, one in fitted.tokens.items()}
    gap = torch.zeros(records.samples, dtype=torch.float64)
    allowed = (
        TOLERANCE
        * (detector.score(records) - detector.score(_mixed(fitted, baseline, torch.zeros(records.samples)))).abs().clamp(min=1).double()
    )
    record = torch.arange(records.samples).repeat_interleave(PIECES)
    start = torch.arange(PIECES).repeat(records.samples) / PIECES
    length = torch.full_like(start, 1 / PIECES)
    for halving in range(HALVINGS + 1):
        part = fitted.take(record.tolist())
        values = _on_the_way(detector, part, baseline, start, length)
        rise = detector.score(_mixed(part, baseline, start + length)) - detector.score(_mixed(part, baseline, start))
        total = sum(torch.zeros(len(record)).index_add_(0, _index(part.tokens[name]), one.sum(1)) for name, one in values.items())
        off = (total - rise).double()
        kept = (off.abs() <= allowed[record] / (2 * PIECES)) | (halving == HALVINGS)
        gap.index_add_(0, record[kept], off[kept])
        for name, one in values.items():
            rows = kept[_index(part.tokens[name])]
            added[name].index_add_(0, _rows(fitted.tokens[name], record)[rows], one[rows])
        if kept.all():
            break
        record = record[~kept].repeat_interleave(2)
        length = length[~kept].repeat_interleave(2) / 2
        start = start[~kept].repeat_interleave(2) + length * torch.tensor([0.0, 1.0]).repeat(len(record) // 2)
    return Integrated(added, gap.float())


def occlusion(detector: RecordDetector, records: Records, baseline: Baseline, bins: int = BINS, wide: int = 5) -> dict[str, Tensor]:
    """By modality (B, bins): what the score loses where the tokens of `wide` windows around one are put to the baseline.

    Tokens without time all lie in the first window.
    """
    fitted, whole = detector.fitting(records), detector.score(records)
    lost = {}
    for name, one in fitted.tokens.items():
        time = moments(name, one)
        place, instead = _bin_of(time, bins), stand_ins(one, baseline[name]) if len(one.values) else one.values
        lost[name] = whole.new_zeros(records.samples, bins)
        for window in range(bins) if (time != 0).any() else [0]:
            values = torch.where(((place - window).abs() <= wide // 2)[:, None], instead, one.values)
            without = fitted._replace(tokens={**fitted.tokens, name: one._replace(values=values)})
            lost[name][:, window] = whole - detector.score(without)
    return lost


def by_token(lost: Mapping[str, Tensor], records: Records) -> Strengths:
    """(B, bins) of windows, as `occlusion` gives them, to what each token's window loses, (N,)."""
    given = records.tokens
    return {name: one.cpu()[_index(given[name]).cpu(), _bin_of(moments(name, given[name]).cpu(), one.shape[1])] for name, one in lost.items()}


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
    share = rolled(reading.fused.weights, reading.fused.within, _asking(detector, reading)) * reading.encoded.mask  # (B, L)
    fitted, found = detector.fitting(records), {}
    for number, (name, span) in enumerate(reading.encoded.spans.items()):
        looked = share[:, span] * reading.encoded.present[:, number, None]
        encoder = detector.network.encoder
        found[name] = _to_tokens(looked, fitted.tokens[name].lengths, encoder.encoding.most(name), getattr(encoder.adapters[key(name)], "patch", None))
    total = share.new_zeros(records.samples)
    for name, one in found.items():
        total = total.index_add(0, _index(fitted.tokens[name]), one)
    return {name: one / total[_index(fitted.tokens[name])].clamp(min=1e-12) for name, one in found.items()}


def _asking(detector: DeepDetector, reading: Reading) -> Tensor | None:
    """(B, Q) bool, which queries count, where they are the tokens of a modality; None where they are learnt and all count."""
    span = reading.encoded.spans.get(getattr(detector, "query", ""))
    return None if span is None else reading.encoded.mask[:, span]


def rolled(weights: Iterable[Tensor], within: Iterable[Tensor], asking: Tensor | None = None) -> Tensor:
    """(B, L) of the weights of each layer from queries to tokens, (B, heads, Q, L), and among queries, (B, heads, Q, Q).

    asking: (B, Q) bool, the queries that count; all by default. Each layer adds what it read to what was there, so half of a query is what it was before.
    What is left of the queries as they began is not given.
    """
    mixed = None
    for to_tokens, among in zip(weights, within, strict=True):
        read = to_tokens.mean(1)  # (B, Q, L)
        mixed = read / 2 if mixed is None else (mixed + read) / 2
        mixed = (mixed + among.mean(1) @ mixed) / 2
    return mixed.mean(1) if asking is None else mean(mixed, asking)


def spans(strengths: Mapping[str, Tensor], records: Records, bins: int = BINS) -> list[Span]:
    """For each record that anything speaks against the stretch of each modality that does so most, the strongest first.

    strengths: by modality (N,) of each token, or (B, bins) of each window, as `occlusion` gives them. Without time a modality is one stretch, 0 to 1.
    """
    found: list[list[Span]] = [[] for _ in range(records.samples)]
    times = {name: moments(name, records.tokens[name]) for name in strengths}
    windows = {name: _windows(one, records.tokens[name]._replace(time=times[name]), bins) for name, one in strengths.items()}
    total = sum(one.clamp(min=0).sum(1) for one, _ in windows.values())
    for name, (one, there) in windows.items():
        timed = bool((times[name] != 0).any())
        for record, row in enumerate(one.clamp(min=0).tolist()):
            if max(row) > 0:
                first, last = _run(row, there[record].tolist())
                share = sum(row[first : last + 1]) / float(total[record])
                start, end = (first / bins, (last + 1) / bins) if timed else (0.0, 1.0)
                found[record].append(Span(records.record_id[record], name, start, end, share))
    return [span for one in found for span in sorted(one, key=lambda span: -span.strength)]


def _on_the_way(detector: RecordDetector, fitted: Records, baseline: Baseline, start: Tensor, length: Tensor) -> dict[str, Tensor]:
    """Integrated gradients over a piece of each record's way, (B,) its start and length, by modality (N, D)."""
    places, weights = np.polynomial.legendre.leggauss(NODES)
    way = {name: one.values - stand_ins(one, baseline[name]) for name, one in fitted.tokens.items() if len(one.values)}
    found = {name: torch.zeros_like(one) for name, one in way.items()}
    for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
        at = _mixed(fitted, baseline, start + length * float(place))
        values = {name: at.tokens[name].values.requires_grad_() for name in way}
        score = _with_gradient(detector, at)
        for name, gradient in zip(values, torch.autograd.grad(score.sum(), list(values.values()), allow_unused=True), strict=True):
            if gradient is not None:
                found[name] += weight * length[_index(fitted.tokens[name]), None] * gradient * way[name]
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


def _mixed(fitted: Records, baseline: Baseline, share: Tensor) -> Records:
    """The records (B,) of the way from the baseline to what they are."""
    tokens = {
        name: one._replace(values=torch.lerp(stand_ins(one, baseline[name]), one.values, share[_index(one), None]))
        if len(one.values)
        else one
        for name, one in fitted.tokens.items()
    }
    return fitted._replace(tokens=tokens)


def _index(one: Ragged) -> Tensor:
    """(N,): which record each token is of."""
    return torch.repeat_interleave(torch.arange(len(one.lengths), device=one.offsets.device), one.lengths)


def _rows(one: Ragged, record: Tensor) -> Tensor:
    """Which tokens `one.take(record)` has, as positions in `one`."""
    return one._replace(values=torch.arange(len(one.values))[:, None]).take(record).values[:, 0]


def _to_tokens(share: Tensor, lengths: Tensor, most: int, patch: int | None = None) -> Tensor:
    """(B, P) of what was attended to, to (N,) of the tokens that it was made of, evenly: patches of several, all views as one, or one of several that was read.

    most: tokens of a record that were read, evenly spaced, as `encoder.padded` takes them. patch: how many make one; by default what P says.
    """
    longest = int(lengths.max()) if len(lengths) else 0
    patch = patch or max(1, -(-min(longest, most) // share.shape[1]))
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
    index = _index(one).cpu() * bins + _bin_of(one.time.cpu(), bins)
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
