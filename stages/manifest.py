"""Draw train, val and test from the sample table, leaks removed.

Reads data/<dataset>/samples.parquet, writes data/<dataset>/manifest.json. It looks at no features, so a new encoder
changes no manifest. Pixels are read only for pairs that the difference hash suspects.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stages import io, params
from stages.datasets import duplicates
from stages.datasets.images import read_image
from stages.datasets.samples import counts, root_of
from stages.datasets.splits import Rule, Split, split
from stages.datasets.table import HASH
from stages.errors import OK, guarded


def main(dataset: str) -> int:
    folder = Path("data") / dataset
    protocol = params.load().protocol
    rule = Rule(protocol.split_seed, protocol.val_fraction, protocol.test_fraction)
    rows = io.read_table(folder / "samples.parquet")
    pairs = _find_pairs(rows, root_of(folder / "dataset.json"))
    drawn = split(dataset, rows, pairs, rule)
    io.write_json(folder / "manifest.json", _content(dataset, rule, rows, pairs, drawn))
    for leak in drawn.leaks:
        print(f"E203 {leak['sample_id']} is left out of train: {leak['reason']} of {leak['of']}", file=sys.stderr)
    return OK


def _find_pairs(rows: list[dict[str, Any]], root: Path) -> list[duplicates.Pair]:
    content, hashes, categories = ([row[column] for row in rows] for column in ("content_hash", HASH, "category"))
    return duplicates.find(content, hashes, categories, lambda position: read_image(root / rows[position]["image_path"]))


def _content(dataset: str, rule: Rule, rows: list[dict[str, Any]], pairs: list[duplicates.Pair], drawn: Split) -> dict[str, Any]:
    near = {"hash_distance": duplicates.HASH_DISTANCE, "similarity": duplicates.SIMILAR, "difference": duplicates.DIFFERENT}
    exact = sum(pair.exact for pair in pairs)
    return {
        "dataset": dataset,
        "rule": rule._asdict() | {"near_duplicates": near},
        "counts": counts((sample["category"], sample["split"], sample["label"]) for sample in drawn.samples),
        "duplicates": {"exact": exact, "near": len(pairs) - exact},
        "leaks": drawn.leaks,
        "samples": drawn.samples,
    }


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
