"""What `evaluate_records` wrote of the thresholds and temperatures of one model of records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages import io
from stages.metrics.thresholds import Threshold

CATEGORY = "all"  # under which they stand: records are judged together, whatever they show


def stored(folder: Path) -> dict[str, Any]:
    """folder: of a result. {"default", "seeds", "temperatures": one a seed or null, "thresholds": {method: one a seed}}."""
    return io.read_json(io.require(folder / "thresholds.json"))[CATEGORY]


def first_threshold(folder: Path) -> Threshold:
    """The default threshold of the first seed."""
    found = stored(folder)
    return Threshold.from_dict(found["thresholds"][found["default"]][0])
