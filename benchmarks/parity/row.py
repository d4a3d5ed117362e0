"""One line of docs/parity.md: a model beside its reference, with the same weights on the same input."""

from __future__ import annotations

from typing import NamedTuple


class Parity(NamedTuple):
    """difference: the largest absolute one. A difference above the tolerance needs a note that says why it must be there."""

    model: str
    reference: str  # package, version and class
    compared: str  # what was compared, on what input
    difference: float
    tolerance: float
    note: str = ""
