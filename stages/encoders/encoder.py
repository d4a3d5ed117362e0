"""One frozen encoder, ready to run: the same object fills the feature store, feeds detectors that stream, and serves single images.

Because there is only one way from pixels to features, a stored feature and a live one cannot differ; where the store rounds to float16, so
does `encode`. The kind of an entry names its module (`stages.encoders.<kind>`), whose `build` is imported on demand and whose keyword
parameters are the entry's options, so that a new kind touches no shared file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from stages.errors import UserError
from stages.params import EncoderEntry, ParamsError, options

if TYPE_CHECKING:
    from torch import Tensor

    from stages.types import Features

Form = Literal["float32", "float16", "uint8", "streamed"]


class Place(NamedTuple):
    """Where an encoder runs. device: "cpu" or "cuda"; threads: of one process."""

    image_size: int
    device: str
    threads: int
    backbones: Path


class Frozen(NamedTuple):
    """What `build` of an encoder kind returns: the function, and everything that decides its result."""

    encode: Callable[[Tensor], Features]
    identity: dict[str, Any]
    eager: Callable[[Tensor], Features] | None = None  # the same in plain torch, where `encode` runs elsewhere


class EncoderChanged(UserError, ValueError):
    """The encoder that can be built here is not the one that the features or the model were made with."""


class Encoder:
    """A frozen encoder with a name. `identity` is JSON: equal identities give equal features."""

    def __init__(self, entry: dict[str, Any], frozen: Frozen, form: Form = "float32") -> None:
        self.entry, self.form, self._encode = entry, form, frozen.encode
        self.eager = frozen.eager or frozen.encode  # whose operations torch can count
        self.identity: dict[str, Any] = {"entry": entry, "form": form, **frozen.identity}

    @classmethod
    def from_entry(cls, name: str, entry: EncoderEntry, device: str, threads: int, backbones: Path, form: Form = "float32") -> Self:
        """Build what `encoders.<name>` of params.yaml describes. device: "auto", "cpu" or "cuda"."""
        kind = _kind(name, entry.kind)
        given = options(kind.build, entry.options, at=("encoders", name))
        place = Place(entry.image_size, resolve_device(device), threads, backbones)
        described = {"name": name, "kind": entry.kind, "image_size": entry.image_size, **given}
        return cls(described, kind.build(place, **given), form)

    @classmethod
    def from_identity(cls, recorded: dict[str, Any], device: str, threads: int, backbones: Path) -> Self:
        """Build again what `encoder.json` or a model's config records. Raises EncoderChanged if the weights are not the same."""
        described = dict(recorded["entry"])
        name = described.pop("name")
        built = cls.from_entry(name, EncoderEntry(**described), device, threads, backbones, recorded["form"])
        if built.identity.get("weights") != recorded.get("weights"):
            raise EncoderChanged(f"encoder {name}: made with weights {recorded.get('weights')}, here are {built.identity.get('weights')}")
        return built

    def differences(self, recorded: dict[str, Any]) -> list[str]:
        """What differs from a recorded identity and may change the last bits of features (versions, threads, runtime, the ONNX file)."""
        keys = [key for key in self.identity if self.identity[key] != recorded.get(key)]
        return [f"{key}: recorded {recorded.get(key)!r}, here {self.identity[key]!r}" for key in keys]

    @property
    def image_size(self) -> int:
        return self.entry["image_size"]

    def encode(self, pixels: Tensor) -> Features:
        """pixels: (B, 3, H, W) uint8 at `image_size`. Returns {layer: (B, C, h, w) float32} on the CPU, rounded as the store rounds."""
        if tuple(pixels.shape[1:]) != (3, self.image_size, self.image_size):
            raise ValueError(
                f"encoder {self.entry['name']} takes (B, 3, {self.image_size}, {self.image_size}) pixels, got {tuple(pixels.shape)}; "
                "resize with stages.datasets.images.resize_image"
            )
        features = self._encode(pixels)
        if self.form == "float16":
            return {layer: value.half().float() if value.is_floating_point() else value for layer, value in features.items()}
        return features

    def row_shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """{layer: (shape of one image's features, dtype name)}, found by encoding one black image."""
        import torch

        features = self.encode(torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8))
        return {layer: (tuple(value.shape[1:]), str(value.dtype).removeprefix("torch.")) for layer, value in features.items()}


def text_tower(recorded: dict[str, Any], device: str, threads: int, backbones: Path) -> Callable[[Sequence[str]], Tensor] | None:
    """What turns sentences into (n, D) float32 for the encoder that `encoder.json` records; None for kinds that only see."""
    described = dict(recorded["entry"])
    name = described.pop("name")
    entry = EncoderEntry(**described)
    kind = _kind(name, entry.kind)
    if not hasattr(kind, "build_text"):
        return None
    place = Place(entry.image_size, resolve_device(device), threads, backbones)
    return kind.build_text(place, **options(kind.build, entry.options, at=("encoders", name)))


def resolve_device(device: str) -> str:
    """`auto` is CUDA where there is one. Asking for what is not there is an error, never a silent fallback."""
    import torch

    known = ("auto", "cpu", "cuda")
    if device not in known:
        raise ParamsError(f"compute.device must be one of {', '.join(known)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ParamsError("compute.device is cuda, but torch finds no CUDA device here; set it to cpu or auto")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; a package that is not installed has none to record."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _kind(name: str, kind: str) -> Any:
    """The module of an encoder kind: one that lies beside this one and defines `build`."""
    from stages import encoders

    files = [path for folder in encoders.__path__ for path in Path(folder).glob("*.py")]
    known = sorted(path.stem for path in files if "\ndef build(" in path.read_text(encoding="utf-8"))
    if kind not in known:
        raise ParamsError(f"encoders.{name}.kind: no encoder kind {kind!r}. Known: {', '.join(known)}")
    return import_module(f"stages.encoders.{kind}")
