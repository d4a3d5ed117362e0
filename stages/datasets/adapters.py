"""Finding an adapter by its name: every module here with `read(source, folder, *, options)` is one; a new one touches no other file."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from stages import params
from stages.datasets.archive import is_archive, unpacked
from stages.datasets.samples import Reading


def known() -> list[str]:
    """Names of all adapters, found without importing them."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if "\ndef read(source: Path, folder: Path" in file.read_text(encoding="utf-8"))


def read(adapter: str, source: Path, folder: Path, given: dict[str, Any], at: tuple[str, ...] = ()) -> Reading:
    """Call an adapter with its options checked; an archive is unpacked into `folder` first.

    at: where the options stand in params.yaml. Raises ParamsError, DataError.
    """
    if adapter not in known():
        close = difflib.get_close_matches(adapter, known(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise params.ParamsError(f"{'.'.join((*at, 'adapter'))}: no adapter {adapter!r}{hint} Known: {', '.join(known())}")
    if source.is_file() and is_archive(source):
        source = unpacked(source, folder)
    function = importlib.import_module(f"stages.datasets.{adapter}").read
    return function(source, folder, **params.options(function, given, at))
