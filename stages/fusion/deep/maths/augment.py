"""Other views of a batch of records: what could have been recorded of the same weld. All work on stored tokens and leave their widths as they are.

After SpecAugment (Park et al., arXiv:1904.08779) for masks over bands and time, and CutMix (Yun et al., arXiv:1905.04899) for pasting. Deviations:
- What is masked gets the batch's mean of its column, not 0: stored tokens have no common zero.
- Pasting keeps labels: the stretch of a defective record in which it differs most from the good ones is laid over the recording of a good one. Photos
  have no time and come with the fault. What the defective record lacks stays lacking.
- One bent clock for a whole record, so that its modalities stay in step.

B records, N tokens of all of them, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stages.datasets.records import Ragged

SERIES, SOUND, VIEWS = "series", "audio", "image"  # the modalities that some of these are for; without one they do nothing
BEND = 0.2  # the most that a clock runs too fast or too slow
CHANNEL_LOSS = 0.15  # chance that a sensor falls out
BAND, STRETCH = 0.2, 0.2  # the largest share of bands and of tokens that a mask covers
GAIN = 0.05  # deviation of the factor on all of a modality, in units of its deviation for sound, whose tokens are logarithms
VIEW_LOSS, TOKEN_LOSS = 0.3, 0.1  # chances
PASTED = 0.3  # chance of a defective record to be rebuilt
PATCH, BINS = 0.3, 32  # length of its stretch; resolution at which it is looked for

Batch = dict[str, Ragged]
Augmentation = Callable[[Batch, Tensor, torch.Generator], Batch]


def augmented(names: Sequence[str], tokens: Batch, classes: Tensor, generator: torch.Generator) -> Batch:
    """One view of these records by the named augmentations, in this order; the tokens given are not changed.

    classes: (B,) int, 0 for normal. generator: on the CPU, so that every device draws the same numbers.
    """
    check(names)
    for name in names:
        tokens = AUGMENTATIONS[name](tokens, classes, generator)
    return tokens


def check(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in AUGMENTATIONS]:
        raise ValueError(f"no augmentation {unknown[0]!r}. Known: {', '.join(AUGMENTATIONS)}")


def time_warp(tokens: Batch, classes: Tensor, generator: torch.Generator) -> Batch:
    """Bend the clock of each record: t + b * sin(pi t) / pi. Sensors are read anew at their own times, other tokens move."""
    bend = _uniform(len(classes), generator, -BEND, BEND)
    warped = {}
    for name, one in tokens.items():
        by = bend.to(one.time)[record_of(one)]
        if name == VIEWS:  # an angle does not bend
            warped[name] = one
        elif name == SERIES:
            warped[name] = one._replace(values=_read_at(one, _inverse(one.time, by)))
        else:
            warped[name] = one._replace(time=_bent(one.time, by))
    return warped


def channel_dropout(tokens: Batch, classes: Tensor, generator: torch.Generator) -> Batch:
    """Sensors that say nothing: some columns of a record are the batch's mean, never all of them."""
    if SERIES not in tokens:
        return tokens
    one = tokens[SERIES]
    lost = torch.rand(len(classes), one.values.shape[1], generator=generator) < CHANNEL_LOSS
    lost &= ~lost.all(1, keepdim=True)
    return {**tokens, SERIES: _blanked(one, lost.to(one.values.device)[record_of(one)])}


def spectrum_masks(tokens: Batch, classes: Tensor, generator: torch.Generator) -> Batch:
    """A run of bands over the whole recording, and a run of tokens, are the batch's mean."""
    if SOUND not in tokens:
        return tokens
    one = tokens[SOUND]
    place, record, width = position_of(one), record_of(one), one.values.shape[1]
    lengths = one.lengths.float()
    low, wide = _runs(torch.full((len(classes),), float(width)), BAND, generator)
    first, long = _runs(lengths.cpu(), STRETCH, generator)
    low, wide, first, long = (drawn.to(one.values.device)[record] for drawn in (low, wide, first, long))
    column = torch.arange(width, device=one.values.device)
    bands = (column >= low[:, None]) & (column < (low + wide)[:, None])
    return {**tokens, SOUND: _blanked(one, bands | ((place >= first) & (place < first + long))[:, None])}


def view_drop(tokens: Batch, classes: Tensor, generator: torch.Generator) -> Batch:
    """Some of the photos are missing, never all of a record."""
    return {**tokens, VIEWS: _thinned(tokens[VIEWS], VIEW_LOSS, generator)} if VIEWS in tokens else tokens


def token_drop(tokens: Batch, classes: Tensor, generator: torch.Generator) -> Batch:
    """Some tokens are missing, never all of a modality; sensors, whose steps are a grid, keep theirs."""
    return {name: one if name == SERIES else _thinned(one, TOKEN_LOSS, generator) for name, one in tokens.items()}


def gain_jitter(tokens: Batch, classes: Tensor, generator: torch.Generator) -> Batch:
    """Louder or quieter, brighter or darker: one factor for a modality of a record, one addend where tokens are logarithms."""
    found = {}
    for name, one in tokens.items():
        drawn = GAIN * torch.randn(len(classes), generator=generator).to(one.values)[record_of(one), None]
        spread = one.values.std() if one.values.numel() > 1 else 0.0
        found[name] = one._replace(values=one.values + drawn * spread if name == SOUND else one.values * (1 + drawn))
    return found


def fault_paste(tokens: Batch, classes: Tensor, generator: torch.Generator) -> Batch:
    """Some defective records become their faulty stretch in the recording of a good one; classes stay as they are."""
    at = classes.cpu()
    good, bad = ((at == 0).nonzero()[:, 0], (at > 0).nonzero()[:, 0])
    chosen = bad[torch.rand(len(bad), generator=generator) < PASTED]
    if not len(good) or not len(chosen):
        return tokens
    ground = torch.arange(len(at))
    ground[chosen] = good[torch.randint(len(good), (len(chosen),), generator=generator)]
    start = suspect_stretch(tokens, at == 0)
    pasted = torch.zeros(len(at), dtype=torch.bool)
    pasted[chosen] = True
    return {
        name: _pasted(one, ground.to(one.offsets.device), start.to(one.time), pasted.to(one.offsets.device)) if timed(name, one) else one
        for name, one in tokens.items()
    }


AUGMENTATIONS: dict[str, Augmentation] = {
    "time_warp": time_warp,
    "channel_dropout": channel_dropout,
    "spectrum_masks": spectrum_masks,
    "view_drop": view_drop,
    "token_drop": token_drop,
    "gain_jitter": gain_jitter,
    "fault_paste": fault_paste,
}


def record_of(one: Ragged) -> Tensor:
    """(N,) int64: which record each token is of."""
    return torch.repeat_interleave(torch.arange(len(one.lengths), device=one.offsets.device), one.lengths)


def position_of(one: Ragged) -> Tensor:
    """(N,) int64: which token of its record each is."""
    return torch.arange(len(one.time), device=one.offsets.device) - one.offsets[record_of(one)]


def timed(name: str, one: Ragged) -> bool:
    """Whether its tokens have an order in time; the times of photographs are angles."""
    return name != VIEWS and bool(len(one.time)) and bool((one.time != 0).any())


def suspect_stretch(tokens: Batch, good: Tensor) -> Tensor:
    """(B,) where the stretch of length PATCH begins in which a record differs most from the good ones; good: (B,) bool, of which one at least.

    How far a token is off is the mean square of its columns, standardised by the tokens of good records; modalities that have time add up.
    """
    strength = torch.zeros(len(good), BINS)
    for one in (one for name, one in tokens.items() if timed(name, one)):
        record = record_of(one).cpu()
        values, time = one.values.float().cpu(), one.time.float().cpu()
        known = values[good[record]]
        if len(known) < 2:
            continue
        off = ((values - known.mean(0)) / known.std(0).clamp(min=1e-6)).square().clamp(max=100).mean(1)
        place = record * BINS + (time * BINS).long().clamp(max=BINS - 1)
        total = torch.zeros(len(good) * BINS).index_add_(0, place, off)
        count = torch.zeros(len(good) * BINS).index_add_(0, place, torch.ones(len(off)))
        strength += (total / count.clamp(min=1)).view(-1, BINS)
    wide = round(PATCH * BINS)
    return strength.unfold(1, wide, 1).sum(2).argmax(1) / BINS


def _pasted(one: Ragged, ground: Tensor, start: Tensor, pasted: Tensor) -> Ragged:
    """ground: (B,) the record whose recording is kept outside of the stretch; start: (B,) of the stretch; pasted: (B,) bool, the others stay."""
    base = one.take(ground)
    lacking = (one.lengths == 0) | (base.lengths == 0)  # nothing to paste, or nothing to paste into: it stays as it was
    mixed = pasted & ~lacking

    def inside(part: Ragged, record: Tensor) -> Tensor:
        return (part.time >= start[record]) & (part.time < start[record] + PATCH)

    record, under = record_of(one), record_of(base)
    kept = ~mixed[record] | inside(one, record)
    added = mixed[under] & ~inside(base, under)
    of = torch.cat([record[kept], under[added]])
    time = torch.cat([one.time[kept], base.time[added]])
    values = torch.cat([one.values[kept], base.values[added]])
    order = (of.double() * 2 + time).argsort(stable=True)
    lengths = torch.bincount(of, minlength=len(ground))
    return Ragged(values[order], time[order], torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))


def _thinned(one: Ragged, chance: float, generator: torch.Generator) -> Ragged:
    """Each token is kept with probability 1 - chance, and the luckiest of a record in any case."""
    luck = torch.rand(len(one.time), generator=generator).to(one.time)
    record = record_of(one)
    best = luck.new_full((len(one.lengths),), -1.0).scatter_reduce_(0, record, luck, "amax")
    kept = (luck >= chance) | (luck == best[record])
    lengths = torch.bincount(record[kept], minlength=len(one.lengths))
    return Ragged(one.values[kept], one.time[kept], torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))


def _blanked(one: Ragged, masked: Tensor) -> Ragged:
    """masked: (N, D) bool."""
    mean = one.values.mean(0) if len(one.values) else one.values.new_zeros(one.values.shape[1])
    return one._replace(values=torch.where(masked, mean, one.values))


def _runs(lengths: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each record where a run begins, and its length, whole numbers; lengths: (B,) of what it lies in. A run covers at most `share` of it."""
    long = (torch.rand(len(lengths), generator=generator) * (share * lengths + 1)).floor().clamp(max=(share * lengths).floor())
    first = (torch.rand(len(lengths), generator=generator) * (lengths - long + 1)).floor()
    return first, long


def _uniform(count: int, generator: torch.Generator, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _bent(time: Tensor, bend: Tensor) -> Tensor:
    return (time + bend * torch.sin(torch.pi * time) / torch.pi).clamp(0, 1)


def _inverse(time: Tensor, bend: Tensor) -> Tensor:
    """The time that is bent to this one; the error is at most BEND ** 8."""
    found = time
    for _ in range(8):
        found = time - bend * torch.sin(torch.pi * found) / torch.pi
    return found.clamp(0, 1)


def _read_at(one: Ragged, time: Tensor) -> Tensor:
    """(N, D) values at other times, on straight lines between tokens; time: (N,), of each token's own record. Records without order stay as they are."""
    record = record_of(one).double()
    have, want = record * 2 + one.time, record * 2 + time
    right = torch.searchsorted(have, want, right=True)
    first, last = one.offsets[:-1][record.long()], one.offsets[1:][record.long()] - 1
    left = (right - 1).clamp(min=first, max=last)
    right = (left + 1).clamp(max=last)
    span = have[right] - have[left]
    share = torch.where(span > 0, (want - have[left]) / span.clamp(min=1e-12), 0.0).clamp(0, 1).to(one.values)
    read = torch.lerp(one.values[left], one.values[right], share[:, None])
    ordered = (one.time[last] > one.time[first])[:, None]
    return torch.where(ordered, read, one.values)
