"""A fitted detector of records on disk: `model.safetensors`, `config.json` and `history.json` in models/<dataset>/<model>[/<row>]/seed<k>/.

Nothing in these files changes unless the model does: no times, no host names. A model that could not be had leaves `refused.json` instead.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import fusion, io
from stages.params import ParamsError

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector

LIBRARIES = ("torch", "scikit-learn")


def folder(dataset: str, model: str, row: str, seed: int) -> Path:
    """Where one fitted model lies; the row's name stands between where the model is a group."""
    return Path("models", dataset, model, *([row] if row != model else []), f"seed{seed}")


def seeds(detector: str, asked: list[int]) -> list[int]:
    """Those of the asked that make a difference: the first alone where a detector draws nothing."""
    return list(asked) if fusion.load(detector).drawn else asked[:1]


def save(place: Path, detector: RecordDetector, config: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write the detector; `config` must hold "model", "detector" and "options" so that `load` can rebuild it.

    The modalities and their widths are added, in their order. "settings" of it is what stages/datasets/setting_range.py says of the training records;
    models of before lack the key.
    """
    (place / "refused.json").unlink(missing_ok=True)  # of an earlier fit
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    io.write_model(place / "model.safetensors", detector.state_dict(), {"detector": config["detector"]})
    classes = {"classes": detector.classes} if detector.classes else {}
    io.write_json(place / "config.json", {**config, "modalities": detector.widths, **classes, "libraries": versions})
    io.write_json(place / "history.json", history)


def load(place: Path) -> RecordDetector:
    """The detector as it was saved, ready to score. Raises DamagedFile where the files do not fit together."""
    config = io.read_json(place / "config.json")
    try:
        detector = fusion.build(config["detector"], config["options"], at=("records", "models", config["model"]))
        detector.open(config["modalities"], classes=config.get("classes", ())).load_state_dict(io.read_model(place / "model.safetensors"))
    except (ParamsError, KeyError, TypeError, RuntimeError) as error:  # no such detector or option, no such key, tensors of another model
        raise io.DamagedFile(place, error) from error
    return detector.eval()


def refuse(place: Path, reason: str) -> None:
    for name in ("model.safetensors", "config.json", "history.json"):  # of an earlier fit
        (place / name).unlink(missing_ok=True)
    io.write_json(place / "refused.json", {"reason": reason})


def refusal(place: Path) -> str | None:
    """Why there is no model here, if there is none by a known reason."""
    path = place / "refused.json"
    return io.read_json(path)["reason"] if path.is_file() else None
