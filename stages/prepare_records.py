"""Turn raw media, or embeddings that are stored already, into a table of records.

Reads the source of one data set through its adapter, writes data/<dataset>/samples.parquet and data/<dataset>/dataset.json; a generated data set
draws its media into data/<dataset>/media/. Every file is hashed here, so that copies are known before anything is learnt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages import io, params
from stages.datasets import record_adapters
from stages.datasets.record_adapters import RecordReading
from stages.datasets.record_checks import CheckedRecords, check
from stages.datasets.records import FACT
from stages.errors import OK, guarded
from stages.progress import progress


def main(dataset: str) -> int:
    folder = Path("data", dataset)
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    entry = params.load().record_task.entry("datasets", dataset)
    if entry.categories:
        raise params.ParamsError(f"records.datasets.{dataset}.categories: records have no categories. Remove the key")
    reading = record_adapters.read(entry.adapter, Path(entry.source), media, entry.options, at=("records", "datasets", dataset))
    with progress(f"checking {dataset}", len(reading.rows)) as advance:
        checked = check(reading, advance)
    for problem in checked.problems:
        print(f"{problem.severity} {problem.code}: {problem.what}. {problem.fix}", file=sys.stderr)
    if not reading.root.is_relative_to(media):
        io.write_text(media / "README.txt", f"The files stay where they are: {reading.root.as_posix()}\n")
    _write_table(folder / "samples.parquet", reading.modalities, checked)
    io.write_json(folder / "dataset.json", _about(dataset, entry.adapter, reading, checked))
    return OK


def _write_table(path: Path, modalities: Sequence[str], checked: CheckedRecords) -> None:
    import pyarrow

    columns: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in checked.rows] for name in ("record_id", "label", "fault", "group", "split")
    }
    columns |= {f"{name}_path": [row.paths.get(name) for row in checked.rows] for name in modalities}
    columns |= {f"{name}_hash": [row.content.get(name) for row in checked.rows] for name in modalities}
    facts = {f"{FACT}{name}": [row.facts.get(name) for row in checked.rows] for name in dict.fromkeys(name for row in checked.rows for name in row.facts)}
    kinds = {name: pyarrow.float64() for name, values in facts.items() if not any(isinstance(value, str) for value in values)}
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.int8() if name == "label" else pyarrow.string())) for name in columns | facts])
    io.write_table(path, columns | facts, schema)


def _about(dataset: str, adapter: str, reading: RecordReading, checked: CheckedRecords) -> dict[str, Any]:
    present = {name: sum(name in row.paths for row in checked.rows) for name in reading.modalities}
    return {
        "dataset": dataset,
        "adapter": adapter,
        "root": reading.root.as_posix(),
        "modalities": list(reading.modalities),
        "about": dict(reading.about),
        "counts": {"records": len(checked.rows), "present": present, "files": checked.files, "lost": checked.lost},
        "problems": [problem._asdict() for problem in checked.problems],
    }


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
