"""A lag for each modality of each record: by how much its clock runs behind that of the sensors. Token times are shifted by it before anything reads them.

One event, say the arc that lights up, is seen by all modalities at once, whatever their clocks say. So each modality is projected onto a few envelopes, the
sensors onto as many, and a record attends softly over a grid of lags by how well the two agree: softmax of the correlation, and the lag is the mean of the
grid under it. Where nothing agrees the attention is even and the lag is 0. The projections start as canonical variates (Hotelling, "Relations Between Two
Sets of Variates", 1936) between sensors and the modality, found in turns with the lags of the records they start from, and are parameters: a loss may go on
with them through the lag, which is differentiable. What all records lag by alike is not told from what one clock lags by: a sound that really comes .1 s
late in every record counts as a late clock.

B records, N tokens of all of them, D width, R reduced width, K envelopes, G moments of the clock, L lags.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.datasets.records import Ragged, key
from stages.types import Resizing

REDUCED = 12  # principal components of a modality that canonical variates are looked for in
FIRST = 3  # principal components of either side that the search starts from
TURNS = 3  # between lags and variates
TINY = 1e-6


class Pair(NamedTuple):
    """A modality and the sensors, on one clock."""

    theirs: Tensor  # (B, G + L - 1, R) the modality, from the earliest lag before the clock starts to the latest after it ends
    ours: Tensor  # (B, G, R) the sensors


class Aligner(Resizing):
    """reference: the modality whose clock counts. clock_s: the seconds that token times 0..1 stand for. most_s: the longest lag either way.

    step_s: of the grid of lags and of the clock. envelopes: K. sharpness: the factor on correlations before the softmax.
    """

    def __init__(
        self,
        widths: dict[str, int],
        reference: str = "series",
        clock_s: float = 12.0,
        most_s: float = 2.5,
        step_s: float = 0.1,
        envelopes: int = 2,
        sharpness: float = 60.0,
    ) -> None:
        super().__init__()
        if reference not in widths:
            raise ValueError(
                f"the clock to align to is that of {reference!r}, which the records do not have: they have {', '.join(widths)}"
            )
        if not 0 < step_s <= most_s or not most_s < clock_s:
            raise ValueError(f"expected 0 < step_s <= most_s < clock_s, got {step_s}, {most_s}, {clock_s}")
        self.reference, self.clock_s, self.sharpness, self.envelopes = reference, clock_s, sharpness, envelopes
        self.names = [name for name in widths if name != reference]
        reach = round(most_s / step_s)
        self.register_buffer("grid", torch.arange(-reach, reach + 1) * step_s, persistent=False)
        self.register_buffer("moments", torch.arange(round(clock_s / step_s) + 1) * step_s, persistent=False)
        self.register_buffer("reached", torch.arange(-reach, len(self.moments) + reach) * step_s, persistent=False)
        self.centre = nn.ParameterDict({key(name): nn.Parameter(torch.zeros(width), requires_grad=False) for name, width in widths.items()})
        self.theirs = nn.ParameterDict({key(name): nn.Parameter(torch.zeros(widths[name], envelopes)) for name in self.names})
        self.ours = nn.ParameterDict({key(name): nn.Parameter(torch.zeros(widths[reference], envelopes)) for name in self.names})
        self.weight = nn.ParameterDict({key(name): nn.Parameter(torch.zeros(envelopes)) for name in self.names})

    def forward(self, tokens: dict[str, Ragged]) -> dict[str, Ragged]:
        """The same tokens on the sensors' clock; times may then lie outside of 0..1."""
        lags = self.lags(tokens)
        return {name: shifted(one, -lags[name] / self.clock_s) if name in lags else one for name, one in tokens.items()}

    def lags(self, tokens: dict[str, Ragged]) -> dict[str, Tensor]:
        """By modality (B,) seconds that its clock is late; 0 for records that lack it or the sensors, and for what has no time."""
        return {name: (self.attention(tokens, name) * self.grid).sum(1) for name in self.names if name in tokens}

    def attention(self, tokens: dict[str, Ragged], name: str) -> Tensor:
        """(B, L) over the grid of lags, rows sum to 1."""
        one, sensors = tokens[name], tokens[self.reference]
        theirs = read_at(one, (one.values - self.centre[key(name)]) @ self.theirs[key(name)], self.reached / self.clock_s)
        ours = read_at(sensors, (sensors.values - self.centre[key(self.reference)]) @ self.ours[key(name)], self.moments / self.clock_s)
        agreement = (correlations(theirs, ours) * self.weight[key(name)]).sum(2)
        return torch.softmax(self.sharpness * agreement, 1)

    @torch.no_grad()
    def prime(self, tokens: dict[str, Ragged]) -> None:
        """Take the envelopes from these records, some hundreds of them. A modality that none of them has beside sensors keeps a lag of 0."""
        axes = {}
        for name in (self.reference, *self.names):
            centre, axes[name] = principal(tokens[name], REDUCED)
            self.centre[key(name)].copy_(centre)
        for name in self.names:
            both = (spanning(tokens[name]) & spanning(tokens[self.reference])).nonzero()[:, 0]
            if len(both) < 2:
                continue
            pair = self._pair(tokens[name].take(both), tokens[self.reference].take(both), axes[name], axes[self.reference], name)
            theirs, ours, strength = self._variates(pair)
            found = strength.shape[0]
            for kept, value in ((self.theirs, axes[name] @ theirs), (self.ours, axes[self.reference] @ ours), (self.weight, strength)):
                kept[key(name)].zero_()
                kept[key(name)][..., :found] = value

    def _pair(self, one: Ragged, sensors: Ragged, theirs: Tensor, ours: Tensor, name: str) -> Pair:
        reduced = (one.values - self.centre[key(name)]) @ theirs
        given = (sensors.values - self.centre[key(self.reference)]) @ ours
        return Pair(read_at(one, reduced, self.reached / self.clock_s), read_at(sensors, given, self.moments / self.clock_s))

    def _variates(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        """(R, K) projections of either side and (K,) weights that sum to 1."""
        theirs, ours = self._start(pair)
        weight = theirs.new_ones(1)
        for _ in range(TURNS):
            agreement = (correlations(pair.theirs @ theirs, pair.ours @ ours) * weight).sum(2)
            at = agreement.argmax(1)
            moved = torch.stack([one[place : place + len(self.moments)] for one, place in zip(pair.theirs, at.tolist(), strict=True)])
            theirs, ours, strength = canonical(moved.flatten(0, 1), pair.ours.flatten(0, 1), self.envelopes)
            weight = strength.square() / strength.square().sum().clamp(min=TINY)
        return theirs, ours, weight

    def _start(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """The one of the first components of either side, and the sign, that agree best at the best lag of each record."""
        best, found = -torch.inf, None
        for first in range(min(FIRST, pair.theirs.shape[2])):
            for second in range(min(FIRST, pair.ours.shape[2])):
                agreement = correlations(pair.theirs[:, :, [first]], pair.ours[:, :, [second]])[:, :, 0]
                for sign in (1.0, -1.0):
                    reached = float((sign * agreement).amax(1).mean())
                    if reached > best:
                        best, found = reached, (first, second, sign)
        first, second, sign = found
        theirs, ours = pair.theirs.new_zeros(pair.theirs.shape[2], 1), pair.ours.new_zeros(pair.ours.shape[2], 1)
        theirs[first], ours[second] = sign, 1.0
        return theirs, ours


def record_of(one: Ragged) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(one.lengths), device=one.offsets.device), one.lengths)


def spanning(one: Ragged) -> Tensor:
    """(B,) bool: whether a record has tokens at more than one time."""
    high, low = one.time.new_full((len(one.lengths),), -1.0), one.time.new_full((len(one.lengths),), 2.0)
    record = record_of(one)
    return high.scatter_reduce(0, record, one.time, "amax") > low.scatter_reduce(0, record, one.time, "amin")


def shifted(one: Ragged, by: Tensor) -> Ragged:
    """by: (B,) in units of the clock; only tokens of records that span time move."""
    return one._replace(time=one.time + (by * spanning(one))[record_of(one)])


def read_at(one: Ragged, values: Tensor, time: Tensor) -> Tensor:
    """(B, G, K) of (N, K) values at times (G,) of every record, on straight lines between its tokens, the first and the last held beyond; 0 without any."""
    if not len(values):
        return values.new_zeros(len(one.lengths), len(time), values.shape[1])
    record = torch.arange(len(one.lengths), device=time.device)[:, None]
    have = record_of(one).double() * 4 + one.time  # in order over all records, and further apart than any two times
    want = record * 4 + time.double().clamp(-1, 2)
    first, last = one.offsets[:-1, None], one.offsets[1:, None] - 1
    left = (torch.searchsorted(have, want, right=True) - 1).clamp(min=first).clamp(max=last).clamp(min=0)
    right = (left + 1).clamp(max=last).clamp(min=0)
    span = have[right] - have[left]
    share = torch.where(span > 0, (want - have[left]) / span.clamp(min=1e-9), 0.0).clamp(0, 1).to(values)
    return torch.lerp(values[left], values[right], share[..., None]) * (one.lengths > 0)[:, None, None]


def correlations(theirs: Tensor, ours: Tensor) -> Tensor:
    """(B, L, K) of (B, G + L - 1, K) and (B, G, K): Pearson's, for each lag; 0 where one of the two is constant."""
    windows = theirs.unfold(1, ours.shape[1], 1)  # (B, L, K, G)
    windows = windows - windows.mean(3, keepdim=True)
    centred = (ours - ours.mean(1, keepdim=True)).transpose(1, 2)[:, None]  # (B, 1, K, G)
    size = (windows.square().sum(3) * centred.square().sum(3)).clamp(min=TINY).sqrt()
    return (windows * centred).sum(3) / size


def principal(one: Ragged, most: int) -> tuple[Tensor, Tensor]:
    """The mean (D,), and (D, R) axes along which tokens vary most within their records, of unit variance."""
    values, record = one.values.double(), record_of(one)
    if len(values) < 2:
        return one.values.new_zeros(one.values.shape[1]), one.values.new_zeros(one.values.shape[1], 1)
    total = values.new_zeros(len(one.lengths), values.shape[1]).index_add_(0, record, values)
    within = values - (total / one.lengths.clamp(min=1)[:, None])[record]
    scale = within.square().mean(0).sqrt()
    scale = torch.where(scale > TINY, scale, torch.inf)
    variance, axes = torch.linalg.eigh((within / scale).T @ (within / scale) / len(values))
    kept = variance.flip(0)[:most].clamp(min=0)
    kept = kept[kept > TINY * kept[0]] if kept[0] > 0 else kept[:1] + 1
    chosen = axes.flip(1)[:, : len(kept)] / kept.sqrt() / scale[:, None]
    return values.mean(0).to(one.values), chosen.to(one.values)


def canonical(theirs: Tensor, ours: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """(R, K) and (R', K) projections and (K,) correlations of the first canonical variates of rows seen together, (n, R) and (n, R')."""
    one, other = (side.double() - side.double().mean(0) for side in (theirs, ours))
    whitened, back = [], []
    for side in (one, other):
        covariance = side.T @ side / len(side)
        ridge = 1e-3 * covariance.diagonal().mean().clamp(min=TINY)
        root = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=side.dtype, device=side.device))
        back.append(root)
        whitened.append(torch.linalg.solve_triangular(root, side.T, upper=False))
    left, strength, right = torch.linalg.svd(whitened[0] @ whitened[1].T / len(one), full_matrices=False)
    kept = min(most, len(strength))
    sides = [torch.linalg.solve_triangular(root.T, axes[:, :kept], upper=True) for root, axes in zip(back, (left, right.T), strict=True)]
    return sides[0].to(theirs), sides[1].to(ours), strength[:kept].to(theirs)
