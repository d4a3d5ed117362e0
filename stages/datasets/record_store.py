"""Packed records on disk: a few `.pt` shards of tensors, `index.parquet` and, written last, `records.json`.

Where a folder of small files costs one open per sample, a shard is opened once and mapped; memory stays bounded on both sides. A data set may have
several stores, one per encoder, that are joined by record id. The same records give the same bytes.

A shard holds for each modality that was known when it was written `<modality>.values`, `.time` and `.offsets`; one that came later is missing in all of
its records. Labels of steps, where any record of the shard has them, are `step_label.values` and `step_label.offsets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages import io
from stages.datasets.records import MODALITIES, Ragged, Record, Records, Tokens, packed

INDEX = "index.parquet"
ABOUT = "records.json"
COLUMNS = ("record_id", "label", "group", "fault", "split", "shard", "row")


class StoreWriter:
    """Streams records into shards of about `shard_mb`. widths: the modalities, in their order; None where the first record that has one decides.

    shards: how many are on disk. index: a row, in the order of `COLUMNS`, for each record in them. Both, and `widths`, may be set before the first
    record comes, to go on with shards that are there already.
    """

    def __init__(self, folder: Path, widths: dict[str, int] | None, shard_mb: int = 128) -> None:
        self.folder, self.widths, self.shard_bytes = folder, dict(widths or {}), shard_mb * 2**20
        self.shards, self.index = 0, list[tuple[Any, ...]]()
        self._grows = widths is None
        self._waiting: list[Record] = []
        self._bytes = 0

    def add(self, record: Record) -> None:
        """Raises ValueError for a modality or a width that was not announced."""
        for name, tokens in record.modalities.items():
            width = tokens.values.shape[1]
            expected = self.widths.setdefault(name, width) if self._grows else self.widths.get(name)
            if expected != width:
                raise ValueError(f"{record.record_id}: {name} has width {width}, expected {expected}")
        self._waiting.append(record)
        self._bytes += sum(tokens.values.numel() * 4 for tokens in record.modalities.values())
        if self._bytes >= self.shard_bytes:
            self.flush()

    def close(self, about: dict[str, Any]) -> None:
        """Write what waits, the index and, last of all, `records.json` with `about`, the modalities and the number of records."""
        self.flush()
        columns = dict(zip(COLUMNS, map(list, zip(*self.index, strict=True)), strict=True)) if self.index else {name: [] for name in COLUMNS}
        io.write_table(self.folder / INDEX, columns, _schema())
        widths = {name: self.widths[name] for name in sorted(self.widths, key=_rank)} if self._grows else self.widths
        io.write_json(self.folder / ABOUT, {**about, "modalities": widths, "records": len(self.index)})

    def flush(self) -> None:
        """Write what waits as a shard."""
        if not self._waiting:
            return
        together, name = packed(self._waiting, self.widths), f"{self.shards:05d}.pt"
        tensors = {f"{modality}.{part}": tensor for modality, one in together.tokens.items() for part, tensor in one._asdict().items()}
        io.write_tensors(self.folder / name, tensors | _step_labels(self._waiting))
        self.index += [
            (one.record_id, one.label, one.group or one.record_id, one.fault, one.split, name, row) for row, one in enumerate(self._waiting)
        ]
        self._waiting, self._bytes, self.shards = [], 0, self.shards + 1


def _rank(name: str) -> tuple[int, str]:
    return (MODALITIES.index(name) if name in MODALITIES else len(MODALITIES), name)


def _step_labels(records: Sequence[Record]) -> dict[str, Tensor]:
    none = torch.empty(0, dtype=torch.int8)
    found = [none if record.step_label is None else record.step_label for record in records]
    lengths = torch.tensor([0] + [len(one) for one in found])
    return {"step_label.values": torch.cat(found), "step_label.offsets": lengths.cumsum(0)} if lengths.any() else {}


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
            positions, rows = torch.tensor(places).unbind(1)
            taken = self._ragged(shard, name).take(rows)
            if len(places) == count:
                return taken
            lengths[positions] = taken.lengths
            parts.append((positions, taken))
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        values, time = torch.empty(int(offsets[-1]), width), torch.empty(int(offsets[-1]))
        for positions, taken in parts:
            rows = torch.repeat_interleave(offsets[positions] - taken.offsets[:-1], taken.lengths)
            rows += torch.arange(len(rows))
            values.index_copy_(0, rows, taken.values)
            time.index_copy_(0, rows, taken.time)
        return Ragged(values, time, offsets)

    def record(self, record_id: str) -> Record:
        """One record with all that is known of it."""
        row = self.rows[self._place[record_id]]
        tokens = {name: one for name, one in self.tokens([record_id]).items() if len(one.values)}
        steps = self._steps(row["shard"], row["row"])
        told = (row["label"], row["group"], row["fault"], row["split"])
        return Record(record_id, {name: Tokens(one.values, one.time) for name, one in tokens.items()}, *told, steps)

    def lengths(self) -> dict[str, Tensor]:
        """By modality how many tokens each record has, (B,) int64 in the order of `rows`; no token is read."""
        rows = torch.tensor([row["row"] for row in self.rows], dtype=torch.int64)
        shards = [row["shard"] for row in self.rows]
        found = {name: torch.zeros(len(rows), dtype=torch.int64) for name in self.widths}
        for shard in dict.fromkeys(shards):
            here = torch.tensor([one == shard for one in shards])
            for name, lengths in found.items():
                lengths[here] = self._ragged(shard, name).lengths[rows[here]]
        return found

    def _steps(self, shard: str, row: int) -> Tensor | None:
        stored = self._shard(shard)
        if "step_label.offsets" not in stored:
            return None
        first, last = stored["step_label.offsets"][row : row + 2].tolist()
        return stored["step_label.values"][first:last].clone() if last > first else None

    def _ragged(self, shard: str, name: str) -> Ragged:
        stored = self._shard(shard)
        if f"{name}.offsets" in stored:
            return Ragged(*(stored[f"{name}.{part}"] for part in Ragged._fields))
        records = len(next(tensor for key, tensor in stored.items() if key.endswith(".offsets")))
        return Ragged(torch.empty(0, self.widths[name]), torch.empty(0), torch.zeros(records, dtype=torch.int64))

    def _shard(self, shard: str) -> dict[str, Tensor]:
        if shard not in self._open:
            self._open[shard] = io.open_tensors(self.folder / shard)
        return self._open[shard]


class Subset:
    """Some records of one data set, their modalities joined over its stores; a RecordSet that reads what is asked for."""

    def __init__(
        self, stores: Sequence[RecordStore], record_ids: Sequence[str], label: Tensor, fault: Sequence[str] = (), shown: Sequence[str] | None = None
    ) -> None:
        """label: (B,) int8. fault: as of `Records`. shown: the modalities that are read; all by default.

        Raises ValueError where two stores give the same modality.
        """
        self.stores, self.record_ids, self.label, self.fault, self.shown = list(stores), list(record_ids), label, fault, shown
        names = [name for store in stores for name in store.widths]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} comes from two stores ({', '.join(str(store.folder) for store in stores)}); remove one")

    @property
    def samples(self) -> int:
        return len(self.record_ids)

    @property
    def widths(self) -> dict[str, int]:
        return {name: width for store in self.stores for name, width in store.widths.items() if self.shown is None or name in self.shown}

    def take(self, positions: Sequence[int]) -> Records:
        ids = [self.record_ids[position] for position in positions]
        names = self.widths
        tokens = {name: one for store in self.stores for name, one in store.tokens(ids).items() if name in names}
        return Records(ids, self.label[list(positions)], tokens, self._faults(positions))

    def kept(self, positions: Sequence[int]) -> Subset:
        """Those records, still on disk."""
        ids = [self.record_ids[position] for position in positions]
        return Subset(self.stores, ids, self.label[list(positions)], self._faults(positions), self.shown)

    def _faults(self, positions: Sequence[int]) -> Sequence[str]:
        return [self.fault[position] for position in positions] if self.fault else ()

    def whole(self) -> Records:
        """All of them in memory."""
        return self.take(range(self.samples))
