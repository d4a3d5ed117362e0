"""Many small files into one store in one pass, and back. Memory is bounded by one shard, whatever the number of files.

Shards are made outside the store and moved into it when all are done, `records.json` last, so that no store looks finished that is not. Beside every
shard lies a page of a ledger: what is in it, and how many files were read. A run that was killed goes on after the last page, to the same bytes.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import io
from stages.datasets.record_errors import RecordError, Rejected
from stages.datasets.record_files import KEYS, SCHEMAS, write_record
from stages.datasets.record_intake import Grouping, Intake, grouped
from stages.datasets.record_lists import Item, Listing
from stages.datasets.record_store import ABOUT, COLUMNS, INDEX, RecordStore, StoreWriter
from stages.datasets.records import UNKNOWN
from stages.progress import progress

RESUME = Path(".assay/resume/records")
REJECTED = "rejected.json"
LEDGER = "ledger"


class Packed(NamedTuple):
    folder: str
    records: int
    rejected: list[Rejected]
    modalities: dict[str, int]  # widths
    unknown: dict[str, int]  # keys that were ignored -> files that have them
    shards: int
    grouping: str


def pack(
    found: Listing,
    out: Path,
    *,
    as_tokens: bool = False,
    group: Grouping = "auto",
    shard_mb: int = 128,
    replace: bool = False,
    about: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
    resume: Path = RESUME,
    quiet: bool = False,
) -> Packed:
    """Pack the files of a listing, in its order, into the store `out`. about: what `records.json` shall say beside.

    Raises RecordError where `out` is taken, and past 5 % of files that cannot be used; rejected.json in `out` lists them in both cases.
    """
    _require_free(out, replace)
    place = resume / _identity(found, out, as_tokens, group, shard_mb)
    intake = Intake(found, as_tokens=as_tokens, say=say)
    writer = StoreWriter(place, None, shard_mb)
    position = _go_on(place / LEDGER, intake, writer)
    with progress("packing", len(found.items), position, quiet) as advance:
        for at in range(position, len(found.items)):
            pages, record = writer.shards, intake.read(at)
            if record is not None:
                writer.add(record)
            if writer.shards > pages:
                _turn_page(place / LEDGER, intake, writer, at + 1)
            advance(1)
    io.write_json(out / REJECTED, [one._asdict() for one in intake.rejected])
    try:
        intake.require_most()
    except RecordError:
        shutil.rmtree(place, ignore_errors=True)
        raise
    rule = _close(writer, intake, group, about or {})
    _move(place, out)
    return Packed(out.as_posix(), len(writer.index), intake.rejected, RecordStore(out).widths, intake.unknown, writer.shards, rule)


def pack_rows(rows: Sequence[Mapping[str, Any]], root: Path, out: Path, **options: Any) -> Packed:
    """Pack the files of a sample table, as rows of samples.parquet with `stored_path`. What the table says of a record counts. options: of `pack`."""
    items = [
        Item(row["stored_path"], row["record_id"], None if row["label"] == UNKNOWN else row["label"], row["group"], row["fault"] or None, row["split"])
        for row in rows
        if row["stored_path"] is not None
    ]
    return pack(Listing(root, items), out, replace=True, **options)


def unpack(store: RecordStore, out: Path, schema: str = "general", quiet: bool = False) -> int:
    """Write one `.pt` for each record, and say how many. Raises RecordError for a modality that the schema has no key for, before anything is written."""
    keys = SCHEMAS.get(schema, ())
    if keys == ():
        raise RecordError("E321", out, "", f"there is no schema {schema!r}", f"One of {', '.join(SCHEMAS)}")
    if out.exists() and any(out.iterdir()):
        raise RecordError("E330", out, "", "is not empty", "Give a folder that is new")
    names = file_names(store.record_ids)
    if keys is not None and store.record_ids:
        for name, lengths in store.lengths().items():
            if name not in schema_modalities(schema) and lengths.any():
                what = f"the schema {schema} has no place for {name}; it holds {', '.join(schema_modalities(schema))}"
                raise RecordError("E321", store.folder, "", what, "Take the schema general")
    with progress("unpacking", len(names), quiet=quiet) as advance:
        for record_id, name in zip(store.record_ids, names, strict=True):
            write_record(out / name, store.record(record_id), schema)
            advance(1)
    return len(names)


def schema_modalities(schema: str) -> list[str]:
    """Those that the schema has a key for; of `general`, which takes any, none."""
    return [KEYS[key] for key in SCHEMAS[schema] or ()]


def file_names(record_ids: list[str]) -> list[str]:
    """A file name for each record; where its own characters do not do on every system, a hash keeps names apart."""
    names = []
    for record_id in record_ids:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", record_id)[:80]
        same = plain == record_id and plain == plain.lower() and not re.fullmatch(r"con|prn|aux|nul|(com|lpt)\d", plain)
        names.append(f"{plain}.pt" if same else f"{plain}-{hashlib.sha256(record_id.encode()).hexdigest()[:8]}.pt")
    return names


def _require_free(out: Path, replace: bool) -> None:
    if out.is_file():
        raise RecordError("E330", out, "", "is a file", "Give a folder for the store")
    here = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if ABOUT in here and not replace:
        raise RecordError("E330", out, "", "holds a store already", "Give another folder, or --replace")
    if foreign := sorted(name for name in here if name not in (ABOUT, INDEX, REJECTED) and not re.fullmatch(r"\d{5}\.pt", name)):
        raise RecordError("E330", out, "", f"holds {foreign[0]}, which is no part of a store", "Give a folder that is new")


def _identity(found: Listing, out: Path, *options: object) -> str:
    """Of the files as they are now and all that decides what is made of them."""
    said = hashlib.sha256(repr((out.resolve().as_posix(), found.root.resolve().as_posix(), options)).encode())
    for item in found.items:
        try:
            state = found.file(item).stat()
            said.update(repr((item, state.st_size, state.st_mtime_ns)).encode())
        except OSError:
            said.update(repr(item).encode())
    return said.hexdigest()[:16]


def _turn_page(ledger: Path, intake: Intake, writer: StoreWriter, position: int) -> None:
    """Written after its shard: a shard without a page is made again."""
    name, count = f"{writer.shards - 1:05d}", writer.index[-1][COLUMNS.index("row")] + 1
    rows = writer.index[-count:]
    told = [[intake.said_ids[row[0]], intake.paths[row[0]]] for row in rows]
    state = {"position": position, "widths": writer.widths, "rejected": [list(one) for one in intake.rejected], "unknown": intake.unknown}
    io.write_json(ledger / f"{name}.json", {**state, "rows": [list(row) for row in rows], "told": told})


def _go_on(ledger: Path, intake: Intake, writer: StoreWriter) -> int:
    """Take over what an earlier run has finished; returns how many files it had read."""
    position = 0
    for number in range(len(list(ledger.glob("[0-9]*.json"))) if ledger.is_dir() else 0):
        path = ledger / f"{number:05d}.json"
        if not path.is_file() or not (writer.folder / f"{number:05d}.pt").is_file():
            break
        page = io.read_json(path)
        rows = [tuple(row) for row in page["rows"]]
        writer.index += rows
        writer.shards, writer.widths, intake.widths = number + 1, dict(page["widths"]), dict(page["widths"])
        intake.rejected, intake.unknown = [Rejected(*one) for one in page["rejected"]], page["unknown"]
        for row, (said, path_of) in zip(rows, page["told"], strict=True):
            intake.said_ids[row[0]], intake.paths[row[0]] = said, path_of
        position = page["position"]
    return position


def _close(writer: StoreWriter, intake: Intake, group: Grouping, about: dict[str, Any]) -> str:
    """Give every record its group, now that all are known, and write index and records.json."""
    writer.flush()
    ids, groups, labels = [row[0] for row in writer.index], [row[2] for row in writer.index], [row[1] for row in writer.index]
    said = ["" if group == own else group for own, group in zip(ids, groups, strict=True)]
    found, rule = grouped(group, [intake.paths[one] for one in ids], [intake.said_ids[one] for one in ids], said, labels)
    writer.index = [(row[0], row[1], given or row[0], *row[3:]) for row, given in zip(writer.index, found, strict=True)]
    writer.close({**about, "files": len(intake.found.items), "rejected": len(intake.rejected), "unknown": intake.unknown, "grouping": rule})
    return rule


def _move(place: Path, out: Path) -> None:
    for old in (out / ABOUT, out / INDEX, *out.glob("[0-9]*.pt")):
        old.unlink(missing_ok=True)
    for name in [*sorted(path.name for path in place.glob("*.pt")), INDEX, ABOUT]:
        shutil.move(place / name, out / name)
    shutil.rmtree(place)
