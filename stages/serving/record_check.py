"""`assay data check DIR --records`: what a folder of records holds, what is wrong with it, and how it would be split. Changes nothing."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import params
from stages.datasets import record_adapters, record_checks, record_splits
from stages.datasets.media import kind_of
from stages.datasets.record_adapters import STORED, RecordRow
from stages.datasets.record_inspection import LABELS
from stages.datasets.samples import DataError, Problem
from stages.encoders import media
from stages.params import RecordTask

STORED_ADAPTER, MEDIA_ADAPTER = "stored_records", "media_folder"
BOUND = ("series",)  # encoders of other data sets name their columns, so each data set has one of its own


class Examined(NamedTuple):
    source: str
    adapter: str
    modalities: dict[str, int]  # records that have it; "stored" alone for files of tokens
    kinds: dict[str, str]  # of media, by modality, as the ending of its first file says; "" where it says nothing
    widths: dict[str, int]  # of stored tokens, by modality; empty for raw media
    labels: dict[str, int]
    faults: dict[str, int]
    groups: int
    facts: list[str]  # what is known of records beside their media
    splits: dict[str, dict[str, int]]  # train, val, test: normal and anomalous records; empty where they cannot be drawn
    problems: list[Problem]

    @property
    def ok(self) -> bool:
        """Whether models can be trained and judged on it."""
        return not any(problem.severity == "error" for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **self._asdict(), "problems": [problem._asdict() for problem in self.problems]}


def adapter_of(source: Path) -> str:
    """That of a data set whose layout a folder has; stored_records for a folder of `.pt` files or a JSON list of them, else media_folder."""
    if source.is_dir() and (found := record_adapters.recognised(source)):
        return found
    stored = source.suffix == ".json" or (source.is_dir() and next(source.rglob("*.pt"), None) is not None)
    return STORED_ADAPTER if stored else MEDIA_ADAPTER


def examine(source: Path, adapter: str | None = None, name: str = "records") -> Examined:
    """Raises DataError where there is nothing that could be used. name: of the data set, for messages."""
    adapter = adapter or adapter_of(source)
    with tempfile.TemporaryDirectory() as folder:
        reading = record_adapters.read(adapter, source, Path(folder), {}, at=("records", "datasets", name))
        checked = record_checks.check(reading)
    rows, problems = checked.rows, list(checked.problems)
    splits: dict[str, dict[str, int]] = {}
    try:
        splits = record_splits.counts(record_splits.split(name, _table(rows, reading.modalities), _rule()).samples)
    except DataError as error:
        problems.append(Problem(*_parts(str(error))))
    labels = Counter(LABELS[row.label] for row in rows)
    return Examined(
        source.as_posix(),
        adapter,
        {modality: sum(modality in row.paths for row in rows) for modality in reading.modalities},
        {modality: _kind(modality, rows) for modality in reading.modalities},
        dict(reading.about.get("modalities", {})) if list(reading.modalities) == [STORED] else {},
        {label: labels[label] for label in LABELS.values()},
        dict(Counter(row.fault for row in rows if row.fault).most_common()),
        len({row.group for row in rows}),
        list(dict.fromkeys(name for row in rows for name in row.facts)),
        splits,
        problems,
    )


def encoder_for(task: RecordTask, modality: str, kind: str = "") -> tuple[str, dict[str, Any]]:
    """Name and entry of the encoder that a new data set gets for one modality: that of another data set, or a plain one.

    kind: of media, which counts where the modality has a name of its own, such as image_after.

    Raises ParamsError for a modality that no encoder reads.
    """
    used = [extract.encoder for extract in task.extracts.values() if extract.modality == modality]
    if used and modality not in BOUND:
        return used[0], task.entry("encoders", used[0]).model_dump()
    if modality not in media.DEFAULTS and kind:
        return encoder_for(task, kind)
    if modality not in media.DEFAULTS:
        known = ", ".join(dict.fromkeys([*(extract.modality for extract in task.extracts.values()), *media.DEFAULTS]))
        raise params.ParamsError(
            f"no encoder reads a modality {modality!r}; known: {known}. Rename its column, or write its entries by hand"
        )
    entry = media.DEFAULTS[modality]
    same = [name for name, other in task.encoders.items() if other.model_dump() == entry]
    free = (
        name for name in (f"plain-{modality}", *(f"plain-{modality}-{number}" for number in range(2, 100))) if name not in task.encoders
    )
    return (same or [next(free)])[0], entry


def _kind(modality: str, rows: Sequence[RecordRow]) -> str:
    return next((kind_of(Path(row.paths[modality])) or "" for row in rows if modality in row.paths), "")


def _table(rows: Sequence[RecordRow], modalities: Sequence[str]) -> list[dict[str, Any]]:
    """As `prepare_records` would write it."""
    named = ("record_id", "label", "fault", "group", "split")
    return [
        {name: getattr(row, name) for name in named} | {f"{modality}_hash": row.content.get(modality) for modality in modalities}
        for row in rows
    ]


def _rule() -> record_splits.Rule:
    """That of params.yaml where there is one."""
    task = params.load().records if params.PATH.is_file() else None
    return record_splits.Rule(
        *(task.protocol.split_seed, task.protocol.val_fraction, task.protocol.test_fraction) if task else (0, 0.15, 0.15)
    )


def _parts(text: str) -> tuple[str, str, str, str, str]:
    code, _, rest = text.partition(" ")
    what, _, fix = rest.partition("; ")
    return code, "error", "", what, fix[:1].upper() + fix[1:]


def render(found: Examined) -> str:
    """Counts, then each problem with what mends it, then what would happen."""
    of = ", ".join(f"{count} {label}" for label, count in found.labels.items() if count)
    lines = [f"{found.source}: {sum(found.labels.values())} records in {found.groups} groups, {of} (adapter {found.adapter})"]
    if found.widths:
        lines.append(f"  stored tokens: {', '.join(f'{name} of width {width}' for name, width in found.widths.items())}")
    else:
        lines += [f"  {modality}: {count} records" for modality, count in found.modalities.items()]
    if found.faults:
        lines.append(f"  faults: {', '.join(f'{name} {count}' for name, count in found.faults.items())}")
    if found.facts:
        lines.append(f"  facts: {', '.join(found.facts)}")
    lines += [f"{problem.severity} {problem.code} {problem.path}: {problem.what}. {problem.fix}" for problem in found.problems]
    for split, counts in found.splits.items():
        lines.append(f"  {split}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    return "\n".join([*lines, "ready for training" if found.ok else "models cannot be trained and judged until each error is mended"])
