"""A fitted detector on disk: `model.safetensors`, `config.json` and `history.json` in models/<dataset>/<model>/<category>/seed<k>/.

Nothing in these files changes unless the model does: no times, no host names. A model that could not be had leaves `refused.json` instead.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import io
from stages.params import ParamsError

if TYPE_CHECKING:
    from stages.types import Detector

LIBRARIES = ("torch", "faiss-cpu")
EVERY = "_every"  # stands for the category of a model that is one for all of them


def folder(dataset: str, model: str, row: str, category: str, seed: int) -> Path:
    """Where one fitted model lies; the row's name stands between where the model is a group."""
    return Path("models", dataset, model, *([row] if row != model else []), category, f"seed{seed}")


def fitted(place: Path) -> Path:
    """Where the model of `place` really lies: there, or, where one model serves all categories, in the folder that they share."""
    shared = place.parents[1] / EVERY / place.name
    return shared if not place.exists() and shared.exists() else place


def save(place: Path, detector: Detector, config: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write the model; `config` must hold "model", "detector" and "options" so that `load` can rebuild it."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    io.write_model(place / "model.safetensors", detector.state_dict(), {"detector": config["detector"]})
    io.write_json(place / "config.json", {**config, "libraries": versions})
    io.write_json(place / "history.json", history)


def refuse(place: Path, reason: str) -> None:
    io.write_json(place / "refused.json", {"reason": reason})


def refusal(place: Path) -> str | None:
    """Why there is no model here, if there is none by a known reason."""
    path = place / "refused.json"
    return io.read_json(path)["reason"] if path.is_file() else None


def load(place: Path) -> Detector:
    """The detector as it was saved, ready to score."""
    from stages.detectors import build

    config = io.read_json(place / "config.json")
    try:
        detector = build(config["detector"], config["options"], at=("models", config["model"]))
        detector.load_state_dict(io.read_model(place / "model.safetensors"))
    except (ParamsError, KeyError, TypeError, RuntimeError) as error:  # no such detector or option, no such key, tensors of another model
        raise io.DamagedFile(place, error) from error
    return detector.eval()
