"""A checkpoint of one epoch: `epoch_034.safetensors`, with all that rebuilds the detector and judges by it under one key of its metadata.

Only numbers and JSON are in it. `epoch_034.pt` stands for it on the command line, for the sake of scripts that are there already.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import fusion, io
from stages.datasets.record_errors import RecordError
from stages.errors import Missing, UserError

if TYPE_CHECKING:
    from stages.fusion.detector import RecordDetector

FORMAT = 1
ABOUT = ("detector", "options", "modalities", "epoch", "temperature", "as_tokens")  # without which nothing can be judged


class Checkpoint(NamedTuple):
    path: Path
    detector: RecordDetector
    about: dict[str, Any]  # format, detector, options, modalities, epoch, temperature, thr, seed, as_tokens


def path_of(folder: Path, epoch: int) -> Path:
    """epoch: from 1."""
    return folder / f"epoch_{epoch:03d}.safetensors"


def save(path: Path, detector: RecordDetector, about: dict[str, Any]) -> None:
    """about: "detector" and "options", and whatever else shall be known."""
    io.write_model(path, detector.state_dict(), {"format": FORMAT, "modalities": list(detector.widths.items()), **about})


def find(given: Path) -> Path:
    """The safetensors file that a path means. Raises RecordError for a pickle that has none beside it, Missing where there is nothing."""
    beside = given.with_suffix(".safetensors")
    if beside.is_file():
        return beside
    if given.is_file():
        what = "is no checkpoint of Assay: it could run code, and is not loaded"
        raise RecordError("E103", given, "", what, f"Train again with --train True, which writes {beside.name}; weights of another program do not fit")
    here = sorted(path.name for path in given.parent.glob("epoch_*.safetensors")) if given.parent.is_dir() else []
    hint = f"There are {here[0]} to {here[-1]}" if here else "Train first, with --train True"
    raise Missing(f"neither {given} nor {beside.name} beside it is there. {hint}")


def load(given: Path) -> Checkpoint:
    """The detector ready to score. Raises RecordError (E103) for a file of another program, DamagedFile for one that is cut off or altered."""
    from safetensors import SafetensorError, safe_open

    path = find(given)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("assay", "{}"))
        if not isinstance(about, dict) or about.get("format") != FORMAT or not set(ABOUT) <= set(about):
            what = "is no checkpoint of main-multi: the file does not say which detector it is of"
            raise RecordError("E103", path, "", what, "Give one that --train True has written, such as checkpoints/epoch_034.pt")
        detector = fusion.build(about["detector"], about["options"], at=("checkpoint", about["detector"]))
        detector.open(dict(about["modalities"])).load_state_dict(io.read_model(path))
        return Checkpoint(path, detector.eval(), about)
    except UserError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise io.DamagedFile(path, error) from error
