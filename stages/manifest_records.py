"""Draw train, val and test from the records, whole groups and both labels in each, copies on one side.

Reads data/<dataset>/samples.parquet, writes data/<dataset>/manifest.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stages import io, params
from stages.datasets.record_splits import Rule, counts, split
from stages.errors import OK, guarded


def main(dataset: str) -> int:
    folder = Path("data", dataset)
    protocol = params.load().record_task.protocol
    rule = Rule(protocol.split_seed, protocol.val_fraction, protocol.test_fraction)
    drawn = split(dataset, io.read_table(folder / "samples.parquet"), rule)
    content = {
        "dataset": dataset,
        "rule": rule._asdict(),
        "counts": counts(drawn.samples),
        "leaks": drawn.leaks,
        "samples": drawn.samples,
    }
    io.write_json(folder / "manifest.json", content)
    for leak in drawn.leaks:
        print(
            f"{leak['record_id']} is taken out of {leak['removed_from']}: it shares a group or a file with {leak['shares_with']}",
            file=sys.stderr,
        )
    return OK


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
