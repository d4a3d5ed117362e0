"""Tokens of every modality become one sequence of common width for each record, on one clock.

What an encoder has made of pictures, film and sound is projected; raw steps of sensors go through a Transformer of their own, which reads patches of
several steps (the only encoder that is trained). Each token is told its modality and its time. A modality that a record lacks is masked out, and one
learnt token stands for it, so that "not measured" and "measured as nothing" differ and no sequence is ever empty.

All of it works on padded tensors and their masks, without a branch that depends on the data, so that it can be exported.

After Vaswani et al., arXiv:1706.03762, with the norm before each part (Xiong et al., arXiv:2002.04745). Deviations: dimensions are standardised by the
tokens that were learnt from; time is a code of the place in 0..1, not of the index.

B records, L tokens of the longest record, S steps, P patches, V channels, M modalities, D width of a modality, W common width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from stages.datasets.records import Ragged, Records, key
from stages.fusion.deep.maths.aligner import Aligner

BANDS = 8  # frequencies of the time code: 1, 2, 4, ... half turns over a record
NARROW = 32  # channels; what is wider is no raw series
FURTHEST = 20.0  # standard deviations; further values are clipped


class Encoding(BaseModel):
    """Sizes of what stands before the fusion.

    sensors: the modality that is raw steps and is read in patches; it is projected like the others where it is wider than 32 or not there. images: the
    modality whose tokens are views; views: "each" keeps them, "mean" and "max" make one token of them; max_views: of each record. align: find by how
    much each clock lags behind the sensors' and shift token times by it (maths/aligner.py); clock_s: the seconds that token times 0..1 stand for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(256, ge=4)
    heads: int = Field(8, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    max_tokens: int = Field(256, ge=1)  # of one modality; of a longer one evenly spaced tokens are read
    sensors: str = "series"
    patch: int = Field(8, ge=1)
    sensor_layers: int = Field(4, ge=1)
    sensor_ffn: int = Field(1024, ge=1)
    images: str = "image"
    views: Literal["each", "mean", "max"] = "each"
    max_views: int | None = Field(None, ge=1)
    align: bool = False
    clock_s: float = Field(12.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        return self

    def most(self, modality: str) -> int:
        """How many tokens of a modality are read."""
        return min(self.max_tokens, self.max_views or self.max_tokens) if modality == self.images else self.max_tokens


class Padded(NamedTuple):
    """One modality of B records."""

    values: Tensor  # (B, L, D)
    time: Tensor  # (B, L)
    mask: Tensor  # (B, L) bool, True = a token


class Encoded(NamedTuple):
    """All modalities of B records side by side."""

    tokens: Tensor  # (B, L, W)
    mask: Tensor  # (B, L) bool, True = a token or the sign of an absent modality; at least one a modality
    present: Tensor  # (B, M) bool
    spans: dict[str, slice]  # where in L each modality stands, in the model's order

    @property
    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """Of each modality (B, L_m, W) and its mask."""
        return [(self.tokens[:, span], self.mask[:, span]) for span in self.spans.values()]

    @property
    def pooled(self) -> Tensor:
        """(B, M, W): the mean token of each modality."""
        return torch.stack([mean(values, mask) for values, mask in self.parts], 1)


def joined(parts: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Encoded:
    """parts: by modality tokens (B, L_m, W), mask (B, L_m) and presence (B,)."""
    spans, start = {}, 0
    for name, (values, _, _) in parts.items():
        spans[name] = slice(start, start + values.shape[1])
        start += values.shape[1]
    tokens, masks, present = zip(*parts.values(), strict=True)
    return Encoded(torch.cat(tokens, 1), torch.cat(masks, 1), torch.stack(present, 1), spans)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, L, W) over the tokens of the mask, to (B, W); 0 where there are none."""
    weight = mask.to(values.dtype)
    return (values * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)


def padded(ragged: Ragged, most: int) -> Padded:
    """At most `most` tokens of each record, evenly spaced, the first among them; at least one column."""
    lengths = ragged.lengths
    kept = lengths.clamp(max=most)
    columns = max(1, int(kept.max())) if len(kept) else 1
    place = torch.arange(columns, device=kept.device)
    mask = place < kept[:, None]
    if not len(ragged.values):
        return Padded(ragged.values.new_zeros(*mask.shape, ragged.values.shape[1]), ragged.time.new_zeros(mask.shape), mask)
    rows = (ragged.offsets[:-1, None] + place * lengths[:, None] // kept[:, None].clamp(min=1)) * mask
    return Padded(ragged.values[rows] * mask[..., None], ragged.time[rows] * mask, mask)


def time_code(time: Tensor) -> Tensor:
    """(B, L) times, mostly in 0..1, to (B, L, 2 * BANDS) sines and cosines."""
    angle = time[..., None] * (math.pi * 2.0 ** torch.arange(BANDS, device=time.device))
    return torch.cat([angle.sin(), angle.cos()], -1)


class Standard(nn.Module):
    """Values (B, L, D) in the units of the tokens that were learnt from."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, values: Tensor) -> Tensor:
        return ((values - self.centre) / self.scale).clamp(-FURTHEST, FURTHEST)


class Projection(nn.Module):
    """Tokens of one modality, (B, L, D), to the common width."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.standard, self.linear, self.norm = Standard(width_in), nn.Linear(width_in, width), nn.LayerNorm(width)

    def forward(self, part: Padded) -> Padded:
        return part._replace(values=self.norm(self.linear(self.standard(part.values))))


class SensorEncoder(nn.Module):
    """Raw steps to patches that know of each other. Patches whose steps are all masked are masked."""

    def __init__(
        self, channels: int = 6, width: int = 256, patch: int = 8, layers: int = 4, heads: int = 8, ffn: int = 1024, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.patch = patch
        self.standard = Standard(channels)
        self.embed = nn.Linear(patch * (channels + 1), width)  # each step says whether it is there
        self.time = nn.Linear(2 * BANDS, width)
        layer = nn.TransformerEncoderLayer(width, heads, ffn, dropout, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, part: Padded) -> Padded:
        """(B, S, V) to (B, P, W); P is S / patch, rounded up."""
        values, time, mask = self.patches(part)
        attended = mask | ~mask.any(1, keepdim=True)  # attention to nothing is not a number
        tokens = self.layers(self.embed(values) + self.time(time_code(time)), src_key_padding_mask=~attended)
        return Padded(tokens, time, mask)

    def patches(self, part: Padded) -> Padded:
        """Standardised steps side by side, (B, P, patch * (V + 1)), at the mean time of those that are there."""
        short = -part.values.shape[1] % self.patch
        there = nn.functional.pad(part.mask, (0, short)).unflatten(1, (-1, self.patch))  # (B, P, patch)
        values = nn.functional.pad(self.standard(part.values), (0, 0, 0, short)).unflatten(1, (-1, self.patch)) * there[..., None]
        time = nn.functional.pad(part.time, (0, short)).unflatten(1, (-1, self.patch)) * there
        count = there.sum(2)
        return Padded(torch.cat([values, there[..., None].to(values.dtype)], 3).flatten(2), time.sum(2) / count.clamp(min=1), count > 0)


class TokenEncoder(nn.Module):
    """widths: the modalities and their D; what is learnt of a modality goes by its name, so their order does not matter."""

    def __init__(self, widths: Mapping[str, int], encoding: Encoding) -> None:
        super().__init__()
        self.names, self.widths, self.encoding = list(widths), dict(widths), encoding
        self.adapters = nn.ModuleDict({key(name): self._adapter(name, size) for name, size in widths.items()})
        self.embedding = nn.ParameterDict({key(name): _drawn(encoding.width) for name in widths})
        self.absent = nn.ParameterDict({key(name): _drawn(encoding.width) for name in widths})
        self.time = nn.Linear(2 * BANDS, encoding.width)
        self.dropout = nn.Dropout(encoding.dropout)
        clocks = {name: size for name, size in widths.items() if name != encoding.images}  # the times of photographs are angles
        aligns = encoding.align and encoding.sensors in clocks and len(clocks) > 1
        self.aligner = Aligner(clocks, encoding.sensors, encoding.clock_s) if aligns else None

    def forward(self, tokens: Mapping[str, Padded]) -> Encoded:
        """tokens: of each modality; one that is there for no record has a column that is masked."""
        return joined({name: self.part(name, tokens[name]) for name in self.names})

    def part(self, name: str, given: Padded) -> tuple[Tensor, Tensor, Tensor]:
        """One modality's tokens (B, L, W), mask (B, L) and presence (B,)."""
        values, time, mask = self._pooled(name, self.adapters[key(name)](given))
        present = mask.any(1)
        values = torch.where(present[:, None, None], values + self.time(time_code(time)), self.absent[key(name)])
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return self.dropout(values + self.embedding[key(name)]), mask | (first & ~present[:, None]), present

    def padded(self, tokens: Mapping[str, Ragged]) -> dict[str, Padded]:
        """As `forward` takes them, on one clock where clocks are aligned."""
        if self.aligner is not None:
            tokens = self.aligner(dict(tokens))
        return {name: padded(tokens[name], self.encoding.most(name)) for name in self.names}

    @torch.no_grad()
    def standardise(self, batches: Iterable[Records]) -> None:
        """Centre and scale of every dimension over all tokens of these records; a dimension that never changes keeps the scale 1."""
        sums = {name: [0, 0.0, 0.0] for name in self.names}
        for records in batches:
            for name, (count, total, squares) in sums.items():
                values = records.tokens[name].values.double()
                sums[name] = [count + len(values), total + values.sum(0), squares + values.square().sum(0)]
        for name, (count, total, squares) in sums.items():
            if not count:
                continue
            centre = total / count
            spread = (squares / count - centre.square()).clamp(min=0).sqrt()
            standard = self.adapters[key(name)].standard
            standard.centre.copy_(centre)
            standard.scale.copy_(torch.where(spread > 1e-6 * centre.abs().clamp(min=1e-6), spread, 1.0))

    def _adapter(self, name: str, size: int) -> nn.Module:
        chosen = self.encoding
        if name == chosen.sensors and size <= NARROW:
            return SensorEncoder(size, chosen.width, chosen.patch, chosen.sensor_layers, chosen.heads, chosen.sensor_ffn, chosen.dropout)
        return Projection(size, chosen.width)

    def _pooled(self, name: str, part: Padded) -> Padded:
        """Views as one token, where that is asked for."""
        if name != self.encoding.images or self.encoding.views == "each":
            return part
        if self.encoding.views == "mean":
            one = mean(part.values, part.mask)
        else:
            least = torch.finfo(part.values.dtype).min
            one = part.values.masked_fill(~part.mask[..., None], least).amax(1)
            one = torch.where(part.mask.any(1)[:, None], one, torch.zeros_like(one))
        return Padded(one[:, None], mean(part.time[..., None], part.mask), part.mask.any(1, keepdim=True))


def _drawn(width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
