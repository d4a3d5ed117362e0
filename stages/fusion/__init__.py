"""Detectors of records: every file here or in a folder below that defines one RecordDetector is one, imported on demand.

A new detector is one new file; nothing is listed here. Its parameter schema is the signature of its constructor.
"""

from __future__ import annotations

import difflib
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import params

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector


def known() -> list[str]:
    """The names of all detectors, "<file>" or "<family>.<file>", sorted; nothing is imported for it."""
    here = Path(__file__).parent
    files = [file for file in here.rglob("*.py") if re.search(r"^class \w+\(RecordDetector\):", file.read_text(encoding="utf-8"), re.MULTILINE)]
    return sorted(".".join(file.relative_to(here).with_suffix("").parts) for file in files)


def load(detector: str) -> type[RecordDetector]:
    """The class that a detector's file defines, e.g. of "perceiver_moe". Raises KeyError with the nearest name."""
    from stages.fusion.detector import RecordDetector

    if detector not in known():
        close = difflib.get_close_matches(detector, known(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise KeyError(f"no detector of records {detector!r}; {hint}Known: {', '.join(known())}")
    module = importlib.import_module(f"{__name__}.{detector}")
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, RecordDetector)]
    own = [value for value in found if value.__module__ == module.__name__]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define one RecordDetector, found {[value.__name__ for value in own]}")
    return own[0]


def build(detector: str, options: dict[str, Any], at: tuple[str, ...]) -> RecordDetector:
    """An unfitted detector; `options` are checked against its constructor, `at` says where they stand in params.yaml."""
    factory = load(detector)
    return factory(**params.options(factory, options, at))
