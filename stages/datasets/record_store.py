"""Packed records on disk: a few `.pt` shards of tensors, `index.parquet` and, written last, `records.json`.

Where a folder of small files costs one open per sample, a shard is opened once and mapped; memory stays bounded on both sides. A data set may have
several stores, one per encoder, that are joined by record id. The same records give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages import io
from stages.datasets.records import Ragged, Record, Records, packed

INDEX = "index.parquet"
ABOUT = "records.json"
COLUMNS = ("record_id", "label", "group", "fault", "split", "shard", "row")


class StoreWriter:
    """Streams records into shards of about `shard_mb`. Modalities and widths are those of `widths`, all known before the first record comes."""

    def __init__(self, folder: Path, widths: dict[str, int], shard_mb: int = 128) -> None:
        self.folder, self.widths, self.shard_bytes = folder, dict(widths), shard_mb * 2**20
        self._waiting: list[Record] = []
        self._bytes, self._shards = 0, 0
        self._index: list[tuple[Any, ...]] = []

    def add(self, record: Record) -> None:
        """Raises ValueError for a modality or a width that was not announced."""
        for name, tokens in record.modalities.items():
            if self.widths.get(name) != tokens.values.shape[1]:
                raise ValueError(f"{record.record_id}: {name} has width {tokens.values.shape[1]}, expected {self.widths.get(name)}")
        self._waiting.append(record)
        self._bytes += sum(tokens.values.numel() * 4 for tokens in record.modalities.values())
        if self._bytes >= self.shard_bytes:
            self._flush()

    def close(self, about: dict[str, Any]) -> None:
        """Write what waits, the index and, last of all, `records.json` with `about`, the modalities and the number of records."""
        self._flush()
        columns = dict(zip(COLUMNS, map(list, zip(*self._index, strict=True)), strict=True)) if self._index else {name: [] for name in COLUMNS}
        io.write_table(self.folder / INDEX, columns, _schema())
        io.write_json(self.folder / ABOUT, {**about, "modalities": self.widths, "records": len(self._index)})

    def _flush(self) -> None:
        if not self._waiting:
            return
        together, name = packed(self._waiting, self.widths), f"{self._shards:05d}.pt"
        tensors = {f"{modality}.{part}": tensor for modality, one in together.tokens.items() for part, tensor in one._asdict().items()}
        io.write_tensors(self.folder / name, tensors)
        self._index += [
            (one.record_id, one.label, one.group or one.record_id, one.fault, one.split, name, row) for row, one in enumerate(self._waiting)
        ]
        self._waiting, self._bytes, self._shards = [], 0, self._shards + 1


def _schema() -> Any:
    import pyarrow

    kinds = {"label": "int8", "row": "int64"}
    return pyarrow.schema([(name, kinds.get(name, "string")) for name in COLUMNS])


class RecordStore:
    """Reads one store. Shards are mapped when their first record is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = io.read_json(folder / ABOUT)
        self.widths: dict[str, int] = self.about["modalities"]
        self.rows: list[dict[str, Any]] = io.read_table(folder / INDEX)
        self._place = {row["record_id"]: number for number, row in enumerate(self.rows)}
        self._open: dict[str, dict[str, Tensor]] = {}

    @property
    def record_ids(self) -> list[str]:
        return [row["record_id"] for row in self.rows]

    def __contains__(self, record_id: str) -> bool:
        return record_id in self._place

    def tokens(self, record_ids: Sequence[str]) -> dict[str, Ragged]:
        """By modality the tokens of these records in this order; a record that is not in the store has none."""
        by_shard: dict[str, list[tuple[int, int]]] = {}
        for position, record_id in enumerate(record_ids):
            if record_id in self._place:
                row = self.rows[self._place[record_id]]
                by_shard.setdefault(row["shard"], []).append((position, row["row"]))
        return {name: self._gathered(name, width, by_shard, len(record_ids)) for name, width in self.widths.items()}

    def _gathered(self, name: str, width: int, by_shard: dict[str, list[tuple[int, int]]], count: int) -> Ragged:
        lengths, parts = torch.zeros(count, dtype=torch.int64), []
        for shard, places in by_shard.items():
            taken = self._ragged(shard, name).take(torch.tensor([row for _, row in places]))
            lengths[[position for position, _ in places]] = taken.lengths
            parts.append((torch.tensor([position for position, _ in places]), taken))
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        values, time = torch.empty(int(offsets[-1]), width), torch.empty(int(offsets[-1]))
        for positions, taken in parts:
            first = torch.repeat_interleave(offsets[positions] - taken.offsets[:-1], taken.lengths)
            rows = torch.arange(len(taken.values)) + first
            values[rows], time[rows] = taken.values, taken.time
        return Ragged(values, time, offsets)

    def _ragged(self, shard: str, name: str) -> Ragged:
        if shard not in self._open:
            self._open[shard] = io.open_tensors(self.folder / shard)
        return Ragged(*(self._open[shard][f"{name}.{part}"] for part in Ragged._fields))


class Subset:
    """Some records of one data set, their modalities joined over its stores; a RecordSet that reads what is asked for."""

    def __init__(self, stores: Sequence[RecordStore], record_ids: Sequence[str], label: Tensor) -> None:
        """label: (B,) int8. Raises ValueError where two stores give the same modality."""
        self.stores, self.record_ids, self.label = list(stores), list(record_ids), label
        names = [name for store in stores for name in store.widths]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} comes from two stores ({', '.join(str(store.folder) for store in stores)}); remove one")

    @property
    def samples(self) -> int:
        return len(self.record_ids)

    @property
    def widths(self) -> dict[str, int]:
        return {name: width for store in self.stores for name, width in store.widths.items()}

    def take(self, positions: Sequence[int]) -> Records:
        ids = [self.record_ids[position] for position in positions]
        tokens = {name: one for store in self.stores for name, one in store.tokens(ids).items()}
        return Records(ids, self.label[list(positions)], tokens)

    def whole(self) -> Records:
        """All of them in memory."""
        return self.take(range(self.samples))
