"""The kind `facts`: no network runs. What the sample table says of a record beside its media (setpoints, material, a session) becomes one token.

Such a token is a control, not a sensor: a model that sees nothing else and does well shows that the setting tells the label. Mark its extract `control: true`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from stages.datasets.record_store import StoreWriter
from stages.datasets.records import FACT, Record, Tokens
from stages.datasets.samples import DataError
from stages.params import ParamsError, nearest


def pack(
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    modality: str,
    about: dict[str, Any],
    *,
    nominal: dict[str, tuple[float, Annotated[float, Field(gt=0)]]] | None = None,
    levels: dict[str, list[str]] | None = None,
    hashed: dict[str, Annotated[int, Field(ge=1)]] | None = None,
) -> int:
    """Write the store `folder`; returns how many records have all facts. rows: of the sample table.

    nominal: by number its centre and spread, an engineer's figures; a token holds (value - centre) / spread. levels: by name what it can be, which is one
    column each; anything else is none of them. hashed: by name of what can be anything (a session) into how many columns; each value is one of them, and
    two may share one. Raises ParamsError for a fact that the table has not, DataError (E436) where no record has them all.
    """
    nominal, levels, hashed = nominal or {}, levels or {}, hashed or {}
    names = (*nominal, *levels, *hashed)
    known = [name.removeprefix(FACT) for name in (rows[0] if rows else ()) if name.startswith(FACT)]
    if unknown := [name for name in names if name not in known]:
        raise ParamsError(f"the records have no fact {unknown[0]!r}{nearest(unknown[0], known)}")
    if not names:
        raise ParamsError(f"the encoder of {modality} names no fact. Known: {', '.join(known)}")
    writer, told = StoreWriter(folder, {modality: len(nominal) + sum(map(len, levels.values())) + sum(hashed.values())}), 0
    for row in rows:
        if any(row[f"{FACT}{name}"] is None for name in names):
            continue
        values = [(float(row[f"{FACT}{name}"]) - centre) / spread for name, (centre, spread) in nominal.items()]
        values += [float(str(row[f"{FACT}{name}"]) == level) for name, own in levels.items() for level in own]
        values += [float(column == bucket(row[f"{FACT}{name}"], size)) for name, size in hashed.items() for column in range(size)]
        token = Tokens(torch.tensor([values], dtype=torch.float32), torch.zeros(1))
        writer.add(Record(row["record_id"], {modality: token}, row["label"], row["group"], row["fault"], row["split"]))
        told += 1
    if not told:
        raise DataError(f"E436 no record has all of {', '.join(names)}. Fill them in, or take the entry of {modality} out of records.extracts")
    writer.close({**about, "weights": "none"})
    return told


def bucket(value: Any, size: int) -> int:
    """In 0..size - 1, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "big") % size
