"""`assay models`: every named configuration, what it needs, and whether that is here."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from stages import detectors
from stages.detectors import zoo
from stages.encoders import weights

SCHEDULE = ("epochs", "steps", "batch_size", "learning_rate", "patience")


def listed(backbones: Path) -> list[dict[str, Any]]:
    """One row for each configuration, as plain data, in the order of zoo.yaml."""
    return [described(name, backbones) for name in zoo.names()]


def described(name: str, backbones: Path) -> dict[str, Any]:
    """name: a configuration or an alias. backbones: the local folder of weights."""
    name, configuration = zoo.find(name)
    method, encoder = zoo.zoo().methods[configuration.detector], zoo.encoder_of(configuration.encoder)
    return {
        "name": name,
        "aliases": configuration.aliases,
        "title": method.title,
        "family": configuration.detector.split(".")[0],
        "category": method.category,
        "paper": method.paper,
        "detector": configuration.detector,
        "backbone": " + ".join(dict.fromkeys(_backbones(encoder))) or None,
        "layers": _layers(configuration, encoder),
        "image_size": encoder["image_size"],
        "model_size": configuration.model_size,
        "normalize": encoder["kind"] != zoo.PIXELS,
        "schedules": {schedule: _schedule(name, schedule) for schedule in zoo.SCHEDULES if _exists(configuration, schedule)},
        "weights": [_weights(one, backbones) for one in _needed(configuration, encoder)],
        "note": configuration.note,
    }


def _backbones(encoder: dict[str, Any]) -> list[str]:
    own = [encoder["backbone"]] if "backbone" in encoder else []
    return own + [name for part in encoder.get("parts", {}).values() for name in _backbones(part)]


def _layers(configuration: zoo.Configuration, encoder: dict[str, Any]) -> list[str]:
    """Those that the detector reads."""
    return list(detectors.build(configuration.detector, configuration.options, at=("configurations",)).needs.layers)


def _exists(configuration: zoo.Configuration, schedule: str) -> bool:
    return schedule != "quick" or configuration.quick is not None


def _schedule(name: str, schedule: zoo.Schedule) -> dict[str, Any]:
    """What it sets of the schedule's keywords, the detector's defaults filled in; of the cpu one also its encoder."""
    entries = zoo.entries(name, schedule)
    parameters = inspect.signature(detectors.load(entries.model["detector"]).__init__).parameters
    values = {key: entries.model.get(key, parameters[key].default) for key in SCHEDULE if key in parameters}
    return values | ({"encoder": entries.encoder_name} if schedule == "cpu" else {})


def _needed(configuration: zoo.Configuration, encoder: dict[str, Any]) -> list[str]:
    """Of its encoder, and of networks that the detector itself names (a teacher, a vector-quantised auto-encoder)."""
    parameters = inspect.signature(detectors.load(configuration.detector).__init__).parameters
    own = [configuration.options.get(key, parameters[key].default) for key in parameters if key.endswith("_weights")]
    return [name for name in dict.fromkeys([*zoo.weights_of(encoder), *own]) if name != weights.RANDOM]


def _weights(name: str, backbones: Path) -> dict[str, Any]:
    row = weights.row_of(name)
    return {"name": name, "present": weights.locate(row, backbones) is not None, "licence": row.licence}


def as_rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table for the terminal."""
    return [
        {
            "name": one["name"] + "".join(f" ({alias})" for alias in one["aliases"]),
            "category": one["category"],
            "backbone": one["backbone"] or "none",
            "size": one["image_size"],
            "full": _short(one["schedules"]["full"]),
            "quick": _short(one["schedules"].get("quick")),
            "weights": ", ".join(f"{each['name']} {'here' if each['present'] else 'absent'}" for each in one["weights"]) or "none needed",
            "paper": one["paper"],
        }
        for one in found
    ]


def _short(schedule: dict[str, Any] | None) -> str:
    if not schedule:
        return "one pass" if schedule == {} else "-"
    return f"{schedule.get('epochs', schedule.get('steps'))} x {schedule.get('batch_size', 1)}"
