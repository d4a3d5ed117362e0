"""Modalities of any width become one sequence of tokens per record: projected, told apart, placed in time.

Tokens are kept as rows, one modality after another, until attention wants them side by side: what is projected are the tokens that exist, never padding.
A modality that a record lacks is one learnt token that says so, so that "not measured" and "measured as nothing" differ, and no record is ever empty.

After the input adapters of Perceiver IO (Jaegle et al., arXiv:2107.14795). Deviations:
- Dimensions are standardised by the records that were learnt from before the LayerNorm: a LayerNorm over dimensions of different units sees the largest.
- The logarithm of a standardised token's size is given beside it, as the LayerNorm takes the size away, and how far off a token lies says much.
- The LayerNorm has no weights of its own: those of the projection that follows do the same.
- A modality narrower than 4 has no LayerNorm: over one or two numbers it leaves nothing but signs.
- Time is a code of the place in 0..1 and of the position in the sequence; the paper's Fourier features are of positions alone.

B records, M modalities, R rows, L tokens of the longest record, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.datasets.records import Ragged, Records, key

BANDS = 8  # frequencies of the time code: 1, 2, 4, ... half turns over a record
POSITIONS = 512  # later tokens share the last position
NARROW = 4
FURTHEST = 20.0  # standard deviations; further values are clipped


class Sequences(NamedTuple):
    """The tokens of B records as rows, and where each row stands when they are padded."""

    rows: Tensor  # (R, D)
    slot: Tensor  # (R,) int64: record * L + position
    modality: Tensor  # (R,) int64
    record: Tensor  # (R,) int64
    mask: Tensor  # (B, L) bool, True = a token
    present: Tensor  # (B, M) bool

    def padded(self, values: Tensor) -> Tensor:
        """(R, D) values of the rows to (B, L, D), zeros where there is no token."""
        batch, length = self.mask.shape
        return values.new_zeros(batch * length, values.shape[1]).index_copy(0, self.slot, values).view(batch, length, -1)


def subsampled(ragged: Ragged, most: int) -> Ragged:
    """At most `most` tokens of each record, evenly spaced, the first among them."""
    lengths = ragged.lengths
    kept = lengths.clamp(max=most)
    offsets = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    step = torch.arange(int(offsets[-1]), device=kept.device) - torch.repeat_interleave(offsets[:-1], kept)
    rows = torch.repeat_interleave(ragged.offsets[:-1], kept) + step * torch.repeat_interleave(lengths, kept) // torch.repeat_interleave(kept, kept)
    return Ragged(ragged.values[rows], ragged.time[rows], offsets)


def without(ragged: Ragged, gone: Tensor) -> Ragged:
    """The same records; those of which `gone`, (B,) bool, is true lack the modality."""
    lengths = ragged.lengths
    kept = torch.repeat_interleave(~gone, lengths)
    return Ragged(ragged.values[kept], ragged.time[kept], torch.cat([lengths.new_zeros(1), (lengths * ~gone).cumsum(0)]))


def dropped(present: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(B, M) bool: modalities to take away, each present one with probability `share`; of what a record has one always stays.

    present: (B, M) bool on the CPU.
    """
    luck = torch.rand(present.shape, generator=generator)
    gone = present & (luck < share)
    bare = ~(present & ~gone).any(1)
    luckiest = luck.masked_fill(~present, -1).argmax(1)
    gone[bare, luckiest[bare]] = False
    return gone


def time_code(time: Tensor) -> Tensor:
    """(R,) times in 0..1 to (R, 2 * BANDS) sines and cosines."""
    angle = time[:, None] * (math.pi * 2.0 ** torch.arange(BANDS, device=time.device))
    return torch.cat([angle.sin(), angle.cos()], 1)


class Adapter(nn.Module):
    """Tokens of one modality, (R, D_m), to the common width."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width_in, elementwise_affine=False) if width_in >= NARROW else nn.Identity()
        self.linear = nn.Linear(width_in + 1, width)
        self.register_buffer("centre", torch.zeros(width_in))
        self.register_buffer("scale", torch.ones(width_in))

    def forward(self, values: Tensor) -> Tensor:
        standard = ((values - self.centre) / self.scale).clamp(-FURTHEST, FURTHEST)
        size = (standard.square().mean(1, keepdim=True) + 1e-6).log() / 2
        return self.linear(torch.cat([self.norm(standard), size], 1))


class Tokeniser(nn.Module):
    """widths: the modalities and their D; what is learnt of a modality goes by its name, so their order does not matter."""

    def __init__(self, widths: Mapping[str, int], width: int, max_tokens: int) -> None:
        super().__init__()
        self.names, self.max_tokens = list(widths), max_tokens
        self.adapters = nn.ModuleDict({key(name): Adapter(size, width) for name, size in widths.items()})
        self.embedding = nn.ParameterDict({key(name): nn.init.trunc_normal_(torch.empty(width), std=0.02) for name in widths})
        self.absent = nn.ParameterDict({key(name): nn.init.trunc_normal_(torch.empty(width), std=0.02) for name in widths})
        self.time = nn.Linear(2 * BANDS, width)
        self.position = nn.Embedding(min(max_tokens, POSITIONS), width)
        nn.init.trunc_normal_(self.position.weight, std=0.02)

    def forward(self, tokens: Mapping[str, Ragged]) -> Sequences:
        kept = [subsampled(tokens[name], self.max_tokens) for name in self.names]
        lengths = torch.stack([one.lengths for one in kept], 1)  # (B, M)
        present = lengths > 0
        counts = lengths.clamp(min=1)  # an absent modality is one token
        length = int(counts.sum(1).max())
        start = counts.cumsum(1) - counts + torch.arange(len(counts), device=counts.device)[:, None] * length
        values = torch.cat([self.adapters[key(name)](one.values) for name, one in zip(self.names, kept)])
        sources = lengths.T.flatten()  # of the rows that exist: one modality after another, record by record
        slot, step = _places(start.T.flatten(), sources)
        values = values + self.time(time_code(torch.cat([one.time for one in kept]))) + self.position(step.clamp(max=self.position.num_embeddings - 1))
        owner = torch.arange(present.numel(), device=present.device)  # modality * B + record
        lacking = owner[sources == 0]
        pair = torch.cat([torch.repeat_interleave(owner, sources), lacking])
        modality, record = pair // len(present), pair % len(present)
        absent = torch.stack([self.absent[key(name)] for name in self.names])
        rows = torch.cat([values, functional.embedding(lacking // len(present), absent)])
        rows = rows + functional.embedding(modality, torch.stack([self.embedding[key(name)] for name in self.names]))
        slot = torch.cat([slot, start.T.flatten()[lacking]])
        mask = torch.arange(length, device=present.device) < counts.sum(1, keepdim=True)
        return Sequences(rows, slot, modality, record, mask, present)

    @torch.no_grad()
    def standardise(self, batches: Iterable[Records]) -> None:
        """Centre and scale of every dimension over all tokens of these records; a dimension that never changes keeps the scale 1."""
        sums = {name: [0, 0.0, 0.0] for name in self.names}
        for records in batches:
            for name in self.names:
                values = records.tokens[name].values.double()
                kept = sums[name]
                sums[name] = [kept[0] + len(values), kept[1] + values.sum(0), kept[2] + values.square().sum(0)]
        for name, (count, total, squares) in sums.items():
            if not count:
                continue
            mean = total / count
            spread = (squares / count - mean.square()).clamp(min=0).sqrt()
            adapter = self.adapters[key(name)]
            adapter.centre.copy_(mean)
            adapter.scale.copy_(torch.where(spread > 1e-6 * mean.abs().clamp(min=1e-6), spread, 1.0))


def _places(start: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Of runs of `counts` tokens, the first of each at `start`: the slot of every token and its position in its run, (R,) each."""
    ends = counts.cumsum(0)
    step = torch.arange(int(ends[-1]), device=counts.device) - torch.repeat_interleave(ends - counts, counts)
    return torch.repeat_interleave(start, counts) + step, step
