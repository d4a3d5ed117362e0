"""Packed shards against a `.pt` for each record: what one epoch over N records costs to read, and what packing them costs once.

    python -m benchmarks.record_packs --records 20000

Both sides end with the same numbers in the same layout: batches of ragged tensors, records in a random order, as training asks for them. Files are read
twice over, the page cache being warm for both sides; the faster pass counts. `load_foreign` is how Assay reads files of others; bare `torch.load` of the
same files is shown beside it, so that the gain is not one over our own checks.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from stages.datasets.record_files import read_record, write_record
from stages.datasets.record_lists import Listing, scanned
from stages.datasets.record_packing import pack
from stages.datasets.record_store import RecordStore, Subset
from stages.datasets.records import Record, Records, Tokens, packed

WIDTHS = {"text": 384, "image": 512}
TOKENS = {"text": 4, "image": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary folder by default")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.folder) as place:
        print(measured(Path(place), asked.records, asked.batch))


def measured(place: Path, records: int, batch: int) -> str:
    """The table. Raises ValueError where both sides do not read the same."""
    write_files(place / "files", records)
    found = scanned(place / "files")
    order = torch.randperm(records, generator=torch.Generator().manual_seed(0)).tolist()
    started = time.perf_counter()
    pack(found, place / "store", say=lambda text: None, resume=place / "resume", quiet=True)
    packing = time.perf_counter() - started
    store = RecordStore(place / "store")
    subset = Subset([store], store.record_ids, torch.tensor([row["label"] for row in store.rows], dtype=torch.int8))
    _require_same(subset.take(order[:batch]), _of_files(found, order[:batch]))
    safe = fastest(lambda: _batches(order, batch, lambda part: _of_files(found, part)))
    bare = fastest(lambda: _batches(order, batch, lambda part: [torch.load(found.file(found.items[at]), weights_only=True) for at in part]))  # noqa: TID251
    shards = fastest(lambda: _batches(order, batch, subset.take))
    lines = ["| read | seconds an epoch | times the shards |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {cost:.2f} | {cost / shards:.1f} |" for name, cost in ((".pt through the safe loader", safe), (".pt, bare torch.load", bare))]
    size = sum(path.stat().st_size for path in (place / "store").iterdir()) / sum(path.stat().st_size for path in (place / "files").rglob("*.pt"))
    tail = f"{records} records; packing took {packing:.1f} s once ({records / packing:.0f} files a second), the store has {size:.2f} of the files' bytes"
    return "\n".join([*lines, f"| packed shards | {shards:.2f} | 1 |", "", tail])


def write_files(folder: Path, records: int) -> None:
    """Pairs of a picture and a note, 1,000 in a folder."""
    draw = torch.Generator().manual_seed(0)
    for number in range(records):
        modalities = {name: Tokens(torch.randn(TOKENS[name], width, generator=draw), torch.zeros(TOKENS[name])) for name, width in WIDTHS.items()}
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, Record(path.stem, modalities, number % 2), "image-text")


def fastest(read: Callable[[], Iterator[object]], times: int = 2) -> float:
    """Seconds of the faster of a few passes."""
    costs = []
    for _ in range(times):
        started = time.perf_counter()
        for _ in read():
            pass
        costs.append(time.perf_counter() - started)
    return min(costs)


def _batches(order: list[int], size: int, take: Callable[[list[int]], object]) -> Iterator[object]:
    for start in range(0, len(order), size):
        yield take(order[start : start + size])


def _of_files(found: Listing, positions: list[int]) -> Records:
    return packed([read_record(found.file(found.items[at])).record for at in positions], WIDTHS)


def _require_same(one: Records, other: Records) -> None:
    for name in WIDTHS:
        if one.record_id != other.record_id or not torch.equal(one.tokens[name].values, other.tokens[name].values):
            raise ValueError("files and shards do not read the same")


if __name__ == "__main__":
    main()
