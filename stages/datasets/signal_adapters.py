"""Finding an adapter of signals by its name: every module here with `read(source, *, options)` is one; a new one touches no other file.

An adapter yields one `Recording` after another, so that a data set need not fit into memory. Adapters of images, which write into a folder, are
those of stages/datasets/adapters.py.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages import params
from stages.datasets.recordings import Recording

SIGNATURE = re.compile(r"^def read\(\s*source: Path,\s*\*", re.MULTILINE)


def known() -> list[str]:
    """Names of all adapters of signals, found without importing them."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if SIGNATURE.search(file.read_text(encoding="utf-8")))


def read(adapter: str, source: Path, given: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[Recording]:
    """The recordings of a source, options checked. at: where they stand in params.yaml. Raises ParamsError, DataError."""
    if adapter not in known():
        raise params.ParamsError(f"{'.'.join((*at, 'adapter'))}: no adapter of signals {adapter!r}{params.nearest(adapter, known())}")
    function = importlib.import_module(f"stages.datasets.{adapter}").read
    return function(source, **params.options(function, given, at))
