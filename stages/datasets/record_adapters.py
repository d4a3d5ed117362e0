"""Finding an adapter of records by its name: every module here with `read_records(source, folder, *, options)` is one; a new one touches no other file.

An adapter lists which files belong to which record. It opens them only as far as it must: what is in them is for encoders, which `extract_records`
runs. Adapters of images are those of stages/datasets/adapters.py, of signals those of signal_adapters.py.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from stages import params
from stages.datasets.archive import is_archive, unpacked
from stages.datasets.records import UNKNOWN
from stages.datasets.samples import Problem

SIGNATURE = re.compile(r"^def read_records\(\s*source: Path,\s*folder: Path,\s*\*", re.MULTILINE)
RECOGNISES = "\ndef recognises(source: Path) -> bool:"
STORED = "stored"  # the "modality" of data sets whose tokens lie in `.pt` files already, several modalities in one file


class RecordRow(NamedTuple):
    """One record as its data set tells of it."""

    record_id: str  # unique in its data set
    paths: Mapping[str, str]  # modality -> POSIX path relative to the root; the modalities that are present, at least one
    label: int = UNKNOWN  # 1 anomalous, 0 normal
    fault: str = ""  # the kind of anomaly, where anybody said
    group: str = ""  # what must not be split; the record itself where empty
    split: str | None = None  # "train", "val" or "test" where the data set fixes it
    content: Mapping[str, str] = MappingProxyType({})  # modality -> hash of what the file or folder holds; of the file's bytes where absent
    facts: Mapping[str, str | float] = MappingProxyType({})  # what is known of it beside its media: setpoints, material. The same names in every row


class RecordReading(NamedTuple):
    root: Path
    modalities: Sequence[str]  # all that any record has, in the order of the table's columns; ("stored",) for stored tokens
    rows: Sequence[RecordRow]
    problems: Sequence[Problem] = ()
    about: Mapping[str, Any] = MappingProxyType({})  # licence, source, what the labels mean


def known() -> list[str]:
    """Names of all adapters of records, found without importing them."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if SIGNATURE.search(file.read_text(encoding="utf-8")))


def recognised(source: Path) -> str | None:
    """The adapter whose layout a folder has: the first, in order of the names, of those with a function `recognises(source)` that says so."""
    for name in known():
        if RECOGNISES in (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8"):
            if importlib.import_module(f"stages.datasets.{name}").recognises(source):
                return name
    return None


def suited(adapter: str) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The entries of encoders that a layout asks for, by modality, and those of the controls that can be had of its facts; mostly none."""
    module = importlib.import_module(f"stages.datasets.{adapter}")
    return getattr(module, "ENCODERS", {}), getattr(module, "CONTROLS", {})


def read(adapter: str, source: Path, folder: Path, given: dict[str, Any], at: tuple[str, ...] = ()) -> RecordReading:
    """Call an adapter with its options checked; an archive is unpacked into `folder` first, generated media are written there.

    at: where the options stand in params.yaml. Raises ParamsError, DataError.
    """
    if adapter not in known():
        raise params.ParamsError(f"{'.'.join((*at, 'adapter'))}: no adapter of records {adapter!r}{params.nearest(adapter, known())}")
    if source.is_file() and is_archive(source):
        source = unpacked(source, folder)
    function = importlib.import_module(f"stages.datasets.{adapter}").read_records
    return function(source, folder, **params.options(function, given, at))
