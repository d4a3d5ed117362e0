"""The kind `stored`: no network runs. The tokens of all modalities lie in `.pt` files already, one a record, and are packed into one store.

What a file may hold is said in stages/datasets/record_files.py. The label, group, fault and split of the sample table count, where a file says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.datasets.record_packing import Packed, pack_rows


def pack(rows: Sequence[Mapping[str, Any]], root: Path, folder: Path, about: dict[str, Any], *, as_tokens: bool = False) -> Packed:
    """The files of a sample table (its column `stored_path`, relative to `root`) as the store `folder`.

    as_tokens: video (T, K, D) as T * K tokens of width D, not T of width K * D.
    """
    return pack_rows(rows, root, folder, as_tokens=as_tokens, about={**about, "weights": "none"})
