"""`assay models`: every named configuration, what it needs, and whether that is here."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from stages import detectors
from stages.detectors import zoo
from stages.encoders import weights

CATEGORIES = ("memory", "flow", "distillation", "reconstruction", "adaptation", "foundation", "few_shot")
HEAD = """\
# Models

Twenty detectors in forty-four named configurations, then four methods for a few images or none ([zero and few shots](zero_shot.md)), beside the trivial
baselines (`mean-image`, `brightness`, `local-contrast`, `random-score`) that any of them must beat. `assay models list` prints the configurations with the
state of their weights, `assay models add NAME --dataset D` writes one into `params.yaml`; `--schedule quick` is a smoke run, `--schedule cpu` the smallest
one, on the encoder that is built in. Figures on one data set: [results](results.md). Sections are made from the heads of the files, which say every deviation
from the paper. Schedules are epochs x batch.
"""
SCHEDULE = ("epochs", "steps", "batch_size", "learning_rate", "patience")


def listed(backbones: Path) -> list[dict[str, Any]]:
    """One row for each configuration, as plain data, in the order of zoo.yaml."""
    return [described(name, backbones) for name in [*zoo.names(), *zoo.few_shot_names()]]


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
        "layers": _layers(configuration),
        "image_size": encoder["image_size"],
        "model_size": configuration.model_size,
        "normalize": encoder["kind"] != zoo.PIXELS,
        "schedules": {schedule: _schedule(name, schedule) for schedule in zoo.SCHEDULES if _exists(configuration, schedule)},
        "weights": [_weights(one, backbones) for one in _needed(configuration, encoder)],
        "shots": configuration.shots,
        "note": configuration.note,
    }


def _backbones(encoder: dict[str, Any]) -> list[str]:
    own = [encoder["backbone"]] if "backbone" in encoder else []
    return own + [name for part in encoder.get("parts", {}).values() for name in _backbones(part)]


def _layers(configuration: zoo.Configuration) -> list[str]:
    """Those that the detector reads, from its signature: to build forty-four networks for a list would take seconds."""
    if configuration.shots is not None:  # none of these makes a network
        return list(detectors.build(configuration.detector, configuration.options, at=("models",)).needs.layers)
    parameters = inspect.signature(detectors.load(configuration.detector).__init__).parameters
    named = [configuration.options.get(key, parameters[key].default) for key in ("layer", "layers", "extra") if key in parameters]
    return [layer for value in named for layer in ([value] if isinstance(value, str) else value)]


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
    own = [configuration.options.get(key, parameters[key].default) for key in parameters if key.endswith("_weights") or key == "checkpoint"]
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


def page() -> str:
    """docs/models.md: a section for each method, made of its file's head, its formula and its configurations."""
    known, parts = zoo.zoo(), [HEAD]
    for detector, method in sorted(known.methods.items(), key=lambda item: (CATEGORIES.index(item[1].category), item[1].title)):
        idea, deviations = _head_of(detector)
        rows = [_row(name) for name, one in known.configurations.items() if one.detector == detector]
        file = f"stages/detectors/{detector.replace('.', '/')}.py"
        parts.append(
            "\n".join([
                f"## {method.title}", "", idea, "", f"    {method.formula}", "", f"Category {method.category}; {method.paper}; [{file}](../{file})", "",
                *([deviations, ""] if deviations else []),
                "| configuration | backbone | px | full | quick | |", "| --- | --- | ---: | --- | --- | --- |", *rows, "",
            ])
        )  # fmt: skip
    return "\n".join(parts)


def _row(name: str) -> str:
    one = zoo.zoo().configurations[name]
    encoder = zoo.encoder_of(one.encoder)
    quick = _short(_schedule(name, "quick") if one.quick else None)
    cells = [
        ", ".join(f"`{each}`" for each in [name, *one.aliases]),
        ", ".join(dict.fromkeys(_backbones(encoder))) or "none",
        str(encoder["image_size"]),
        _short(_schedule(name, "full")),
        quick,
        one.note,
    ]
    return f"| {' | '.join(cells)} |"


def _head_of(detector: str) -> tuple[str, str]:
    """The paragraphs of the file's docstring before "Deviations", and the rest."""
    path = Path(detectors.__file__).parent / f"{detector.replace('.', '/')}.py"
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    idea, mark, deviations = text.partition("\nDeviations")
    return idea.strip(), f"{mark}{deviations}".strip()


def _short(schedule: dict[str, Any] | None) -> str:
    if not schedule:
        return "one pass" if schedule == {} else "-"
    return f"{schedule.get('epochs', schedule.get('steps'))} x {schedule.get('batch_size', 1)}"
