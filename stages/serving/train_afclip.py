"""Make a checkpoint of AF-CLIP: its adaptor and its learnt words, from the stored features of a prepared data set's test images and their masks.

That the test split is learnt from is the field's protocol for models that are then judged on other data sets (arXiv:2507.19949, and all it is compared
with); it is said before the training begins, in the checkpoint, and beside every result, and the model refuses to be judged on that data set.
"""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import io, params
from stages.datasets.samples import manifest_samples
from stages.encoders import weights
from stages.params import ParamsError
from stages.types import Refusal

if TYPE_CHECKING:
    from stages.detectors.zero_shot.maths.afclip_training import Learner
    from stages.training import Run

SPLIT = "test"


class Trained(NamedTuple):
    """first_loss, last_loss: means over the first and the last epoch."""

    name: str
    file: str
    sha256: str
    dataset: str
    images: int
    anomalous: int
    steps: int
    first_loss: float
    last_loss: float


def train(
    dataset: str,
    encoder: str,
    name: str,
    folder: Path,
    *,
    epochs: int = 2,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    seed: int = 122,
    device: str = "auto",
) -> Trained:
    """Train on the test images of `dataset`, as the entry `encoder` of kind clip sees them, and write backbones/<name>.safetensors.

    name: begins with afclip-. folder: of local weights. Started again after a stop it goes on, to the same bytes.
    Raises Refusal where there are no masks, ParamsError for a name or an encoder that cannot be, and for layers that the encoder does not give.
    """
    import torch

    from stages.detectors.zero_shot.afclip import AFCLIP
    from stages.detectors.zero_shot.maths.afclip_adaptor import quarters
    from stages.encoders import pretraining
    from stages.encoders.batches import open_batches
    from stages.training import Plan

    _require_name(name)
    settings, rows = params.load(), marked_rows(dataset)
    recorded = io.read_json(Path("features", dataset, encoder, "encoder.json"))
    network = _network(recorded, encoder, folder)
    model = AFCLIP(layers=quarters(len(network.visual.transformer.resblocks)))
    batches = open_batches(dataset, encoder, rows, model.needs.layers, settings, batch_size)
    about: dict[str, Any] = {
        "network": "AF-CLIP",
        "encoder": recorded["entry"] | {"weights": recorded["weights"]},
        "reads": model.reads,
        "auxiliary": {"dataset": dataset, "split": SPLIT, "samples": io.content_hash(rows)},
        "protocol": protocol(dataset, rows),
        "training": {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed},
    }
    run = pretraining.run_of(name, about, seed, device)
    learner = _learner(network, model.reads, seed, run)
    adam = partial(torch.optim.Adam, lr=learning_rate, betas=(0.5, 0.999))
    steps = run.train(learner, batches, learner.loss, Plan(optimiser=adam, epochs=epochs, batch_size=batch_size), name="adaptor")
    note = store(name, learner, about, folder, run)
    losses = [row["loss"] for row in run.history]
    anomalous = sum(row["label"] for row in rows)
    return Trained(
        name, (folder / f"{name}.safetensors").as_posix(), note["sha256"], dataset, len(rows), anomalous, steps, losses[0], losses[-1]
    )


def marked_rows(dataset: str) -> list[dict[str, Any]]:
    """The test images of all categories whose every pixel is known: normal ones, and anomalous ones with a mask. Raises Refusal without the latter."""
    known = [
        row for row in manifest_samples(dataset) if row["split"] == SPLIT and (row["label"] == 0 or (row["label"] == 1 and row["mask"]))
    ]
    if not any(row["label"] for row in known):
        raise Refusal(f"{dataset} has no anomalous test image with a mask, and AF-CLIP learns from masks: take another data set")
    return known


def protocol(dataset: str, rows: list[dict[str, Any]]) -> str:
    """What is learnt from, said openly."""
    anomalous = sum(row["label"] for row in rows)
    return (
        f"learns from the {len(rows)} test images of {dataset}, {anomalous} of them anomalous, and from their masks: the field's protocol for models "
        f"that are judged on other data sets. Nothing that is made from it may be judged on {dataset}"
    )


def _require_name(name: str) -> None:
    if not re.fullmatch(weights.AFCLIP + r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ParamsError(
            f"a checkpoint's name is {weights.AFCLIP} and letters, digits, dots or dashes, for instance afclip-visa; got {name!r}"
        )


def _network(recorded: dict[str, Any], encoder: str, folder: Path) -> Any:
    """The CLIP that the features were made with. Raises ParamsError for other kinds, EncoderChanged where the weights here are not the same."""
    from stages.encoders import clip
    from stages.encoders.encoder import EncoderChanged

    if "refused" in recorded:
        raise Refusal(recorded["refused"])
    entry = recorded["entry"]
    if entry["kind"] != "clip":
        raise ParamsError(
            f"encoders.{encoder} is of kind {entry['kind']}, and AF-CLIP needs one of kind clip, whose sentences it learns to use"
        )
    network, identity = clip.whole_network(entry["backbone"], entry["weights"], entry["seed"], folder, entry["quick_gelu"])
    if identity != recorded["weights"]:
        raise EncoderChanged(f"encoder {encoder}: features were made with weights {recorded['weights']}, here are {identity}")
    return network


def _learner(network: Any, reads: dict[str, Any], seed: int, run: Run) -> Learner:
    from stages.detectors.zero_shot.maths.afclip_training import Learner
    from stages.encoders.clip import Text

    return Learner(network.visual, Text(network).to(run.device), **reads, seed=seed)


def store(name: str, learner: Learner, about: dict[str, Any], folder: Path, run: Run) -> dict[str, Any]:
    """Write the checkpoint whole, note its checksum, and forget what a stopped run would go on from. Returns the note."""
    import torch

    from stages.detectors.zero_shot.maths.afclip_training import prompted
    from stages.encoders import weights_bundle

    with torch.no_grad():
        spoken = {"sentences": learner.sentences(), "plain_sentences": prompted(learner.text, learner.vectors[:0])}
    state = {key: value.detach().cpu() for key, value in (learner.state_dict() | spoken).items()}
    path = folder / weights.row_of(name).file
    io.write_model(path, state, about | {"history": run.history})
    note = weights_bundle.note_file(name, path, folder)
    if run.resume:
        shutil.rmtree(run.resume, ignore_errors=True)
    return note
