"""Turn raw files into a sample table.

Reads the source of one data set through its adapter, writes data/<dataset>/. Every image is decoded once here, so that whatever comes later
can rely on it: unreadable files are set aside, counted and listed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stages import io, params
from stages.datasets import adapters
from stages.datasets.samples import PACKAGE, Reading, counts
from stages.datasets.table import write_samples
from stages.datasets.verify import Verified, refuse, verify
from stages.errors import OK, guarded
from stages.progress import progress


def main(dataset: str) -> int:
    folder = Path("data", dataset)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    entry = params.load().entry("datasets", dataset)
    reading = adapters.read(entry.adapter, Path(entry.source), images, entry.options, at=("datasets", dataset))
    reading = _of_categories(reading, entry.categories, dataset)
    with progress(f"reading {dataset}", len(reading.samples)) as advance:
        verified = verify(reading, advance)
    for problem in verified.problems:
        print(f"{problem.severity} {problem.code}: {problem.what}. {problem.fix}", file=sys.stderr)
    refuse(reading, verified)
    if reading.root != images:
        io.write_text(images / "README.txt", f"The images stay where they are: {_root(reading)}\n")
    write_samples(folder, verified.rows)
    io.write_json(folder / "dataset.json", _about(dataset, entry.adapter, reading, verified))
    return OK


def _of_categories(reading: Reading, wanted: list[str] | None, dataset: str) -> Reading:
    """The reading with the samples of these categories only."""
    known = {sample.category for sample in reading.samples}
    for category in wanted or ():
        if category not in known:
            raise params.ParamsError(f"datasets.{dataset}.categories: no category {category!r}{params.nearest(category, known)}")
    return reading._replace(samples=[sample for sample in reading.samples if sample.category in wanted]) if wanted else reading


def _root(reading: Reading) -> str:
    return f"{PACKAGE}{reading.package}" if reading.package else reading.root.as_posix()


def _about(dataset: str, adapter: str, reading: Reading, verified: Verified) -> dict[str, Any]:
    samples = [row.sample for row in verified.rows]
    return {
        "dataset": dataset,
        "adapter": adapter,
        "root": _root(reading),
        "about": dict(reading.about),
        "counts": counts((sample.category, sample.split, sample.label) for sample in samples),
        "masks": any(sample.mask_path for sample in samples),
        "mask_threshold": reading.mask_threshold,
        "quarantined": verified.quarantined,
        "problems": [problem._asdict() for problem in verified.problems],
    }


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
