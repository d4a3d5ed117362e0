"""The two sides that `assay drift` compares: records of a split, and new ones from a folder of files, a folder of media or a packed store.

New media go through the encoders that filled the feature store, rebuilt from what it says of them, so that a stored record and the same one live are the
same numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages import errors, io
from stages.datasets import record_adapters, record_sets, setting_range
from stages.datasets.record_adapters import STORED, RecordRow
from stages.datasets.record_intake import Intake, grouped
from stages.datasets.record_lists import listing
from stages.datasets.record_store import ABOUT, INDEX, RecordStore
from stages.datasets.records import Record, Records, Tokens, packed
from stages.datasets.samples import DataError, Problem, root_of
from stages.datasets.setting_range import Facts
from stages.serving.record_check import STORED_ADAPTER, adapter_of

if TYPE_CHECKING:
    from stages.encoders.media.encoder import TokenEncoder
    from stages.params import Params


class Side(NamedTuple):
    """B records with all that is compared of them."""

    said: str  # where they are from
    records: Records
    group: list[str]  # (B,) what is not independent: a session, a shift
    facts: list[Facts]  # (B,) {} where nothing is known
    levels: dict[str, np.ndarray]  # by sensor (B,), NaN where unknown: its median while the arc burns, where tokens are taken relative to it
    left_out: int  # files that could not be read
    notes: Sequence[str] = ()  # what the layout of new records had to say


def of_split(dataset: str, split: str, normal_alone: bool = False, project: Path = Path()) -> Side:
    """Raises UserError for no such split, or one without records."""
    if split not in record_sets.SPLITS:
        raise errors.UserError(f"--against must be one of {', '.join(record_sets.SPLITS)}, got {split!r}")
    rows = [row for row in record_sets.rows_of(dataset, split, project) if not normal_alone or row["label"] == 0]
    if not rows:
        raise errors.UserError(
            f"{dataset} has no {'normal ' if normal_alone else ''}records in {split}. Look at data/{dataset}/manifest.json"
        )
    known = setting_range.facts_of(dataset, project)
    records = record_sets.subset_of(rows, dataset, project).whole()
    logs = _logs_of(dataset, records.record_id, project)
    levels = _levels(logs, about_of(dataset, project))
    return Side(
        split, records, [row["group"] or row["record_id"] for row in rows], [known.get(one, {}) for one in records.record_id], levels, 0
    )


def of_new(params: Params, dataset: str, source: Path, project: Path = Path()) -> Side:
    """From a store, `.pt` files or a list of them, or media in any layout that `assay add --records` knows. Raises UserError."""
    about = about_of(dataset, project)
    widths = {name: width for one in about.values() for name, width in one["modalities"].items()}
    if (source / ABOUT).is_file() and (source / INDEX).is_file():
        side = _of_store(source, widths)
    elif not source.exists():
        raise errors.Missing(
            f"{source} is not here. Give a folder of media or of .pt files, a list of them, or a store that `assay records pack` made"
        )
    elif adapter_of(source) == STORED_ADAPTER:
        side = _of_files(source, widths, bool(about.get(STORED, {}).get("entry", {}).get("as_tokens")))
    else:
        side = _of_media(params, dataset, source, about)
    for name, tokens in side.records.tokens.items():
        if len(tokens.values) and tokens.values.shape[1] != widths[name]:
            raise errors.UserError(
                f"{source}: {name} has width {tokens.values.shape[1]}, in {dataset} it has {widths[name]}. Use the same encoder"
            )
    if not side.records.samples or not side.records.present.any():
        raise errors.UserError(
            f"{source} holds no record with any modality of {dataset} ({', '.join(widths)}). Look at it with `assay data check --records`"
        )
    return side


def about_of(dataset: str, project: Path = Path()) -> dict[str, dict[str, Any]]:
    """What each store that is no control says of itself, by the name of its folder."""
    return {store.folder.name: store.about for store in record_sets.open_stores(dataset, project)}


def _of_store(source: Path, widths: Mapping[str, int]) -> Side:
    store = RecordStore(source)
    records = [store.record(one) for one in store.record_ids]
    return Side(source.as_posix(), _packed(records, widths), [one.group or one.record_id for one in records], [{}] * len(records), {}, 0)


def _of_files(source: Path, widths: Mapping[str, int], as_tokens: bool) -> Side:
    found = listing(source)
    intake = Intake(found, as_tokens=as_tokens, say=lambda text: None)
    read = [intake.read(place) for place in range(len(found.items))]
    records = [record for record in read if record is not None]
    intake.require_most()
    ids = [record.record_id for record in records]
    said = [intake.said_ids[one] for one in ids]
    groups, _ = grouped("auto", [intake.paths[one] for one in ids], said, [one.group for one in records], [one.label for one in records])
    facts = [intake.facts[one] for one in ids]
    return Side(
        source.as_posix(),
        _packed(records, widths),
        [own or one for own, one in zip(groups, ids, strict=True)],
        facts,
        {},
        len(intake.rejected),
    )


def _of_media(params: Params, dataset: str, source: Path, about: Mapping[str, Mapping[str, Any]]) -> Side:
    """Raises DataError where more than 5 % of the files of a modality cannot be read, UserError where no modality has an encoder here."""
    from stages.encoders.encoder import resolve_device
    from stages.encoders.media import rebuild
    from stages.encoders.media.encoder import Place

    with tempfile.TemporaryDirectory() as folder:
        reading = record_adapters.read(adapter_of(source), source, Path(folder), {}, at=("records", "datasets", dataset))
        rows = [row._replace(paths=_there(row, reading.root)) for row in reading.rows]  # a medium that was lost is what shall be told, and no error
        wanted = [name for name in reading.modalities if name in about and any(name in row.paths for row in rows)]
        if not wanted:
            shown = [name for name in reading.modalities if any(name in row.paths for row in rows)]
            what = f"{source} shows {', '.join(shown) or 'nothing'}, and {dataset} was encoded from {', '.join(about)}"
            raise errors.UserError(f"{what}. Name its media as there, or give .pt files that the same encoder made")
        place = Place(resolve_device(params.compute.device), params.compute.threads, params.backbones_folder)
        tokens, bad = dict[str, dict[str, Tokens]](), 0
        for name in wanted:
            tokens[name], lost = _encoded(name, rebuild(dict(about[name]), place), rows, reading.root, params.compute.threads)
            bad += lost
        logs = [reading.root / row.paths["series"] if "series" in row.paths else None for row in rows]
        levels = _levels(logs, about)
        notes = _first_of_each(reading.problems)
    records = [
        Record(row.record_id, {name: tokens[name][row.record_id] for name in wanted if row.record_id in tokens[name]}) for row in rows
    ]
    widths = {name: int(one["modalities"][name]) for name, one in about.items() if name in one["modalities"]}
    groups, facts = [row.group or row.record_id for row in rows], [dict(row.facts) for row in rows]
    return Side(source.as_posix(), packed(records, widths), groups, facts, levels, bad, notes)


def _first_of_each(problems: Sequence[Problem]) -> list[str]:
    """Of each code the first, and how many more there are."""
    codes = [one.code for one in problems]
    found = {one.code: f"{one.code} {one.path}: {one.what}" for one in reversed(problems)}
    return [f"{found[code]}{f' (and {codes.count(code) - 1} more)' if codes.count(code) > 1 else ''}" for code in dict.fromkeys(codes)]


def _there(row: RecordRow, root: Path) -> dict[str, str]:
    return {name: path for name, path in row.paths.items() if (root / path).exists()}


def _encoded(name: str, encoder: TokenEncoder, rows: Sequence[RecordRow], root: Path, threads: int) -> tuple[dict[str, Tokens], int]:
    """By record its tokens of one modality, and how many files could not be read."""
    from stages.encoders.media.extraction import File, encoded

    files = [File(root / row.paths[name], row.paths[name], Record(row.record_id, {})) for row in rows if name in row.paths]
    found = {file.record.record_id: one for file, one in encoded(name, encoder, files, threads)}
    good = {record: one for record, one in found.items() if not isinstance(one, DataError)}
    return good, len(found) - len(good)


def _packed(records: Sequence[Record], widths: Mapping[str, int]) -> Records:
    """Those modalities that the data set has; others are left out."""
    shown = [one._replace(modalities={name: tokens for name, tokens in one.modalities.items() if name in widths}) for one in records]
    given = {
        name: next((one.modalities[name].values.shape[1] for one in shown if name in one.modalities), width)
        for name, width in widths.items()
    }
    return packed(shown, given)


def _logs_of(dataset: str, record_ids: Sequence[str], project: Path) -> list[Path | None]:
    """Where the log of each record's sensors lies, as far as the project still has the media."""
    table, described = (project / "data" / dataset / name for name in ("samples.parquet", "dataset.json"))
    if not (table.is_file() and described.is_file()):
        return [None] * len(record_ids)
    paths, root = {row["record_id"]: row.get("series_path") for row in io.read_table(table)}, root_of(described)
    found = [root / path if (path := paths.get(one)) else None for one in record_ids]
    return [path if path is not None and path.is_file() else None for path in found]


def _levels(logs: Sequence[Path | None], about: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """By sensor (B,) its own level, where tokens tell only what differs from it; {} where they hold the level themselves, or no log is here."""
    from stages.datasets.weld_files import arc_off, arc_on, plain, read_log
    from stages.encoders.media.sensor_steps import own_level

    entry = about.get("series", {}).get("entry", {})
    if not (entry.get("kind") == "sensor_residual" or entry.get("relative")) or not any(logs):
        return {}
    current, above = plain(entry["current"]), entry["arc_above"]
    found: dict[str, np.ndarray] = {"arc_s": np.full(len(logs), np.nan)}
    for place, path in enumerate(logs):
        try:
            log = read_log(path) if path else None
        except DataError:  # counted where it is encoded
            log = None
        if log is None:
            continue
        first, last = arc_on(log, current, above), arc_off(log, current, above)
        if first is not None and last is not None:
            found["arc_s"][place] = last - first
        for name, level in zip(log.variables, own_level(log, current, above).tolist(), strict=True):
            found.setdefault(name, np.full(len(logs), np.nan))[place] = level
    return found
