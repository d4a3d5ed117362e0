"""Detectors of records: every file here or in a folder below that defines one RecordDetector, or one DeepDetector, is one, imported on demand.

A new detector is one new file; nothing is listed here. Its parameter schema is the signature of its constructor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import registry

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector


def known() -> list[str]:
    """The names of all detectors, "<file>" or "<family>.<file>", sorted; nothing is imported for it."""
    return registry.defining(Path(__file__).parent, "(?:RecordDetector|DeepDetector)")


def load(detector: str) -> type[RecordDetector]:
    """The class that a detector's file defines, e.g. of "perceiver_moe". Raises ParamsError with the nearest name."""
    from stages.fusion.detector import RecordDetector

    return registry.load(__name__, known(), detector, RecordDetector, "detector of records")


def build(detector: str, options: dict[str, Any], at: tuple[str, ...]) -> RecordDetector:
    """An unfitted detector; `options` are checked against its constructor, `at` says where they stand in params.yaml."""
    return registry.build(load(detector), options, at)
