"""Image detectors by family, imported one at a time: every file directly in a family's folder is a detector, its shared maths lies in
`maths/`.

A new detector is one new file; nothing is listed here. Its parameter schema is the signature of its constructor.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import registry

if TYPE_CHECKING:
    from stages.types import Detector


def known() -> list[str]:
    """The names of all detectors, "<family>.<file>", sorted; nothing is imported for it."""
    files = Path(__file__).parent.glob("*/*.py")
    return sorted(f"{file.parent.name}.{file.stem}" for file in files if file.stem != "__init__")


def load(detector: str) -> type[Detector]:
    """The class that a detector's file defines, e.g. of "memory_bank.patchcore". Raises ParamsError with the nearest name."""
    from stages.types import Detector

    return registry.load(__name__, known(), detector, Detector)


def build(detector: str, options: dict[str, Any], at: tuple[str, ...]) -> Detector:
    """An unfitted detector; `options` are checked against its constructor, `at` says where they stand in params.yaml."""
    return registry.build(load(detector), options, at)
