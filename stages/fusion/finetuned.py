"""A model of raw media on disk: what learnt of it, and all that is needed to make the rest again.

    model.safetensors    the fusion network, and adapters or unfrozen layers; never a frozen backbone
    config.json          `Config`: backbones with their fingerprints, how media are read, classes, threshold, data, seed

A folder of a backbone is known by the hash of its files, a twin by the hash of its weights as this machine draws them, so that adapters are never put on
another network than the one they were learnt with.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from stages import fusion, io
from stages.datasets.records import NORMAL
from stages.datasets.weld_files import CURRENT
from stages.datasets.welding_dataset import MediaReader, Shape
from stages.errors import UserError
from stages.fusion.deep.cross_attention import CrossAttention
from stages.fusion.deep.maths import lora, twins
from stages.fusion.deep.maths.backbones import (
    TWIN,
    AudioEncoder,
    Encoder,
    ImageEncoder,
    TwinAudio,
    TwinImage,
    TwinVideo,
    VideoEncoder,
    folder_of,
)
from stages.fusion.deep.maths.network import Network
from stages.fusion.deep.maths.sota_model import QuadModalSOTAModel
from stages.fusion.finetuning import NAMES
from stages.params import ParamsError
from stages.seed import derive

if TYPE_CHECKING:
    from collections.abc import Mapping

Adapt = Literal["frozen", "lora", "last"]
ADAPTS: tuple[Adapt, ...] = ("frozen", "lora", "last")
DETECTOR = "deep.cross_attention"  # whose network stands behind the encoders
KINDS: dict[str, tuple[type[Encoder], type[nn.Module], str]] = {  # the encoder, its twin, whose the published weights are
    "video": (VideoEncoder, TwinVideo, "facebook"),
    "image": (ImageEncoder, TwinImage, "facebook"),
    "audio": (AudioEncoder, TwinAudio, "MIT"),
}
ALL_CONVOLUTIONS = {("audio", TWIN)}  # there is no attention to put adapters on


class WrongModel(UserError, ValueError):
    """A folder that holds no model of raw media, or one that does not fit what is here."""


class Reading(BaseModel):
    """How files become arrays: the options of `MediaReader`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nominal: dict[str, tuple[float, float]]
    crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    onset: bool = True
    current: str = CURRENT
    arc_above: float = 5.0
    relative: bool = False
    limit: float = 1e9


class Config(BaseModel):
    """options: of DETECTOR. rank, last: of the adapters, and how many layers. data: the fingerprint of what was learnt from. threshold: of the scores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapt: Adapt
    rank: int
    last: int
    seed: int
    backbones: dict[str, str]
    fingerprints: dict[str, str]
    options: dict[str, Any]
    classes: list[str]
    shape: Shape
    reading: Reading
    dataset: str
    data: str
    threshold: float | None = None
    libraries: dict[str, str] = {}

    @property
    def as_json(self) -> dict[str, Any]:
        return {**self.model_dump(mode="json"), "shape": self.shape._asdict()}

    def reader(self, root: Path) -> MediaReader:
        return MediaReader(root, self.shape, **self.reading.model_dump())


def fingerprint(name: str, weights: str, backbones: Path, seed: int) -> str:
    """Of the backbone of one modality, "video", "image" or "audio". Raises what `pretrained.find` raises where its folder is not there."""
    _, twin, owner = KINDS[name]
    if weights != TWIN:
        return str(folder_of(weights, owner, backbones).identity["sha256"])
    digest = hashlib.sha256()
    for place, tensor in sorted(twins.drawn(twin, seed).state_dict().items()):
        digest.update(f"{place}{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def detector_of(options: dict[str, Any], row: str) -> CrossAttention:
    """The detector whose network, sizes and learning are taken. Raises ParamsError."""
    return cast(CrossAttention, fusion.build(DETECTOR, options, at=("records", "models", row)))


def build(config: Config, backbones: Path) -> QuadModalSOTAModel:
    """The model before anything was learnt, the same for every variant of one seed. Raises WrongModel where a backbone is another one."""
    made = {}
    for name, weights in config.backbones.items():
        if fingerprint(name, weights, backbones, config.seed) != config.fingerprints[name]:
            what = "the twin that this machine draws" if weights == TWIN else f"the folder {weights} in {backbones.as_posix()}"
            raise WrongModel(f"{what} is not the {name} backbone that the model was learnt with: its fingerprint differs. Bring that one, or fine-tune anew")
        rank = config.rank if config.adapt == "lora" and (name, weights) not in ALL_CONVOLUTIONS else 0
        last = config.last if config.adapt == "last" else 0
        made[name] = KINDS[name][0](weights, backbones=backbones, unfreeze_last=last, lora_rank=rank, seed=config.seed)
    detector = detector_of(config.options, DETECTOR)
    widths = {name: encoder.width for name, encoder in made.items()} | {"series": config.shape.sensors}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "network"))
        network = Network(widths, detector.encoding, detector.fusion(NAMES), detector.features, len(config.classes))
    return QuadModalSOTAModel(made, network, quiet=True).eval()


def learnt(model: QuadModalSOTAModel) -> dict[str, Tensor]:
    """All that has to be kept: the network, and what learns of the encoders."""
    network = {f"network.{place}": tensor for place, tensor in model.network.state_dict().items()}
    return network | {f"encoders.{place}": one.detach() for place, one in model.encoders.named_parameters() if one.requires_grad}


def kept_bytes(model: QuadModalSOTAModel) -> int:
    """What must be kept of the encoders, beside the network."""
    return sum(one.numel() * one.element_size() for place, one in learnt(model).items() if place.startswith("encoders."))


def save(place: Path, model: QuadModalSOTAModel, config: Config) -> None:
    io.write_model(place / "model.safetensors", learnt(model), {"adapt": config.adapt})
    io.write_json(place / "config.json", config.as_json)


def read_config(place: Path) -> Config:
    """Raises WrongModel."""
    path = place / "config.json"
    if not path.is_file():
        raise WrongModel(f"{place.as_posix()} holds no fine-tuned model: config.json is not there. Expected a folder that `assay weld finetune` wrote")
    try:
        return Config(**io.read_json(path))
    except (ValidationError, TypeError) as error:
        said = str(error).splitlines()
        reason = " ".join(said[1:3]) or said[0]
        raise WrongModel(f"{path.as_posix()} is not that of a fine-tuned model ({reason}). Is it a folder of `assay weld finetune`?") from error


def load(place: Path, backbones: Path) -> tuple[QuadModalSOTAModel, Config]:
    """A model as it was saved, ready to score. Raises WrongModel."""
    config = read_config(place)
    path = place / "model.safetensors"
    if not path.is_file():
        raise WrongModel(f"{place.as_posix()} lacks model.safetensors. Copy the whole folder that `assay weld finetune` wrote")
    try:
        model = build(config, backbones)
        _fill(model, io.read_model(path), config.adapt)
    except (ParamsError, lora.NoSuchLayer, RuntimeError, KeyError) as error:
        raise WrongModel(f"{path.as_posix()} does not fit its config.json ({str(error).splitlines()[0]}). Copy the folder again") from error
    return model.eval(), config


@torch.no_grad()
def _fill(model: QuadModalSOTAModel, state: Mapping[str, Tensor], adapt: Adapt) -> None:
    """Raises NoSuchLayer, RuntimeError or KeyError where the tensors are not of this model."""
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "encoders": {}}
    for name, tensor in state.items():
        part, _, place = name.partition(".")
        parts[part][place] = tensor
    model.network.load_state_dict(parts["network"])
    if adapt == "lora":
        lora.load_adapters(model.encoders, parts["encoders"])
        return
    own = {place: one for place, one in model.encoders.named_parameters() if one.requires_grad}
    if wrong := sorted(set(own) ^ set(parts["encoders"])) or [place for place in own if own[place].shape != parts["encoders"][place].shape]:
        raise KeyError(f"{len(wrong)} tensors of the encoders differ in name or shape, the first is {wrong[0]}")
    for place, one in own.items():
        one.copy_(parts["encoders"][place])


def class_places(labels: list[int], faults: list[str], classes: list[str]) -> Tensor:
    """(N,) int64, the place of each weld's class among `classes`, -1 for one that is not among them."""
    place = {name: number for number, name in enumerate(classes)}
    return torch.tensor([place.get(fault if label else NORMAL, -1) for label, fault in zip(labels, faults, strict=True)], dtype=torch.int64)
