"""Every model beside its reference, with the same weights on the same input: docs/parity.md.

Run by `make parity`, in an environment that holds both. Each file here compares one model; models that are written from their papers alone, because
the reference has no licence or one that would bind, have none.

    python -m benchmarks.parity -o docs/parity.md
"""

from __future__ import annotations

import argparse
import importlib
from importlib.metadata import version
from pathlib import Path

from benchmarks.parity.row import Parity

HEAD = """\
# Parity

The same weights copied into both, the same random input, the largest absolute difference (relative where the row says so). Where two
implementations must differ, the note says why. Measured with anomalib {anomalib}, torch {torch}; made by `make parity`, one row again by
`python -m benchmarks.parity MODEL`.

| model | reference | compared | largest difference | tolerance | |
| --- | --- | --- | ---: | ---: | --- |
"""
PAPER_ALONE = """
Written from the paper alone, without a look at code, and compared with none: STFPM (reference GPL-3.0), U-Flow (AGPL-3.0), CS-Flow and CFA (no
licence). PatchCore and PaDiM are compared in whole runs: [beside anomalib](peers.md).
"""


def modules(names: list[str]) -> list[str]:
    found = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__main__", "row"))
    if unknown := sorted(set(names) - set(found)):
        raise SystemExit(f"no comparison of {', '.join(unknown)}. Known: {', '.join(found)}")
    return names or found


def line(row: Parity) -> str:
    agreed = row.difference <= row.tolerance
    mark = "" if agreed or row.note else " **unexplained**"
    note = row.note.replace("|", "\\|")
    return f"| {row.model} | {row.reference} | {row.compared.replace('|', chr(92) + '|')} | {row.difference:.1e}{mark} | {row.tolerance:.0e} | {note} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("models", nargs="*", help="files of this folder; all by default")
    parser.add_argument("-o", "--out", type=Path, default=None, help="write the page here; without it the rows are printed")
    arguments = parser.parse_args()
    rows = [row for name in modules(arguments.models) for row in importlib.import_module(f"benchmarks.parity.{name}").compare()]
    page = HEAD.format(anomalib=version("anomalib"), torch=version("torch")) + "\n".join(map(line, rows)) + "\n" + PAPER_ALONE
    print(page)
    if arguments.out:
        arguments.out.write_text(page, encoding="utf-8")
    return int(any(row.difference > row.tolerance and not row.note for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
