"""Frozen encoders of raw media: every file here with a function `build(place, *, options)` is one kind, imported on demand.

A new kind is one new file; nothing is listed here. Its parameter schema is the signature of its `build`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import params

if TYPE_CHECKING:
    from stages.encoders.media.encoder import Place, TokenEncoder

STORED = "stored"  # not a network: the tokens of all modalities lie in `.pt` files already, see stored.py
FACTS = "facts"  # not a network: what the sample table says of a record, see facts.py
DEFAULTS: dict[str, dict[str, Any]] = {  # by the kind of media the entry of an encoder that needs nothing but what is built in
    "text": {"kind": "sentences"},
    "image": {"kind": "frames", "reads": "image"},
    "video": {"kind": "frames", "reads": "video"},
    "audio": {"kind": "log_mel"},
    "series": {"kind": "windows"},
    STORED: {"kind": STORED},
}
SIGNATURE = "\ndef build(\n    place: Place,\n    *,\n"


def known() -> list[str]:
    """The names of all kinds, sorted; nothing is imported for it."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if SIGNATURE in file.read_text(encoding="utf-8"))


def build(name: str, kind: str, options: dict[str, Any], place: Place, at: tuple[str, ...] = ()) -> TokenEncoder:
    """An encoder ready to run. name: of its entry; `options` are checked against the kind's `build`, `at` says where they stand in params.yaml.

    Raises ParamsError, WeightsMissing (E101) or WeightsAltered (E102).
    """
    if kind not in known():
        raise params.ParamsError(f"{'.'.join((*at, 'kind'))}: no kind of encoder {kind!r}{params.nearest(kind, known())}")
    module = importlib.import_module(f"{__name__}.{kind}")
    given = params.options(module.build, options, at)
    built = module.build(place, **given)
    return built._replace(identity={"entry": {"name": name, "kind": kind, **given}, **built.identity})


def rebuild(recorded: dict[str, Any], place: Place) -> TokenEncoder:
    """The encoder that `records.json` of a store describes. Raises EncoderChanged if the weights here are others."""
    from stages.encoders.encoder import EncoderChanged

    options = dict(recorded["entry"])
    name, kind = options.pop("name"), options.pop("kind")
    built = build(name, kind, options, place, at=("records", "encoders", name))
    if built.identity["weights"] != recorded["weights"]:
        raise EncoderChanged(f"encoder {name}: made with weights {recorded['weights']}, here are {built.identity['weights']}")
    return built
