"""The kind `facts`: no network runs. What the sample table says of a record beside its media (setpoints, material, a session) becomes one token.

Such a token is a control, not a sensor: a model that sees nothing else and does well shows that the setting tells the label. Mark its extract `control: true`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stages.datasets.record_store import StoreWriter
from stages.datasets.records import FACT, Record, Tokens
from stages.params import ParamsError, nearest


def pack(
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    modality: str,
    about: dict[str, Any],
    *,
    nominal: dict[str, tuple[float, float]] | None = None,
    levels: dict[str, list[str]] | None = None,
) -> int:
    """Write the store `folder`; returns how many records have all facts. rows: of the sample table.

    nominal: by number its centre and spread, an engineer's figures; a token holds (value - centre) / spread. levels: by name what it can be, which is one
    column each; anything else is none of them. Raises ParamsError for a fact that the table has not.
    """
    nominal, levels = nominal or {}, levels or {}
    known = [name.removeprefix(FACT) for name in (rows[0] if rows else ()) if name.startswith(FACT)]
    if unknown := [name for name in (*nominal, *levels) if name not in known]:
        raise ParamsError(f"the records have no fact {unknown[0]!r}{nearest(unknown[0], known)}")
    if not nominal and not levels:
        raise ParamsError(f"the encoder of {modality} names no fact. Known: {', '.join(known)}")
    writer, told = StoreWriter(folder, {modality: len(nominal) + sum(map(len, levels.values()))}), 0
    for row in rows:
        if any(row[f"{FACT}{name}"] is None for name in (*nominal, *levels)):
            continue
        values = [(float(row[f"{FACT}{name}"]) - centre) / spread for name, (centre, spread) in nominal.items()]
        values += [float(str(row[f"{FACT}{name}"]) == level) for name, own in levels.items() for level in own]
        token = Tokens(torch.tensor([values], dtype=torch.float32), torch.zeros(1))
        writer.add(Record(row["record_id"], {modality: token}, row["label"], row["group"], row["fault"], row["split"]))
        told += 1
    writer.close({**about, "weights": "none"})
    return told
