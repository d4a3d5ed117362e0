"""Networks of transformers from a local folder: configuration, tokenizer or preprocessor, and weights as safetensors. No network is asked, ever.

A folder is `<backbones>/<name>/`, or lies in an installed package that the lock of weights names. Its files are hashed into the identity of the
features. Weights in pickled form (`pytorch_model.bin`) are refused, and so is code that lies in the folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from stages import io
from stages.encoders import weights
from stages.encoders.weights import WeightsAltered, WeightsMissing
from stages.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SAYS = (".json", ".txt", ".model", ".safetensors")  # endings of the files that decide what a network gives
POINTER = b"version https://git-lfs"  # how a file begins that git-lfs has not fetched
UNUSED = ("pooler", "masked_spec_embed")  # parts that checkpoints may lack and that no encoder here reads


class UnsafeWeights(UserError, ValueError):
    """E103: a folder holds its weights only in a form that could run code."""


class Folder(NamedTuple):
    name: str
    path: Path
    identity: dict[str, Any]  # {"name", "sha256", "licence"}


def find(name: str, source: str, backbones: Path) -> Folder:
    """The folder of a network, hashed. source: where it may be had, for the error.

    Raises WeightsMissing (E101), WeightsAltered (E102) or UnsafeWeights (E103).
    """
    row = weights.lock().get(name)
    if row and weights.locate(row, backbones):
        found = weights.resolve(name, backbones)
        return Folder(name, found.path.parent, {**_identity(name, found.path.parent), "licence": row.licence})
    place = backbones / name
    if not (place / "config.json").is_file():
        raise WeightsMissing(weights.explain_missing(name, row, backbones) if row else _explain(name, source, place))
    if not list(place.glob("*.safetensors")):
        kinds = ", ".join(sorted(path.name for path in place.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".h5"))) or "none"
        raise UnsafeWeights(
            f"E103 {place} has no weights as safetensors (others there: {kinds}); pickled ones could run code and are not read. On a machine "
            "that you trust with it: AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    for path in place.glob("*.safetensors"):
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise WeightsAltered(
                    f"E102 {path} is a pointer of git-lfs and not the weights: the folder was cloned without them. Run `git lfs pull` where it was cloned"
                )
    return Folder(name, place, {**_identity(name, place), "licence": "not in the lock; see the model's page"})


def load(folder: Folder, kind: str = "AutoModel", **given: Any) -> nn.Module:
    """The network, float32, frozen and in evaluation mode. kind: a class of transformers. Raises WeightsAltered where a tensor is missing."""
    import torch
    from safetensors import SafetensorError

    try:
        factory = getattr(library(), kind)
        network, report = factory.from_pretrained(
            folder.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **given,
        )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SafetensorError) as error:
        raise WeightsAltered(
            f"E102 {folder.path} holds no network that transformers can open: {_first_line(error)}. Copy it again"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in UNUSED))
    if missing or report["mismatched_keys"]:
        first = (missing + sorted(map(str, report["mismatched_keys"])))[0]
        raise WeightsAltered(
            f"E102 {folder.path} does not fill {type(network).__name__}: {len(missing)} tensors missing, {len(report['mismatched_keys'])} of "
            f"another shape (first: {first}). Is it the folder of this kind of network?"
        )
    return network.requires_grad_(False).eval()


def part(folder: Folder, kind: str) -> Any:
    """A tokenizer or preprocessor of the folder. kind: a class of transformers."""
    try:
        return getattr(library(), kind).from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise WeightsAltered(f"E102 {folder.path} has no {kind} that transformers can open: {_first_line(error)}. Copy it again") from error


def preprocessing(folder: Folder) -> dict[str, Any]:
    """What the folder says of its pixels: {"mean", "std", "size"}; None for what it does not say."""
    names = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
    path = next((folder.path / name for name in names if (folder.path / name).is_file()), None)
    said = io.read_json(path) if path else {}
    size = said.get("crop_size") or said.get("size") or {}
    side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")
    return {"mean": said.get("image_mean"), "std": said.get("image_std"), "size": side}


def library() -> ModuleType:
    """transformers, imported on demand, offline and quiet. Raises WeightsMissing where it is not installed."""
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise WeightsMissing("E101 the package transformers is not installed. Run `pip install 'assay[records]'`") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def normalised(pixels: Tensor, said: dict[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(N, 3, H, W) uint8 as the network takes them: by the folder's own mean and std, else by these."""
    import torch

    centre, spread = (torch.tensor(said[key] or default).view(1, 3, 1, 1) for key, default in (("mean", mean), ("std", std)))
    return (pixels.float() / 255 - centre) / spread


def _identity(name: str, place: Path) -> dict[str, Any]:
    files = {path.name: io.file_hash(path) for path in sorted(place.iterdir()) if path.suffix in SAYS and path.name != "data_config.json"}
    return {"name": name, "sha256": io.content_hash(files)}


def _explain(name: str, source: str, place: Path) -> str:
    return (
        f"E101 {name} is asked for as weights of an encoder. Expected the folder {place.as_posix()} with config.json, the files of its tokenizer or "
        f"preprocessor, and *.safetensors. Not found there; no download is attempted. On a connected machine: `hf download {source} --local-dir "
        f"{name}`; here: copy that folder to {place.parent.as_posix()}/"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
