"""The encoder `cnn`: any timm convolutional network by name, cut after the last layer asked for.

Levels 0..255 go in, the backbone's own mean and std are buffers of the network, and one feature map a layer comes out: preprocessing cannot
be forgotten or done twice. `layer1` .. `layer4` mean the same in every architecture: the last stage at stride 4, 8, 16, 32 (ResNet's names,
as the papers use them; in EfficientNet-Lite these are blocks.1, .2, .4, .6). Any other name is a module of the timm model.

Cutting works because these networks are chains of their children. That is not taken on trust: at build time the cut chain must give, on a
probe, bit for bit what hooks in the whole network see; a network that is no chain is refused by name.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from stages.encoders import weights as weight_files
from stages.encoders.encoder import Frozen, Place, versions
from stages.params import ParamsError
from stages.types import Features

STRIDES = {"layer1": 4, "layer2": 8, "layer3": 16, "layer4": 32}
PROBE_SIZE = 96  # pixels; the smallest input that every timm family takes


class CNN(nn.Module):
    """A timm network up to the deepest of `layers`, frozen unless `trainable`.

    weights: a name of the lock of weights, a timm tag, or "random" (then `seed` decides every value).
    Raises WeightsMissing, WeightsAltered, or ParamsError for a backbone or layer that does not exist.
    """

    def __init__(
        self,
        *,
        backbone: str,
        layers: tuple[str, ...],
        weights: str,
        seed: int = 0,
        trainable: bool = False,
        backbones: Path = Path("backbones"),
    ) -> None:
        super().__init__()
        whole, self.weights_identity = weight_files.whole_network(backbone, weights, seed, backbones)
        config = whole.pretrained_cfg
        self.backbone, self.layers, self.trainable = backbone, tuple(layers), trainable
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1))
        modules = {layer: _module_name(whole, backbone, layer) for layer in layers}
        self._keys = {layer: _key(module) for layer, module in modules.items()}
        self.chain = _cut(whole, backbone, list(modules.values()))
        self.requires_grad_(trainable).train(trainable)
        if trainable:
            self.to(memory_format=torch.channels_last)  # depthwise convolutions: half the time on a CPU, forwards and backwards

    def forward(self, pixels: Tensor) -> Features:
        """pixels: (B, 3, H, W) levels 0..255, uint8 or float. Returns {layer: (B, C, h, w) float32}."""
        with contextlib.nullcontext() if self.trainable else torch.no_grad():
            seen = _run_chain(self.chain, (pixels.float() / 255 - self.mean) / self.std, set(self._keys.values()))
        return {layer: seen[key] for layer, key in self._keys.items()}

    def train(self, mode: bool = True) -> Self:
        """A frozen network stays in evaluation mode whatever its owner does, so that its batch statistics never move."""
        return super().train(mode and self.trainable)


def build(
    place: Place,
    *,
    backbone: str,
    layers: list[str],
    weights: str,
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime",
    seed: int = 0,
) -> Frozen:
    """The encoder kind `cnn`. On a CUDA device the runtime is torch, whatever is asked; the identity says what ran."""
    network = CNN(backbone=backbone, layers=tuple(layers), weights=weights, seed=seed, backbones=place.backbones)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    identity = {"weights": network.weights_identity, "parameters": parameters, "device": place.device, "threads": place.threads}
    if runtime == "onnxruntime" and place.device == "cpu":
        from stages.encoders.onnx_runtime import OnnxNetwork

        exported = OnnxNetwork(network, network.layers, place.image_size, place.threads)
        packages = versions("torch", "timm", "onnx", "onnxruntime")
        return Frozen(exported, {**identity, "runtime": runtime, "onnx_sha256": exported.sha256, "versions": packages}, network)
    network = network.to(place.device)
    return Frozen(
        lambda pixels: {layer: value.cpu() for layer, value in network(pixels.to(place.device)).items()},
        {**identity, "runtime": "torch", "onnx_sha256": None, "versions": versions("torch", "timm")},
    )


def _module_name(whole: nn.Module, backbone: str, layer: str) -> str:
    """The timm module that `layer` means: the last stage of its stride for a canonical name, else the name itself."""
    info = getattr(whole, "feature_info", [])
    last_of_stride = {entry["reduction"]: entry["module"] for entry in getattr(info, "info", info)}
    if layer in STRIDES and STRIDES[layer] in last_of_stride:
        return last_of_stride[STRIDES[layer]]
    if layer in dict(whole.named_modules()) and layer:
        return layer
    canonical = [name for name, stride in STRIDES.items() if stride in last_of_stride]
    raise ParamsError(f"{backbone} has no layer {layer!r}. Known: {', '.join(canonical)}, or a module of the timm model")


def _cut(whole: nn.Module, backbone: str, wanted: list[str]) -> nn.Sequential:
    """The children of `whole` in order, up to the last one wanted, proved equal to the whole network on a probe."""
    chain, missing = OrderedDict(), set(wanted)
    for name, child in _children(whole, "", wanted):
        if not missing:
            break
        chain[_key(name)] = child
        missing.discard(name)
    cut = nn.Sequential(chain)
    if not missing and not _equals_whole(cut, whole, wanted):
        for module in whole.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # a layer that was handed out may have been overwritten by the next one
    if missing or not _equals_whole(cut, whole, wanted):
        layers = ", ".join(wanted)
        raise ParamsError(f"{backbone} is not a plain chain of modules up to {layers}, so it cannot be cut there; take another backbone")
    return cut


def _children(module: nn.Module, prefix: str, wanted: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """Children in order; a Sequential is opened only where something inside it is wanted."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.Sequential) and any(one.startswith(f"{path}.") for one in wanted):
            yield from _children(child, f"{path}.", wanted)
        else:
            yield path, child


@torch.no_grad()
def _equals_whole(chain: nn.Sequential, whole: nn.Module, wanted: list[str]) -> bool:
    probe = torch.linspace(-2, 2, 3 * PROBE_SIZE * PROBE_SIZE).sin().view(1, 3, PROBE_SIZE, PROBE_SIZE)
    expected: dict[str, Tensor] = {}
    hooks = [
        whole.get_submodule(name).register_forward_hook(lambda _module, _inputs, output, name=name: expected.update({name: output.clone()}))
        for name in wanted
    ]
    try:
        whole(probe)
        seen = _run_chain(chain, probe, {_key(name) for name in wanted})
    except (AttributeError, RuntimeError, TypeError):  # a child that takes or gives something other than one tensor
        return False
    finally:
        for hook in hooks:
            hook.remove()
    return all(expected[name].ndim == 4 and torch.equal(seen[_key(name)], expected[name]) for name in wanted)


def _run_chain(chain: nn.Sequential, value: Tensor, wanted: set[str]) -> dict[str, Tensor]:
    seen = {}
    for key, module in chain.named_children():
        value = module(value)
        if key in wanted:
            seen[key] = value
    return seen


def _key(module_name: str) -> str:
    return module_name.replace(".", "_")  # a name inside nn.Sequential holds no dot
