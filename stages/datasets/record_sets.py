"""The records of one data set as its manifest splits them, their tokens joined over the stores in features/<dataset>/.

Each store holds what one encoder made of one modality, or of all where they came as embeddings. A store that was refused (its weights are not here)
says why and is left out: models then do without that modality. A record that no store holds cannot be seen by any model and is left out as well.
A control (a store that says so of itself: setpoints, say) is shown only to models that name its modality.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages import io
from stages.datasets.record_store import ABOUT, INDEX, RecordStore, Subset
from stages.datasets.records import MODALITIES, UNKNOWN
from stages.errors import Missing
from stages.params import ParamsError, nearest

SPLITS = ("train", "val", "test")


def open_split(dataset: str, split: str, project: Path = Path(), modalities: Sequence[str] | None = None) -> Subset:
    """The records of one split, train, val or test, in the order of the manifest; read from disk as they are asked for.

    modalities: what is shown of them, records that have none of these being left out; by default all that is no control.
    """
    return subset_of(rows_of(dataset, split, project, modalities), dataset, project, modalities)


def subset_of(rows: list[dict[str, Any]], dataset: str, project: Path = Path(), modalities: Sequence[str] | None = None) -> Subset:
    """Some rows of the manifest, with their tokens. modalities: as of `open_split`, but no record is left out."""
    import torch

    label = torch.tensor([row["label"] for row in rows], dtype=torch.int8)
    fault = [row["fault"] or "" for row in rows] if any(row["fault"] for row in rows) else ()
    return Subset(open_stores(dataset, project, modalities), [row["record_id"] for row in rows], label, fault, modalities)


def rows_of(dataset: str, split: str, project: Path = Path(), modalities: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The manifest's rows of one split, those left out that no store of these modalities holds: record_id, split, label, group, fault."""
    stores = open_stores(dataset, project, modalities)
    return [row for row in manifest(dataset, project) if row["split"] == split and any(row["record_id"] in store for store in stores)]


def judged_rows(dataset: str, split: str, project: Path = Path()) -> list[dict[str, Any]]:
    """Those of `rows_of` that somebody labelled."""
    return [row for row in rows_of(dataset, split, project) if row["label"] != UNKNOWN]


def manifest(dataset: str, project: Path = Path()) -> list[dict[str, Any]]:
    return io.read_json(project / "data" / dataset / "manifest.json")["samples"]


def open_stores(dataset: str, project: Path = Path(), modalities: Sequence[str] | None = None) -> list[RecordStore]:
    """All stores but the refused ones, in the order of MODALITIES and then of the alphabet. Raises Missing where there is none at all.

    modalities: those that hold one of these; by default those that are no control. Raises ParamsError for one that no store holds.
    """
    folders = _folders(dataset, project)
    if not folders:
        raise Missing(
            f"{project / 'features' / dataset} holds no store of tokens. Run extract_records for each modality of {dataset} first"
        )
    refused = refused_stores(dataset, project)
    stores = [RecordStore(folder) for folder in folders if folder.name not in refused]
    if modalities is None:
        seen = [store for store in stores if not store.about.get("control")]
        if stores and not seen:
            raise ParamsError(f"all that {dataset} has are controls: name their modalities in the rows, and give records.extracts something that is none")
        return seen
    known = [*refused, *(name for store in stores for name in store.widths)]
    if unknown := [name for name in modalities if name not in known]:
        raise ParamsError(f"{dataset} has no modality {unknown[0]!r}{nearest(unknown[0], known)}")
    return [store for store in stores if set(modalities) & set(store.widths)]


def refused_stores(dataset: str, project: Path = Path()) -> dict[str, str]:
    """Which modalities are not here, and why."""
    about = {folder.name: io.read_json(folder / ABOUT) for folder in _folders(dataset, project)}
    return {name: content["refused"] for name, content in about.items() if "refused" in content}


def fingerprint(dataset: str, project: Path = Path()) -> str:
    """What a fit depends on: a hash of the manifest's rows and of every file of the stores."""
    files = [path for folder in _folders(dataset, project) for path in (folder / ABOUT, folder / INDEX, *sorted(folder.glob("*.pt")))]
    hashes = {path.relative_to(project).as_posix(): io.file_hash(path) for path in files if path.is_file()}
    return io.content_hash([manifest(dataset, project), hashes])


def _folders(dataset: str, project: Path) -> list[Path]:
    found = [path.parent for path in (project / "features" / dataset).glob(f"*/{ABOUT}")]
    return sorted(found, key=lambda folder: (MODALITIES.index(folder.name) if folder.name in MODALITIES else len(MODALITIES), folder.name))
