"""The feature store: `features/<dataset>/<encoder>/` holds a few `.pt` shards a category, `index.parquet` and `encoder.json`.

Rows stream in through one buffer of at most a shard, and out through memory maps that touch only the rows asked for, so neither side's
memory grows with the data set. `encoder.json` is written last: a folder without it is not a store. The same input gives the same bytes, and
no file mentions anything that differs between two clones of a project.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages import io
from stages.datasets.tiles import Grid

if TYPE_CHECKING:
    from stages.types import Features

INDEX = "index.parquet"
ABOUT = "encoder.json"


class ShardWriter:
    """Streams rows into shards. `counts` ({category: rows to come}) sizes each buffer exactly, so that no shard is copied to be trimmed."""

    def __init__(self, folder: Path, counts: dict[str, int], shard_mb: int) -> None:
        self.folder, self.shard_bytes = folder, shard_mb * 2**20
        self._left = dict(counts)
        self._names = _file_names(list(counts))
        self._shards = dict.fromkeys(counts, 0)
        self._buffer: dict[str, Tensor] = {}
        self._filled, self._capacity = 0, 0
        self._index: list[tuple[str, str, str, int]] = []  # sample_id, category, shard, row

    def add(self, category: str, sample_ids: list[str], tensors: Features) -> None:
        """Append rows of one category, in order. A category must be finished before the next begins."""
        start = 0
        while start < len(sample_ids):
            if not self._buffer:
                self._open(category, tensors)
            count = min(len(sample_ids) - start, self._capacity - self._filled)
            for name, tensor in tensors.items():
                self._buffer[name][self._filled : self._filled + count] = tensor[start : start + count]
            shard = self._shard_name(category)
            ids = sample_ids[start : start + count]
            self._index += [(sample_id, category, shard, self._filled + row) for row, sample_id in enumerate(ids)]
            self._filled += count
            self._left[category] -= count
            start += count
            if self._filled == self._capacity:
                self._flush(category)

    def close(self, about: dict[str, Any]) -> None:
        """Write the index and, last of all, `encoder.json`."""
        unfinished = {category: left for category, left in self._left.items() if left}
        if unfinished:
            raise ValueError(f"{self.folder}: rows are missing, {unfinished}; the store was not completed")
        write_index(self.folder, self._index)
        io.write_json(self.folder / ABOUT, about)

    def _open(self, category: str, tensors: Features) -> None:
        row_bytes = sum(tensor[0].numel() * tensor.element_size() for tensor in tensors.values())
        self._capacity = min(self._left[category], max(1, self.shard_bytes // row_bytes))
        if self._capacity < 1:
            raise ValueError(f"{self.folder}: more rows of category {category!r} came than were announced")
        self._buffer = {name: torch.empty(self._capacity, *tensor.shape[1:], dtype=tensor.dtype) for name, tensor in tensors.items()}
        self._filled = 0

    def _flush(self, category: str) -> None:
        io.write_tensors(self.folder / self._shard_name(category), self._buffer)
        self._buffer = {}
        self._shards[category] += 1

    def _shard_name(self, category: str) -> str:
        return f"{self._names[category]}-{self._shards[category]:03d}.pt"


class Store:
    """Reads a store by sample id. Opens nothing until the first row is asked for, so that it travels to another process as a path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = io.read_json(folder / ABOUT)
        self._rows: dict[str, tuple[str, int]] = {}
        self._open: dict[str, dict[str, Tensor]] = {}

    @property
    def has_masks(self) -> bool:
        return "mask" in self.about["layers"]

    @property
    def grid(self) -> Grid | None:
        """How the images were cut into the tiles that are the rows, or None where a row is an image."""
        return Grid.of(self.about)

    def categories(self) -> dict[str, list[str]]:
        """{category: its sample ids}, in stored order."""
        grouped: dict[str, list[str]] = {}
        for row in io.read_table(self.folder / INDEX):
            grouped.setdefault(row["category"], []).append(row["sample_id"])
        return grouped

    def read(self, sample_ids: list[str], names: list[str]) -> Features:
        """{name: (B, ...)} in the order of `sample_ids`; names that are not in the store are left out. float16 comes back as float32."""
        by_shard: dict[str, list[int]] = {}
        rows = [self._row(sample_id) for sample_id in sample_ids]
        for position, (shard, _) in enumerate(rows):
            by_shard.setdefault(shard, []).append(position)
        wanted = [name for name in names if name in self.about["layers"]]
        return {name: self._gather(name, rows, by_shard) for name in wanted}

    def _gather(self, name: str, rows: list[tuple[str, int]], by_shard: dict[str, list[int]]) -> Tensor:
        gathered: Tensor | None = None
        for shard, positions in by_shard.items():
            stored = self._shard(shard)[name]
            if gathered is None:
                dtype = torch.float32 if stored.dtype == torch.float16 else stored.dtype
                gathered = torch.empty(len(rows), *stored.shape[1:], dtype=dtype)
            gathered[positions] = stored[[rows[position][1] for position in positions]].to(gathered.dtype)
        return gathered if gathered is not None else torch.empty(0, *self.about["layers"][name]["shape"])

    def _row(self, sample_id: str) -> tuple[str, int]:
        if not self._rows:
            self._rows = {row["sample_id"]: (row["shard"], row["row"]) for row in io.read_table(self.folder / INDEX)}
        if sample_id not in self._rows:
            raise KeyError(f"{self.folder} holds no sample {sample_id!r}; it was made from another sample table. Run `dvc repro extract`")
        return self._rows[sample_id]

    def _shard(self, name: str) -> dict[str, Tensor]:
        if name not in self._open:
            self._open[name] = io.open_tensors(self.folder / name)
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": {}, "_open": {}}


def write_index(folder: Path, rows: list[tuple[str, str, str | None, int | None]]) -> None:
    """index.parquet: sample_id, category, shard, row, in stored order; shard and row are null where nothing is stored."""
    import pyarrow

    schema = pyarrow.schema([("sample_id", "string"), ("category", "string"), ("shard", "string"), ("row", "int64")])
    columns = list(zip(*rows, strict=True)) or [[], [], [], []]
    io.write_table(folder / INDEX, dict(zip(schema.names, map(list, columns), strict=True)), schema)


def row_bytes(shapes: dict[str, tuple[tuple[int, ...], str]]) -> int:
    """Bytes of one sample in the store. shapes: {name: (shape, dtype name)}."""
    size = {"float32": 4, "float16": 2, "uint8": 1, "bool": 1}
    return sum(math.prod(shape) * size[dtype] for shape, dtype in shapes.values())


def _file_names(categories: list[str]) -> dict[str, str]:
    """A file name for each category; where its own characters do not do on every system, a hash keeps names apart."""
    names = {}
    for category in categories:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", category)[:80]
        # upper case too: two names that differ in case alone are one file on Windows and macOS
        changed = plain != category or plain != plain.lower()
        names[category] = f"{plain}-{hashlib.sha256(category.encode()).hexdigest()[:8]}" if changed else plain
    return names
