"""What a configuration's `model` means in entries of params.yaml: which detector, on which encoder, on how many images.

Four names bring a backbone that can be exchanged; any other model of params.yaml or of `assay models list` is taken with the encoder that it has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from stages import detectors
from stages.detectors import zoo
from stages.encoders import weights
from stages.params import ParamsError, nearest
from stages.serving import workspace
from stages.serving.configuration import Read
from stages.serving.workspace import Overrides, Plan

AFCLIP = "zero_shot.afclip"


class Method(NamedTuple):
    """kind: of its encoder. backbone, resolution: where the configuration says nothing."""

    detector: str
    kind: str
    backbone: str
    resolution: int


METHODS = {
    "winclip": Method("zero_shot.winclip", "clip", "ViT-B-16-plus-240", 240),
    "patchcore": Method("memory_bank.patchcore", "cnn", "wide_resnet50_2", 224),
    "afclip": Method(AFCLIP, "clip", "ViT-L-14-336", 518),
    "afclip_tiny": Method(AFCLIP, "clip", "TinyCLIP-ViT-8M-16-Text-3M", 224),
}


def known(template: dict[str, Any]) -> dict[str, str]:
    """The detector behind every name that model.name may have. template: the content of params.yaml."""
    few_shot = {name: zoo.find(name)[1].detector for name in zoo.few_shot_names()}
    return {**few_shot, **workspace.detectors_by_name(template), **{name: method.detector for name, method in METHODS.items()}}


def plan(asked: Read, template: dict[str, Any]) -> Plan:
    """The entries. Raises ParamsError for what the method cannot be asked for."""
    name, shots = asked.content.model.name, asked.content.data.k_shot
    found = _of_method(asked, METHODS[name]) if name in METHODS else _of_registry(asked, template)
    if asked.content.training and found.entry["detector"] != AFCLIP:
        raise ParamsError(f"{asked.at('training')}: only afclip and afclip_tiny have weights to train beforehand; take the section out")
    if shots == 0 and not detectors.load(found.entry["detector"]).zero_shot:
        where = asked.at("data", "k_shot")
        raise ParamsError(f"{where} is 0, but {name} learns from normal images: say how many of each category, or null for all of them")
    if shots is None:
        return found
    named = {"label": f"{shots}-shot"} if "shots" in found.entry else {}  # a configuration for few images has a label that names them
    return found._replace(entry=found.entry | {"shots": shots} | named)


def _of_registry(asked: Read, template: dict[str, Any]) -> Plan:
    model = asked.content.model
    for key in ("backbone", "weights"):
        if getattr(model, key) is not None:
            raise ParamsError(f"{asked.at('model', key)}: {model.name} brings an encoder of its own; leave it out")
    found = workspace.plan_of(template, model.name, "full", Overrides(img_size=model.resolution))
    return found._replace(entry=found.entry | asked.options)


def _of_method(asked: Read, method: Method) -> Plan:
    model, options = asked.content.model, dict(asked.options)
    backbone, found = _weights(asked, method)
    size = model.resolution or method.resolution
    if method.detector == AFCLIP and "layers" not in options:
        options["layers"] = _quarters(backbone)
    layers = list(detectors.build(method.detector, options, at=("model",)).needs.layers)
    encoder = {"kind": method.kind, "image_size": size, "backbone": backbone, "weights": found, "layers": layers}
    pixels = {"kind": zoo.PIXELS, "image_size": size}
    return Plan({"detector": method.detector, **options}, f"{method.kind}-{size}", encoder, zoo.pixels_name(size), pixels)


def _weights(asked: Read, method: Method) -> tuple[str, str]:
    """The backbone, by the name that its weights have for it, and the weights: those asked for, else the first that the lock has."""
    given, backbone = asked.content.model.weights, asked.content.model.backbone or method.backbone
    networks = {name: (row.clip if method.kind == "clip" else row.timm) or "" for name, row in weights.lock().items()}
    if given is not None and given not in networks:
        return backbone, given
    for wanted in (backbone, f"{backbone}-quickgelu"):  # what open_clip calls the networks of OpenAI
        for name, network in networks.items():
            if wanted in (network, network.split(".")[0]) and given in (None, name):
                return wanted, name
    if given is not None:
        raise ParamsError(
            f"{asked.at('model', 'weights')}: {given} are weights of {networks[given] or 'another kind of network'}, not of {backbone}"
        )
    known = {network.split(".")[0] for network in networks.values() if network}
    raise ParamsError(
        f"{asked.at('model', 'backbone')}: no weights of {backbone!r} are known; name some in model.weights{nearest(backbone, known)}"
    )


def _quarters(backbone: str) -> list[str]:
    """The layers that AF-CLIP reads of a CLIP where nobody says which."""
    from stages.detectors.zero_shot.maths.afclip_adaptor import quarters
    from stages.encoders.clip import architecture

    return list(quarters(architecture(backbone)["vision_cfg"]["layers"]))
