"""The named configurations of zoo.yaml: which detector, on which encoder, with which schedule.

A name and a schedule give the entries that params.yaml would hold for it: one of `models`, one of `encoders`, and the store of pixels that the
encoder reads. Nothing here knows data sets or files of weights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from stages.params import ParamsError, Section, nearest

PATH = Path(__file__).with_name("zoo.yaml")
PIXELS = "pixels"
SCHEDULES = ("full", "quick", "cpu")

Schedule = Literal["full", "quick", "cpu"]
Category = Literal["memory", "flow", "distillation", "reconstruction", "adaptation", "foundation", "few_shot"]


class Method(Section):
    """One detector. cpu: the changes of its smallest schedule, `encoder` among them."""

    title: str
    category: Category
    paper: str
    formula: str
    cpu: dict[str, Any] = {}


class Configuration(Section):
    """encoder: of the section `encoders`, or pixels-<side>. model_size: where a method has several. None as quick: one pass, nothing to shorten.
    shots: of methods that are made for a few images or none."""

    detector: str
    encoder: str
    options: dict[str, Any] = {}
    quick: dict[str, Any] | None = None
    shots: int | None = None
    model_size: Literal["small", "medium", "base", "large"] | None = None
    aliases: list[str] = []
    note: str = ""


class Zoo(Section):
    encoders: dict[str, dict[str, Any]]
    methods: dict[str, Method]
    configurations: dict[str, Configuration] = Field(min_length=1)


class Entries(NamedTuple):
    """What params.yaml holds for one configuration."""

    model: dict[str, Any]
    encoder_name: str
    encoder: dict[str, Any]
    pixels_name: str
    pixels: dict[str, Any]


@cache
def zoo() -> Zoo:
    from ruamel.yaml import YAML

    return Zoo.model_validate(YAML(typ="safe").load(PATH))


def names() -> list[str]:
    """The configurations of the twenty detectors, in the order of the file; aliases are not among them."""
    return [name for name, one in zoo().configurations.items() if one.shots is None]


def few_shot_names() -> list[str]:
    """The configurations of methods for a few images or none, in the order of the file."""
    return [name for name, one in zoo().configurations.items() if one.shots is not None]


def find(name: str) -> tuple[str, Configuration]:
    """The configuration of a name or an alias. Raises ParamsError with the nearest name."""
    known = zoo().configurations
    for own, configuration in known.items():
        if name == own or name in configuration.aliases:
            return own, configuration
    raise ParamsError(f"no configuration {name!r}{nearest(name, [*known, *aliases()])}")


def aliases() -> dict[str, str]:
    return {alias: name for name, configuration in zoo().configurations.items() for alias in configuration.aliases}


def entries(name: str, schedule: Schedule = "full") -> Entries:
    """The entries of a configuration. schedule: full is the paper's, quick a smoke run's, cpu the smallest one, on an encoder that is built in."""
    if schedule not in SCHEDULES:
        raise ParamsError(f"no schedule {schedule!r}{nearest(schedule, SCHEDULES)}")
    _, configuration = find(name)
    method = zoo().methods[configuration.detector]
    changes = {"full": {}, "quick": configuration.quick or {}, "cpu": method.cpu}[schedule]
    encoder_name = changes.get("encoder", configuration.encoder)
    labels = [schedule] if schedule != "full" and (changes or (schedule == "cpu" and configuration.shots is None)) else []
    options = {**configuration.options, **{key: value for key, value in changes.items() if key != "encoder"}}
    if configuration.shots is not None:
        labels, options = [f"{configuration.shots}-shot", *labels], {"shots": configuration.shots, **options}
    model = {"detector": configuration.detector, **({"label": ", ".join(labels)} if labels else {}), **options}
    encoder = encoder_of(encoder_name)
    pixels = pixels_name(encoder["image_size"])
    return Entries(model, encoder_name, encoder, pixels, {"kind": PIXELS, "image_size": encoder["image_size"]})


def encoder_of(name: str) -> dict[str, Any]:
    """The entry of an encoder that a configuration names."""
    kind, _, side = name.partition("-")
    if kind == PIXELS and side.isdigit():
        return {"kind": PIXELS, "image_size": int(side)}
    return dict(zoo().encoders[name])


def pixels_name(image_size: int) -> str:
    return f"{PIXELS}-{image_size}"


def code_of(encoder: dict[str, Any]) -> str:
    """What DVC watches of an encoder entry, below stages/encoders: the file of its kind, or, where it is made of other kinds, all of them."""
    return "" if encoder["kind"] == "composite" else f"{encoder['kind']}.py"


def weights_of(encoder: dict[str, Any]) -> list[str]:
    """The names of the weights that an encoder entry needs, none twice."""
    own = [encoder["weights"]] if "weights" in encoder else []
    return list(dict.fromkeys(own + [name for part in encoder.get("parts", {}).values() for name in weights_of(part)]))
