"""The encoder `vit`: any timm vision transformer by name (DINOv2 with or without registers, DeiT, plain ViT, CaiT), read out after some of
its blocks.

Levels 0..255 go in, the backbone's own mean and std are buffers of the network, and maps (B, C, h, w) come out. Names of layers:
- `block7` is what timm's `blocks.7` gives, counted from 0 as timm does: the eighth block. (Where a paper counts from 1, as FastFlow and
  U-Flow do, their "block 41" is `block40` here.)
- a key of `groups`, e.g. `group1: [2, 3, 4, 5]`, is the mean of those blocks. Dinomaly's two groups of four blocks are stored, not eight
  blocks; the mean of all eight is the mean of the two.
- either name with `_extra` behind it holds the tokens that belong to no patch, (B, C, 1, P): class, then distillation, then registers. They
  are dropped unless a layer asks for them, so a map is always a map and nothing has to be cut out of it. CaiT has none within its blocks.

`norm` puts the network's final norm behind every block that is read (before a mean), as FastFlow and U-Flow do; Dinomaly does not.

Position embeddings are interpolated once, at build time, to the grid of the images: bicubic without antialiasing and, for DINOv2, with the
offset of 0.1 in the scale (`position_offset`) that its code and Dinomaly's use. timm's own resampling antialiases, so features at other
than the native size differ from timm's `dynamic_img_size`; at the native size they are bit for bit timm's.

`resize` and `crop` are there for configurations that ask for them by name (Dinomaly's paper: 448 px, of which the centre 392 are looked
at); by default the image is taken as it comes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.encoders import weights as weight_files
from stages.encoders.encoder import Frozen, Place, versions
from stages.params import ParamsError, nearest
from stages.types import Features

EXTRA = "_extra"
DINOV2_OFFSET = 0.1


class Layer(NamedTuple):
    blocks: tuple[int, ...]  # whose mean it is
    extra: bool  # the tokens of no patch instead of the map


class ViT(nn.Module):
    """A frozen timm transformer up to the deepest block that `layers` need, for square images of `image_size` pixels.

    weights: a name of the lock of weights, a timm tag, or "random" (then `seed` decides every value).
    Raises WeightsMissing, WeightsAltered, or ParamsError for a backbone, layer or size that cannot be had.
    """

    def __init__(
        self,
        *,
        backbone: str,
        layers: tuple[str, ...],
        weights: str,
        image_size: int,
        groups: dict[str, list[int]] | None = None,
        norm: bool = False,
        position_offset: float | None = None,
        seed: int = 0,
        backbones: Path = Path("backbones"),
    ) -> None:
        super().__init__()
        whole, self.weights_identity = weight_files.whole_network(backbone, weights, seed, backbones)
        _require_transformer(whole, backbone)
        self.backbone, self.layers, self.image_size, self.norm = backbone, tuple(layers), image_size, norm
        self._has_extra = type(whole).__name__ != "Cait" and whole.num_prefix_tokens > 0
        self._read = {layer: _parse(layer, groups or {}, whole, backbone) for layer in layers}
        if norm and isinstance(whole.norm, nn.Identity):
            raise ParamsError(f"{backbone} has no norm after its last block (it pools first); set norm to false")
        missing = [layer for layer, read in self._read.items() if read.extra and not self._has_extra]
        if missing:
            raise ParamsError(f"{backbone} has no class or register tokens within its blocks, so there is no layer {missing[0]!r}")
        self._blocks = sorted({block for read in self._read.values() for block in read.blocks})
        self.register_buffer("mean", torch.tensor(whole.pretrained_cfg["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(whole.pretrained_cfg["std"]).view(1, 3, 1, 1))
        offset = position_offset if position_offset is not None else DINOV2_OFFSET if "dinov2" in backbone else 0.0
        self.grid = _fit_to(whole, backbone, image_size, offset)
        whole.prune_intermediate_layers(self._blocks, prune_norm=not norm, prune_head=True)
        self.network = whole.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Features:
        """pixels: (B, 3, S, S) levels 0..255, uint8 or float. Returns {layer: (B, C, h, w) float32}, or (B, C, 1, P) for `_extra`."""
        tokens = self._tokens((pixels.float() / 255 - self.mean) / self.std)
        return {layer: self._layer(read, tokens) for layer, read in self._read.items()}

    def train(self, mode: bool = True) -> ViT:
        """Always in evaluation mode, whatever its owner does."""
        return super().train(False)

    def _tokens(self, images: Tensor) -> dict[int, tuple[Tensor, Tensor | None]]:
        """{block: ((B, h*w, C) of the patches, (B, P, C) of the others)}, normalised where that is asked for."""
        asked = {"indices": self._blocks, "norm": self.norm, "output_fmt": "NLC", "intermediates_only": True}
        if self._has_extra:
            found = self.network.forward_intermediates(images, return_prefix_tokens=True, **asked)
        else:
            found = [(patches, None) for patches in self.network.forward_intermediates(images, **asked)]
        return dict(zip(self._blocks, found, strict=True))

    def _layer(self, read: Layer, tokens: dict[int, tuple[Tensor, Tensor | None]]) -> Tensor:
        values = torch.stack([tokens[block][int(read.extra)] for block in read.blocks]).mean(dim=0).transpose(1, 2)
        return values.unflatten(2, (1, -1) if read.extra else (self.grid, self.grid)).contiguous()


def build(
    place: Place,
    *,
    backbone: str,
    layers: list[str],
    weights: str,
    groups: dict[str, list[int]] | None = None,
    norm: bool = False,
    resize: int | None = None,
    crop: int | None = None,
    position_offset: float | None = None,
    runtime: Literal["onnxruntime", "torch"] = "torch",
    seed: int = 0,
) -> Frozen:
    """The encoder kind `vit`. On a CUDA device the runtime is torch, whatever is asked; the identity says what ran.

    resize, crop: pixels along a side; first one, then the other; None for neither.
    """
    size = resize or place.image_size
    if crop is not None and not 0 < crop <= size:
        raise ParamsError(f"crop must be in 1..{size}, the pixels that there are, got {crop}")
    network = ViT(
        backbone=backbone,
        layers=tuple(layers),
        weights=weights,
        image_size=crop or size,
        groups=groups,
        norm=norm,
        position_offset=position_offset,
        seed=seed,
        backbones=place.backbones,
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    identity = {"weights": network.weights_identity, "parameters": parameters, "device": place.device, "threads": place.threads}
    if runtime == "onnxruntime" and place.device == "cpu":
        from stages.encoders.onnx_runtime import OnnxNetwork

        exported = OnnxNetwork(network, network.layers, network.image_size, place.threads)
        packages = versions("torch", "timm", "onnx", "onnxruntime")
        identity |= {"runtime": runtime, "onnx_sha256": exported.sha256, "versions": packages}
        return Frozen(_after(resize, crop, exported), identity, _after(resize, crop, network))
    network = network.to(place.device)
    return Frozen(
        _after(resize, crop, lambda pixels: {layer: value.cpu() for layer, value in network(pixels.to(place.device)).items()}),
        {**identity, "runtime": "torch", "onnx_sha256": None, "versions": versions("torch", "timm")},
    )


def centre_crop(pixels: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) to (B, 3, size, size), the same margin on both sides."""
    top, left = ((length - size) // 2 for length in pixels.shape[2:])
    return pixels[:, :, top : top + size, left : left + size]


def interpolate_positions(positions: Tensor, native: int, grid: int, offset: float) -> Tensor:
    """(1, P + native^2, C) position embeddings for a grid of another side; the P that belong to no patch stay as they are.

    Bicubic (a = -0.75), not antialiased: cell i of the new grid reads at (i + 1/2) / scale - 1/2 with scale (grid + offset) / native.
    """
    if grid == native:
        return positions
    extra, patches = positions.split([positions.shape[1] - native**2, native**2], dim=1)
    plane = patches.transpose(1, 2).unflatten(2, (native, native))
    if offset:
        resized = F.interpolate(plane, scale_factor=(grid + offset) / native, mode="bicubic", recompute_scale_factor=False)
    else:
        resized = F.interpolate(plane, (grid, grid), mode="bicubic")
    if tuple(resized.shape[2:]) != (grid, grid):
        raise ParamsError(
            f"position_offset {offset} turns {native} positions into {resized.shape[2]} instead of {grid}; it must be in 0..1"
        )
    return torch.cat([extra, resized.flatten(2).transpose(1, 2)], dim=1)


def _after(resize: int | None, crop: int | None, run: Callable[[Tensor], Features]) -> Callable[[Tensor], Features]:
    """Resized and cropped on uint8 levels, with the kernel that images are decoded with, whatever then runs."""

    def encode(pixels: Tensor) -> Features:
        if resize is not None and tuple(pixels.shape[2:]) != (resize, resize):
            pixels = F.interpolate(pixels, (resize, resize), mode="bicubic", antialias=True)
        return run(pixels if crop is None else centre_crop(pixels, crop))

    return encode


def _require_transformer(whole: nn.Module, backbone: str) -> None:
    known = ("VisionTransformer", "VisionTransformerDistilled", "Cait")
    if type(whole).__name__ not in known or getattr(whole, "pos_embed", None) is None:
        kind = type(whole).__name__
        raise ParamsError(f"{backbone} is a {kind}; the encoder kind vit takes timm's {', '.join(known)} with position embeddings")


def _parse(layer: str, groups: dict[str, list[int]], whole: nn.Module, backbone: str) -> Layer:
    """What a name of a layer means. Raises ParamsError for a name or a block that does not exist."""
    for name, blocks in groups.items():
        if re.fullmatch(r"block\d+", name) or name.endswith(EXTRA) or not blocks:
            raise ParamsError(
                f"groups.{name} is no usable group: give blocks to average, and no name like block7 or one that ends in {EXTRA}"
            )
    base, extra = layer.removesuffix(EXTRA), layer.endswith(EXTRA)
    single = re.fullmatch(r"block(\d+)", base)
    if base not in groups and not single:
        raise ParamsError(f"{backbone} has no layer {layer!r}{nearest(base, [*groups, f'block0..block{len(whole.blocks) - 1}'])}")
    blocks = groups[base] if base in groups else [int(single[1])]
    wrong = [block for block in blocks if not 0 <= block < len(whole.blocks)]
    if wrong:
        raise ParamsError(f"{layer} asks for block {wrong[0]} of {backbone}, which has blocks 0..{len(whole.blocks) - 1}")
    return Layer(tuple(blocks), extra)


def _fit_to(whole: nn.Module, backbone: str, image_size: int, offset: float) -> int:
    """Prepare the network for images of this size; returns the cells along a side."""
    patch, native = whole.patch_embed.patch_size[0], whole.patch_embed.grid_size[0]
    grid, left = divmod(image_size, patch)
    if left or not grid:
        near = " or ".join(str(size) for size in (grid * patch, (grid + 1) * patch) if size)
        raise ParamsError(f"{backbone} cuts images into patches of {patch} px, so {image_size} px cannot be: take {near}, or crop")
    whole.patch_embed.set_input_size((image_size, image_size))
    whole.pos_embed = nn.Parameter(interpolate_positions(whole.pos_embed.detach(), native, grid, offset))
    return grid
