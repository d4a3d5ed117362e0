"""Detectors of signals: every file here or in `classical/` that defines one SeriesDetector is one, imported on demand.

A new detector is one new file; nothing is listed here. Its parameter schema is the signature of its constructor.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import registry

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
    return registry.defining(Path(__file__).parent, "SeriesDetector")


def load(detector: str) -> type[SeriesDetector]:
    """The class that a detector's file defines, e.g. of "classical.kmeans_ad". Raises ParamsError with the nearest name."""
    from stages.timeseries.detector import SeriesDetector

    return registry.load(__name__, known(), detector, SeriesDetector, "series detector")


def build(detector: str, options: dict[str, Any], at: tuple[str, ...]) -> SeriesDetector:
    """An unfitted detector; `options` are checked against its constructor, `at` says where they stand in params.yaml."""
    return registry.build(load(detector), options, at)
