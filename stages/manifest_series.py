"""Draw train, val, threshold and test from the recordings, in order of time, leaks removed.

Reads data/<dataset>/recordings.json and the labels, writes data/<dataset>/manifest.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stages import io, params
from stages.datasets.recordings import Region, label_of
from stages.datasets.series_splits import SPLITS, Rule, split
from stages.errors import OK, guarded


def main(dataset: str) -> int:
    folder = Path("data", dataset)
    protocol = params.load().signals.protocol
    rule = Rule(protocol.train_fraction, protocol.val_fraction)
    recordings = io.read_json(folder / "recordings.json")["recordings"]
    segments, excluded = split(recordings, rule)
    content = {
        "dataset": dataset,
        "rule": rule._asdict(),
        "counts": counts(recordings, segments),
        "excluded": [part._asdict() for part in excluded],
        "segments": segments,
    }
    io.write_json(folder / "manifest.json", content)
    for part in excluded:
        print(f"{part.recording_id}: steps {part.start} to {part.stop - 1} are left out: {part.reason}", file=sys.stderr)
    return OK


def counts(recordings: list[dict[str, Any]], segments: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """category -> split -> segments, steps, anomalous steps and regions that lie within."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    rows = {row["recording_id"]: row for row in recordings}
    labels = {name: label_of([Region(**region) for region in row["regions"]], row["steps"]) for name, row in rows.items()}
    for segment in segments:
        place = slice(segment["start"], segment["stop"])
        empty = {name: dict.fromkeys(("segments", "steps", "anomalous", "regions"), 0) for name in SPLITS}
        number = table.setdefault(segment["category"], empty)[segment["split"]]
        number["segments"] += 1
        number["steps"] += place.stop - place.start
        number["anomalous"] += int(labels[segment["recording_id"]][place].sum())
        number["regions"] += sum(place.start <= region["start"] < place.stop for region in rows[segment["recording_id"]]["regions"])
    return table


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
