"""Detectors by the names of their files, imported one at a time: what images, signals and records have in common.

A package says which names it has; a file of such a name defines one class of the package's contract, whose constructor is the schema of its options.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, TypeVar

from stages.params import ParamsError, nearest, options

Contract = TypeVar("Contract")


def defining(folder: Path, contract: str) -> list[str]:
    """The files below a package's folder that define a class of that contract, as "<file>" or "<family>.<file>", sorted; nothing is imported for it."""
    pattern = re.compile(rf"^class \w+\({contract}\):", re.MULTILINE)
    files = [file for file in folder.rglob("*.py") if pattern.search(file.read_text(encoding="utf-8"))]
    return sorted(".".join(file.relative_to(folder).with_suffix("").parts) for file in files)


def load(package: str, known: list[str], name: str, contract: type[Contract], what: str = "detector") -> type[Contract]:
    """The class that the file `name` of a package defines. Raises ParamsError with the nearest name, TypeError where it does not define one class."""
    if name not in known:
        raise ParamsError(f"no {what} {name!r}{nearest(name, known)}")
    module = importlib.import_module(f"{package}.{name}")
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, contract)]
    own = [value for value in found if value.__module__ == module.__name__]
    if len(own) != 1:
        raise TypeError(f"{module.__name__} must define one {contract.__name__}, found {[value.__name__ for value in own]}")
    return own[0]


def build(factory: type[Contract], given: dict[str, Any], at: tuple[str, ...]) -> Contract:
    """An unfitted detector. Raises ParamsError for an option that it has not, and for values that its constructor refuses.

    at: where `given` stands in params.yaml.
    """
    checked = options(factory, given, at)
    try:
        return factory(**checked)
    except ValueError as error:
        raise ParamsError(f"{'.'.join(at)}: {error}") from error
