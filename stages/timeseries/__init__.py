"""Detectors of signals: every file here or in `classical/` that defines one SeriesDetector is one, imported on demand.

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
    from stages.timeseries.detector import SeriesDetector

EXAMPLE = ("Config", "set_seed", "SlidingWindowTimeSeriesGenerator", "SlidingWindowDataset", "SelfDistilledMAEMultivariate")


def __getattr__(name: str) -> Any:
    """The names of stages/timeseries/sliding_window.py, imported when one is asked for."""
    if name in EXAMPLE:
        return getattr(importlib.import_module(f"{__name__}.sliding_window"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def known() -> list[str]:
    """The names of all detectors, "<file>" or "<family>.<file>", sorted; nothing is imported for it."""
    here = Path(__file__).parent
    files = [file for file in here.rglob("*.py") if re.search(r"^class \w+\(SeriesDetector\):", file.read_text(encoding="utf-8"), re.MULTILINE)]
    return sorted(".".join(file.relative_to(here).with_suffix("").parts) for file in files)


def load(detector: str) -> type[SeriesDetector]:
    """The class that a detector's file defines, e.g. of "classical.kmeans_ad". Raises KeyError with the nearest name."""
    from stages.timeseries.detector import SeriesDetector

    if detector not in known():
        close = difflib.get_close_matches(detector, known(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise KeyError(f"no series detector {detector!r}; {hint}Known: {', '.join(known())}")
    module = importlib.import_module(f"{__name__}.{detector}")
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, SeriesDetector)]
    own = [value for value in found if value.__module__ == module.__name__]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define one SeriesDetector, found {[value.__name__ for value in own]}")
    return own[0]


def build(detector: str, options: dict[str, Any], at: tuple[str, ...]) -> SeriesDetector:
    """An unfitted detector; `options` are checked against its constructor, `at` says where they stand in params.yaml."""
    factory = load(detector)
    return factory(**params.options(factory, options, at))
