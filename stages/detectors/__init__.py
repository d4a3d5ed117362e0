"""Image detectors by family, imported one at a time: every file directly in a family's folder is a detector, its shared maths lies in
`maths/`.

A new detector is one new file; nothing is listed here. Its parameter schema is the signature of its constructor.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import params

if TYPE_CHECKING:
    from stages.types import Detector


def known() -> list[str]:
    """The names of all detectors, "<family>.<file>", sorted; nothing is imported for it."""
    files = Path(__file__).parent.glob("*/*.py")
    return sorted(f"{file.parent.name}.{file.stem}" for file in files if file.stem != "__init__")


def load(detector: str) -> type[Detector]:
    """The class that a detector's file defines, e.g. of "memory_bank.patchcore". Raises KeyError with the nearest name."""
    from stages.types import Detector

    names = known()
    if detector not in names:
        close = difflib.get_close_matches(detector, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise KeyError(f"no detector {detector!r}; {hint}Known: {', '.join(names)}")
    module = importlib.import_module(f"{__name__}.{detector}")
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Detector)]
    own = [value for value in found if value.__module__ == module.__name__]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define one Detector, found {[value.__name__ for value in own]}")
    return own[0]


def build(detector: str, options: dict[str, Any], at: tuple[str, ...]) -> Detector:
    """An unfitted detector; `options` are checked against its constructor, `at` says where they stand in params.yaml."""
    factory = load(detector)
    return factory(**params.options(factory, options, at))
