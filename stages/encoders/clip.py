"""The encoder `clip`: the two towers of a CLIP with a vision transformer, by open_clip's name or TinyCLIP's; images and sentences in one space.

Levels 0..255 go in, CLIP's mean and std are buffers of the network, and maps (B, C, h, w) come out. Names of layers:
- `image`: the embedding of the whole image in the space that sentences share, (B, D, 1, 1), not normalised;
- `window2`, `window3`, ...: the same for every window of that many patches along a side, (B, D, h - k + 1, w - k + 1), stride 1: the class
  token and the window's own tokens, positions added, go through the whole network alone (WinCLIP, arXiv:2303.14814). Other tokens are
  dropped, not masked or set to zero; all windows of a scale go in one batch;
- `patches`: the last block's patch tokens behind the final norm, before the projection, (B, C, h, w);
- `block7` is what the eighth block gives (counted from 0), `block7_extra` its class token, (B, C, 1, 1).

Position embeddings are interpolated once, at build time, where images are not of the network's own size (`positions`: how; WinCLIP at 400 px reads
25 x 25 of 15 x 15). The network's activation belongs to its weights: OpenAI's were trained with QuickGELU, whose networks open_clip calls
`...-quickgelu`; the lock of weights says which network a file is for, and another one is refused.

The text tower is not stored: detectors ask for it by `Run.text` while they are fitted. What it says of a list of sentences is kept in .assay/text/, by
weights and sentences, so it runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages import io
from stages.encoders import weights as weight_files
from stages.encoders.clip_checkpoints import canonical
from stages.encoders.clip_stem import Stem
from stages.encoders.encoder import Frozen, Place, versions
from stages.errors import Missing
from stages.params import ParamsError, nearest
from stages.types import Features

CACHE = Path(".assay/text")
IMAGES_AT_ONCE = 4  # whose windows go through the network together; a batch of more costs memory and no less time
SENTENCES_AT_ONCE = 64
TEXT = {"context_length": 77, "vocab_size": 49408}


def _tiny(side: int, vision: tuple[int, int, int], text: tuple[int, int, int], embed: int = 512) -> dict[str, Any]:
    """vision: width, blocks, patch. text: width, heads, blocks."""
    seen = dict(zip(("width", "layers", "patch_size"), vision, strict=True))
    read = dict(zip(("width", "heads", "layers"), text, strict=True))
    return {"embed_dim": embed, "vision_cfg": {"image_size": side, **seen}, "text_cfg": {**TEXT, **read}}


# TinyCLIP (arXiv:2309.12314), whose sizes its names tell: a block of width w has 12 w^2 parameters. Two are our own: one for tests, and tiny-clip, which is
# trained here in minutes, on top of frozen convolutions (clip_stem).
OWN = {
    "TinyCLIP-ViT-8M-16-Text-3M": _tiny(224, (256, 10, 16), (256, 4, 3)),
    "TinyCLIP-ViT-39M-16-Text-19M": _tiny(224, (512, 12, 16), (512, 8, 6)),
    "TinyCLIP-ViT-40M-32-Text-19M": _tiny(224, (512, 12, 32), (512, 8, 6)),
    "TinyCLIP-ViT-61M-32-Text-29M": _tiny(224, (640, 12, 32), (512, 8, 9)),
    "test-clip": _tiny(128, (128, 4, 16), (64, 1, 2), embed=64),
    "tiny-clip": _tiny(224, (128, 2, 16), (64, 1, 2), embed=64) | {"stem": True},
}


class Vision(nn.Module):
    """The frozen tower that sees, for square images of `image_size` pixels.

    network: an open_clip CLIP. Raises ParamsError for a layer or a size that cannot be had.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], image_size: int, positions: str = "bicubic") -> None:
        super().__init__()
        self.network, self.layers = network.visual.requires_grad_(False).eval(), tuple(layers)
        self.patch = self.network.conv1.kernel_size[0]
        self.grid, left = divmod(image_size, self.patch)
        if left or not self.grid:
            near = " or ".join(str(size * self.patch) for size in (self.grid, self.grid + 1) if size)
            raise ParamsError(f"this CLIP cuts images into patches of {self.patch} px, so {image_size} px cannot be: take {near}")
        for layer in layers:
            self._require(layer)
        own = self.network.positional_embedding.detach()
        self.network.positional_embedding = nn.Parameter(_positions(own, self.grid, positions), requires_grad=False)
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        self.register_buffer("mean", torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Features:
        """pixels: (B, 3, S, S) levels 0..255, uint8 or float. Returns the layers, float32."""
        tokens = self.embed((pixels.float() / 255 - self.mean) / self.std)
        found = self._whole(tokens) if any(not layer.startswith("window") for layer in self.layers) else {}
        for layer in self.layers:
            if layer.startswith("window"):
                side = int(layer.removeprefix("window"))
                found[layer] = torch.cat([self.windows(some, side) for some in tokens.split(IMAGES_AT_ONCE)])
        return {layer: found[layer].contiguous() for layer in self.layers}

    def embed(self, images: Tensor) -> Tensor:
        """(B, 1 + h*w, C) tokens before the first block: class first, positions added, normed one by one (so tokens can be left out)."""
        return self.placed(self.network.conv1(images))

    def placed(self, patches: Tensor) -> Tensor:
        """The same from (B, C, h, w), what the first convolution gives."""
        patches = patches.flatten(2).transpose(1, 2)
        first = self.network.class_embedding.expand(len(patches), 1, -1)
        return self.network.ln_pre(torch.cat([first, patches], dim=1) + self.network.positional_embedding)

    def windows(self, tokens: Tensor, side: int) -> Tensor:
        """(B, D, h - side + 1, w - side + 1): what the network says of every window of side x side patches alone."""
        inside = self._inside(side).to(tokens.device)
        chosen = tokens[:, 1:][:, inside]  # (B, windows, side^2, C)
        first = tokens[:, None, :1].expand(-1, len(inside), -1, -1)
        seen = self._blocks(torch.cat([first, chosen], dim=2).flatten(0, 1))
        return self.project(seen[:, 0]).unflatten(0, (len(tokens), -1)).transpose(1, 2).unflatten(2, (self.grid - side + 1, -1))

    def chosen(self, tokens: Tensor, side: int, window: Tensor) -> Tensor:
        """(B, 1 + side^2, C): of each image the class token and those of one window, whose number in row-major order is in `window` (B,)."""
        inside = 1 + self._inside(side).to(tokens.device)[window]
        return torch.cat([tokens[:, :1], tokens.gather(1, inside[:, :, None].expand(-1, -1, tokens.shape[2]))], dim=1)

    def project(self, tokens: Tensor) -> Tensor:
        """(..., C) behind the last block to (..., D), the space of sentences: final norm and projection."""
        return self.network.ln_post(tokens) @ self.network.proj

    def train(self, mode: bool = True) -> Vision:
        """Always in evaluation mode, whatever its owner does."""
        return super().train(False)

    def _inside(self, side: int) -> Tensor:
        """(windows, side^2): the patches of every window, all in row-major order."""
        return torch.arange(self.grid**2).view(self.grid, self.grid).unfold(0, side, 1).unfold(1, side, 1).flatten(2).flatten(0, 1)

    def _whole(self, tokens: Tensor) -> Features:
        found = {}
        for number, block in enumerate(self.network.transformer.resblocks):
            tokens = block(tokens)
            found[f"block{number}"], found[f"block{number}_extra"] = self._map(tokens[:, 1:]), tokens[:, :1].transpose(1, 2)[:, :, None]
        found["image"] = self.project(tokens[:, 0])[:, :, None, None]
        found["patches"] = self._map(self.network.ln_post(tokens[:, 1:]))
        return {layer: value for layer, value in found.items() if layer in self.layers}

    def _blocks(self, tokens: Tensor) -> Tensor:
        for block in self.network.transformer.resblocks:
            tokens = block(tokens)
        return tokens

    def _map(self, tokens: Tensor) -> Tensor:
        """(B, h*w, C) to (B, C, h, w)."""
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def _require(self, layer: str) -> None:
        blocks = [f"block{number}" for number in range(len(self.network.transformer.resblocks))]
        windows = [f"window{side}" for side in range(1, self.grid + 1)]
        known = ["image", "patches", *windows, *blocks, *(f"{block}_extra" for block in blocks)]
        if layer not in known:
            raise ParamsError(f"this CLIP at {self.grid} x {self.grid} patches has no layer {layer!r}{nearest(layer, known)}")


class Text(nn.Module):
    """The tower that reads. Frozen, but gradients pass through it to what is given as embeddings."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network.requires_grad_(False).eval()
        self.transformer, self.token_embedding = network.transformer, network.token_embedding
        self.ln_final, self.positions, self.projection = network.ln_final, network.positional_embedding, network.text_projection
        self.context = network.context_length

    @cached_property
    def _tokenizer(self) -> Callable[..., Tensor]:
        from open_clip.tokenizer import SimpleTokenizer  # its vocabulary comes with the package

        return SimpleTokenizer(context_length=self.context)

    def tokens(self, sentences: Sequence[str]) -> Tensor:
        """(n, T) int64: start, words, end, zeros."""
        return self._tokenizer(list(sentences))

    def read(self, embedded: Tensor, end: Tensor) -> Tensor:
        """(n, D) for token embeddings (n, T, C) without positions; `end` (n,) is where each sentence's end token stands, which speaks for it."""
        length = embedded.shape[1]
        causal = torch.full((length, length), float("-inf"), device=embedded.device).triu(1)
        seen = self.transformer(embedded + self.positions[:length], attn_mask=causal)
        return self.ln_final(seen[torch.arange(len(end), device=end.device), end]) @ self.projection

    @torch.no_grad()
    def forward(self, sentences: Sequence[str]) -> Tensor:
        """(n, D) float32, not normalised."""
        tokens = self.tokens(sentences).to(self.positions.device)
        return torch.cat([self.read(self.token_embedding(some), some.argmax(dim=1)) for some in tokens.split(SENTENCES_AT_ONCE)])


def build(
    place: Place,
    *,
    backbone: str,
    layers: list[str],
    weights: str,
    positions: Literal["bicubic", "bilinear"] = "bicubic",
    quick_gelu: bool | None = None,
    seed: int = 0,
) -> Frozen:
    """The encoder kind `clip`, in torch. quick_gelu: against what the backbone's name says, for weights that the lock does not know."""
    network, identity = whole_network(backbone, weights, seed, place.backbones, quick_gelu)
    vision = Vision(network, layers, place.image_size, positions).to(place.device)
    parameters = sum(parameter.numel() for parameter in vision.parameters())
    return Frozen(
        lambda pixels: {layer: value.cpu() for layer, value in vision(pixels.to(place.device)).items()},
        {
            "weights": identity,
            "parameters": parameters,
            "device": place.device,
            "threads": place.threads,
            "runtime": "torch",
            "onnx_sha256": None,
            "versions": versions("torch", "open_clip_torch"),
        },
    )


def build_text(
    place: Place, *, backbone: str, weights: str, quick_gelu: bool | None = None, seed: int = 0, **_: Any
) -> Callable[[Sequence[str]], Tensor]:
    """Sentences to (n, D) on the CPU, by the text tower of the same weights, once: the answer is kept in `CACHE`. Built when it is first asked."""

    def embed(sentences: Sequence[str]) -> Tensor:
        _, identity = weights_found(backbone, weights, seed, place.backbones)
        path = CACHE / f"{io.content_hash([identity, backbone, quick_gelu, versions('torch'), list(sentences)])[:32]}.safetensors"
        if not path.is_file():
            network, _ = whole_network(backbone, weights, seed, place.backbones, quick_gelu)
            io.write_model(path, {"text": Text(network).to(place.device)(sentences).cpu()}, {"sentences": len(sentences)})
        return io.read_model(path)["text"]

    return embed


def whole_network(
    backbone: str, weights: str, seed: int, folder: Path, quick_gelu: bool | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """An open_clip CLIP in evaluation mode, both towers, and the identity of its weights.

    weights: a name of the lock, or "random" (then `seed` decides every value). Raises WeightsMissing, WeightsAltered or ParamsError.
    """
    found, identity = weights_found(backbone, weights, seed, folder)
    described = architecture(backbone) | ({"quick_gelu": quick_gelu} if quick_gelu is not None else {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = described.pop("stem", False)
        network = _open_clip().CLIP(**described).eval()
        if stem:
            network.visual.conv1 = Stem(network.visual.conv1.out_channels)
    if found is not None:
        weight_files.load_into(network, found, canonical)
    return network, identity | ({"quick_gelu": quick_gelu} if quick_gelu is not None else {})


def weights_found(backbone: str, weights: str, seed: int, folder: Path) -> tuple[weight_files.Found | None, dict[str, Any]]:
    """The file that `backbone` is filled from, hashed once (None for "random"), and the identity of its weights; no network is made for it."""
    if weights == weight_files.RANDOM:
        return None, weight_files.random_identity(seed)
    own = weight_files.row_of(weights).clip
    if own is not None and own != backbone:
        raise ParamsError(f"the weights {weights} are for {own}, but the encoder's backbone is {backbone}")
    found = weight_files.resolve(weights, folder)
    return found, found.identity


def architecture(backbone: str) -> dict[str, Any]:
    """open_clip's description of a network, by name. Raises ParamsError for one that does not exist or has other towers."""
    known = OWN.get(backbone) or _open_clip().get_model_config(backbone)
    if known is None:
        raise ParamsError(f"open_clip knows no network {backbone!r}{nearest(backbone, [*OWN, *_open_clip().list_models()])}")
    vision = known["vision_cfg"]
    odd = [key for key in known if key not in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "stem")]
    if odd or "timm_model_name" in vision or not isinstance(vision["layers"], int) or "hf_model_name" in known["text_cfg"]:
        raise ParamsError(f"{backbone} is no CLIP with open_clip's own two transformers: take e.g. ViT-B-16-plus-240 or {next(iter(OWN))}")
    return known


def _positions(own: Tensor, grid: int, mode: str) -> Tensor:
    """(1 + grid^2, C) from those of the network's own grid; the class token's stays."""
    native = round((len(own) - 1) ** 0.5)
    if native == grid:
        return own
    plane = own[1:].T.unflatten(1, (native, native))[None]
    resized = F.interpolate(plane, (grid, grid), mode=mode, align_corners=False)[0]
    return torch.cat([own[:1], resized.flatten(1).T])


def _open_clip() -> Any:
    try:
        weight_files.timm()  # which open_clip imports, told to stay offline
        import open_clip
    except ModuleNotFoundError as absent:
        raise Missing(f"the encoder kind clip needs the package open-clip-torch ({absent}): pip install 'assay[clip]'") from absent
    return open_clip
