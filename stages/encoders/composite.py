"""The encoder `composite`: several encoders of the same image as one entry, such as one network at several scales (CS-Flow: EfficientNet-B5
on the image, on a half and on a quarter of its size) or two networks that differ (U-Flow: CaiT-M48 at 448 px and CaiT-S24 at 224 px).

Each entry of `parts` is an encoder entry as it could stand alone: kind, image_size and the options of that kind. The image comes in at the
size of the whole entry and is resized, on its uint8 levels and with the antialiased bicubic kernel that images are decoded with, to the size
of the part, so that a part sees what it would see of a store of its own size (once resized further). A layer of a part is called
`<part>.<layer>`, e.g. `half.layer3`.

    encoders:
      b5-scales:
        kind: composite
        image_size: 768
        parts:
          full: {kind: cnn, image_size: 768, backbone: tf_efficientnet_b5.aa_in1k, weights: tf_efficientnet_b5.aa_in1k, layers: [blocks.5]}
          half: {kind: cnn, image_size: 384, backbone: tf_efficientnet_b5.aa_in1k, weights: tf_efficientnet_b5.aa_in1k, layers: [blocks.5]}

The identity of a composite is made of those of its parts: `weights` names those of all parts and lists them. Parts that differ in their size alone are one
network: its parameters are counted once, though each size has its own copy in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from stages.encoders.encoder import Encoder, Frozen, Place
from stages.params import EncoderEntry, ParamsError
from stages.types import Features


def build(place: Place, *, parts: dict[str, dict[str, Any]]) -> Frozen:
    """The encoder kind `composite`. parts: entries of other kinds; their order is the order of the layers."""
    if not parts:
        raise ParamsError("a composite encoder needs at least one entry under parts")
    built = {name: _part(name, given, place) for name, given in parts.items()}
    weights = {name: part.identity["weights"] for name, part in built.items()}
    named = {key: " + ".join(dict.fromkeys(each[key] for each in weights.values())) for key in ("name", "licence")}
    networks = {repr({**part.entry, "name": "", "image_size": 0}): part.identity["parameters"] for part in built.values()}
    packages = {package: number for part in built.values() for package, number in part.identity["versions"].items()}
    return Frozen(
        lambda pixels: _together(pixels, built, {name: part.encode for name, part in built.items()}),
        {
            "weights": {**named, "parts": weights},
            "parts": {name: part.entry for name, part in built.items()},
            "parameters": sum(networks.values()),
            "device": place.device,
            "threads": place.threads,
            "runtime": {name: part.identity["runtime"] for name, part in built.items()},
            "onnx_sha256": {name: part.identity["onnx_sha256"] for name, part in built.items()},
            "versions": packages,
        },
        lambda pixels: _together(pixels, built, {name: part.eager for name, part in built.items()}),
    )


def resized(pixels: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) uint8 to (B, 3, size, size) uint8; the image itself where it has that size."""
    if tuple(pixels.shape[2:]) == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)


def _part(name: str, given: dict[str, Any], place: Place) -> Encoder:
    try:
        entry = EncoderEntry.model_validate(given)
    except ValidationError as error:
        raise ParamsError(f"parts.{name} is no encoder entry: {error}") from error
    if entry.kind in ("composite", "pixels") or "." in name:
        raise ParamsError(f"parts.{name}: a part is one network under a name without a dot, got kind {entry.kind!r}")
    return Encoder.from_entry(name, entry, place.device, place.threads, place.backbones)


def _together(pixels: Tensor, parts: dict[str, Encoder], runs: dict[str, Callable[[Tensor], Features]]) -> Features:
    encoded = {name: runs[name](resized(pixels, part.image_size)) for name, part in parts.items()}
    return {f"{name}.{layer}": value for name, features in encoded.items() for layer, value in features.items()}
