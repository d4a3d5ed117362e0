"""What is known of one sample that was seen in several ways, and many of them packed together.

A record is one part, weld or shift as cameras, microphones, sensors and notes saw it: for each modality that is present a sequence of tokens from
a frozen encoder. Any modality may be missing, never all. Models are given `Records`: tokens of all records one after another, so that nothing is
padded until a model wants it.

B records, T tokens of one record, N tokens of all, D width, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

MODALITIES = ("text", "image", "video", "audio", "series")  # those that encoders are built in for; a record may have any others
UNKNOWN = -1  # the label of a record that nobody judged
FACT = "fact_"  # columns of the sample table: what is known of a record beside its media
NORMAL = "normal"  # the class of records with label 0; those of the others are their kinds of fault


def key(modality: str) -> str:
    """The name of a modality as part of a parameter's name, which may have no dots."""
    return f"of_{modality.replace('.', '__')}"


class Tokens(NamedTuple):
    """One modality of one record, in order of time."""

    values: Tensor  # (T, D) float32, finite, T >= 1
    time: Tensor  # (T,) float32 in 0..1, where in the record a token lies; all 0 where there is no order


class Record(NamedTuple):
    record_id: str  # unique in its data set
    modalities: dict[str, Tokens]  # those that are present, at least one
    label: int = UNKNOWN  # 1 anomalous, 0 normal
    group: str = ""  # what must not be split: a shift, a patient; the record itself where empty
    fault: str = ""  # the kind of anomaly, where anybody said
    split: str | None = None  # where the data set fixes it
    step_label: Tensor | None = None  # (T,) int8 of its time series, where anybody labelled steps


class Ragged(NamedTuple):
    """One modality of B records: the tokens of the first, of the second, and so on."""

    values: Tensor  # (N, D) float32
    time: Tensor  # (N,) float32 in 0..1
    offsets: Tensor  # (B + 1,) int64; record b has the rows offsets[b] .. offsets[b + 1] - 1, none where it lacks the modality

    @property
    def lengths(self) -> Tensor:
        """(B,) int64."""
        return self.offsets.diff()

    def take(self, positions: Tensor) -> Ragged:
        import torch

        start = self.offsets[positions]
        lengths = self.offsets[positions + 1] - start  # `self.lengths` would be those of all records
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        rows = torch.repeat_interleave(start - offsets[:-1], lengths)
        rows += torch.arange(len(rows), device=rows.device)
        return Ragged(self.values.index_select(0, rows), self.time.index_select(0, rows), offsets)

    def emptied(self) -> Ragged:
        """As many records, all without the modality."""
        return Ragged(self.values[:0], self.time[:0], self.offsets * 0)


class Records(NamedTuple):
    """B records; every modality that any record of the data set has, in the data set's order."""

    record_id: list[str]
    label: Tensor  # (B,) int8: 1 anomalous, 0 normal, UNKNOWN
    tokens: dict[str, Ragged]
    fault: Sequence[str] = ()  # B kinds of anomaly, "" for normal records and unnamed ones; () where no record of the data set has one

    @property
    def samples(self) -> int:
        return len(self.record_id)

    @property
    def widths(self) -> dict[str, int]:
        """The D of each modality."""
        return {name: ragged.values.shape[1] for name, ragged in self.tokens.items()}

    @property
    def present(self) -> Tensor:
        """(B, M) bool, columns in the order of `tokens`."""
        import torch

        return torch.stack([ragged.lengths > 0 for ragged in self.tokens.values()], 1)

    def take(self, positions: Sequence[int]) -> Records:
        """The records at these positions, in this order."""
        import torch

        at = torch.as_tensor(positions, dtype=torch.int64)
        fault = [self.fault[place] for place in at.tolist()] if self.fault else ()
        tokens = {name: one.take(at) for name, one in self.tokens.items()}
        return Records([self.record_id[place] for place in at.tolist()], self.label[at], tokens, fault)

    def kept(self, positions: Sequence[int]) -> Records:
        return self.take(positions)

    def only(self, modalities: Sequence[str]) -> Records:
        """The same records with all other modalities missing; some may then have none, see `present`."""
        return self._replace(tokens={name: one if name in modalities else one.emptied() for name, one in self.tokens.items()})

    def to(self, device: object) -> Records:
        moved = {name: Ragged(*(tensor.to(device) for tensor in one)) for name, one in self.tokens.items()}
        return self._replace(label=self.label.to(device), tokens=moved)


class RecordSet(Protocol):
    """One split: addressable by position, in memory (`Records`) or on disk (`record_store.Subset`)."""

    @property
    def samples(self) -> int: ...

    @property
    def widths(self) -> dict[str, int]: ...

    @property
    def label(self) -> Tensor: ...

    @property
    def fault(self) -> Sequence[str]: ...

    def take(self, positions: Sequence[int]) -> Records: ...

    def kept(self, positions: Sequence[int]) -> RecordSet:
        """Those records as a set that reads them as this one does."""
        ...


def batches(records: RecordSet, size: int = 256) -> Iterator[Records]:
    """All records in order, `size` at a time."""
    for start in range(0, records.samples, size):
        yield records.take(range(start, min(start + size, records.samples)))


def packed(records: Sequence[Record], widths: dict[str, int]) -> Records:
    """widths: the modalities and their D, in the order that they shall have."""
    import torch

    def ragged(name: str, width: int) -> Ragged:
        found = [record.modalities.get(name) for record in records]
        lengths = torch.tensor([0] + [len(one.values) if one else 0 for one in found])
        have = [one for one in found if one]
        values = torch.cat([one.values for one in have]) if have else torch.empty(0, width)
        time = torch.cat([one.time for one in have]) if have else torch.empty(0)
        return Ragged(values, time, lengths.cumsum(0))

    label = torch.tensor([record.label for record in records], dtype=torch.int8)
    fault = [record.fault for record in records] if any(record.fault for record in records) else ()
    return Records([record.record_id for record in records], label, {name: ragged(name, width) for name, width in widths.items()}, fault)
