"""Encoders of raw film, pictures and sound inside a model: a frozen backbone, or one of which a few layers or low-rank adapters learn.

Each takes `weights`: the name of a folder of transformers in backbones/ (a folder cloned from a hub as it is), read as the encoder kinds `vjepa2`, `dinov2` and
`ast` read it, so that tokens stored by those and tokens made here are the same; or "twin", the small network of twins.py that needs no file.

Frozen means three things at once, as forgetting one is the usual mistake: no parameter requires a gradient, the backbone stays in evaluation mode when the
model around it is set to train, and its forward pass keeps no graph.

B records, T frames, N views, M mel bands, L tokens or columns, D width.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.encoders.media import pretrained
from stages.fusion.deep.maths import lora, twins

TWIN = "twin"
RATE = 16_000  # samples a second of a sound
FLOOR = 1e-6  # added to a power before the logarithm
MOST_UNFROZEN = 3  # layers
FRAME = 400  # samples that one column is made of
COLUMN = 160  # samples between two columns of a spectrogram
STRIDE = 1000  # columns between two windows of a sound
WINDOWS = 3  # at most
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """What the three have in common. `network` has `blocks` (its layers, first to last) and `width`, and is all that is frozen."""

    def __init__(self, network: nn.Module, freeze: bool = True, unfreeze_last: int = 0, lora_rank: int = 0, seed: int = 0) -> None:
        super().__init__()
        most = min(MOST_UNFROZEN, len(network.blocks))
        if not 0 <= unfreeze_last <= most:
            raise ValueError(f"unfreeze_last must be in 0..{most}, got {unfreeze_last}")
        if not freeze and (unfreeze_last or lora_rank):
            raise ValueError("unfreeze_last and lora_rank are for a frozen backbone: with freeze=False all of it learns already")
        self.network, self.freeze, self.unfrozen = network, freeze, unfreeze_last
        self.width: int = network.width
        if freeze:
            network.requires_grad_(False)
        if lora_rank:
            lora.inject(network, lora_rank, seed=seed)
        for block in self._last:
            block.requires_grad_(True)
        self.train(self.training)

    @property
    def _last(self) -> list[nn.Module]:
        return list(self.network.blocks)[len(self.network.blocks) - self.unfrozen :]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze:
            self.network.eval()
            for block in self._last:
                block.train(mode)
        return self

    @property
    def learns(self) -> bool:
        return any(parameter.requires_grad for parameter in self.network.parameters())

    def run(self, *given: Tensor) -> Tensor:
        """The network, without a graph where nothing in it learns."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns):
            return self.network(*given)


class VideoEncoder(Encoder):
    """Grey films (B, T, 1, H, W) with values in 0..1 to (B, L, D): V-JEPA 2, a token for two frames; the twin, 8 tokens whatever T is."""

    def __init__(
        self, weights: str = TWIN, *, backbones: Path = Path("backbones"), freeze: bool = True, unfreeze_last: int = 0, lora_rank: int = 0,
        seed: int = 0, network: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """network: a VJEPA2Model that is there already; then `weights` is not looked for."""
        if network is not None:
            chosen: nn.Module = VideoBackbone(network, {})
        elif weights == TWIN:
            chosen = twins.drawn(TwinVideo, seed)
        else:
            folder = folder_of(weights, "facebook", backbones)
            chosen = VideoBackbone(pretrained.load(folder, "VJEPA2Model"), pretrained.preprocessing(folder))
        super().__init__(chosen, freeze, unfreeze_last, lora_rank, seed)

    def forward(self, film: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, T) True where a frame is one; others are as the one before them."""
        frames = film if mask is None else held(film, mask)
        if len(frames[0]) % 2:
            frames = torch.cat([frames, frames[:, -1:]], 1)  # two make a token
        return self.run(frames)

    def known(self, mask: Tensor, tokens: int) -> Tensor:
        """(B, T) frames to (B, L): a token is known where one of its frames is."""
        return F.adaptive_max_pool1d(mask.float(), tokens) > 0


class ImageEncoder(Encoder):
    """Views (B, N, 3, H, W) with values in 0..1 to (B, N, D): the class token of DINOv2 or of the twin."""

    def __init__(
        self, weights: str = TWIN, *, backbones: Path = Path("backbones"), freeze: bool = True, unfreeze_last: int = 0, lora_rank: int = 0,
        seed: int = 0, network: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """network: a Dinov2Model, or one like it, that is there already."""
        if network is not None:
            chosen: nn.Module = ImageBackbone(network, {})
        elif weights == TWIN:
            chosen = twins.drawn(TwinImage, seed)
        else:
            folder = folder_of(weights, "facebook", backbones)
            chosen = ImageBackbone(pretrained.load(folder), pretrained.preprocessing(folder))
        super().__init__(chosen, freeze, unfreeze_last, lora_rank, seed)

    def forward(self, views: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, N) True where there is a view; of others nothing is looked at."""
        seen = views if mask is None else torch.where(mask[:, :, None, None, None], views, torch.zeros_like(views))
        return self.run(seen.flatten(0, 1)).unflatten(0, views.shape[:2])

    def known(self, mask: Tensor, tokens: int) -> Tensor:
        return mask


class AudioEncoder(Encoder):
    """Sounds as log-mel spectrograms (B, 1, M, L) or as samples at 16 kHz (B, C, n) to (B, L', D): AST, a token for each window of 10.24 s, the first three
    10 s apart and no more; the twin, 16 tokens."""

    def __init__(
        self, weights: str = TWIN, *, backbones: Path = Path("backbones"), freeze: bool = True, unfreeze_last: int = 0, lora_rank: int = 0,
        seed: int = 0, network: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """network: an ASTModel that is there already."""
        if network is not None:
            chosen: nn.Module = AudioBackbone(network)
        elif weights == TWIN:
            chosen = twins.drawn(TwinAudio, seed)
        else:
            folder = folder_of(weights, "MIT", backbones)
            chosen = AudioBackbone(pretrained.load(folder, "ASTModel"), pretrained.part(folder, "ASTFeatureExtractor"))
        super().__init__(chosen, freeze, unfreeze_last, lora_rank, seed)

    def forward(self, sound: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, L) columns or (B, n) samples that are sound; the others are silence."""
        if mask is not None:
            silence = sound.new_tensor(math.log(FLOOR) if sound.ndim == 4 else 0.0)
            sound = torch.where(mask.view(len(mask), *[1] * (sound.ndim - 2), -1), sound, silence)
        return self.run(sound)

    def known(self, mask: Tensor, tokens: int, samples: bool = False) -> Tensor:
        """A token is known where any of what it was made of is. samples: whether the mask is of samples and not of columns."""
        return self.network.known(mask, tokens, COLUMN if samples else 1)


def encoders(
    *, video: str = TWIN, image: str = TWIN, audio: str = TWIN, backbones: Path = Path("backbones"), freeze: bool = True, unfreeze_last: int = 0,
    lora_rank: int = 0, seed: int = 0,
) -> dict[str, Encoder]:  # fmt: skip
    """All three. video, image, audio: "twin", or the folder of a V-JEPA 2, a DINOv2 and an AST in backbones/; the rest is the same for each."""
    kinds = {"video": (VideoEncoder, video), "image": (ImageEncoder, image), "audio": (AudioEncoder, audio)}
    rest = {"backbones": backbones, "freeze": freeze, "unfreeze_last": unfreeze_last, "lora_rank": lora_rank, "seed": seed}
    return {name: kind(weights, **rest) for name, (kind, weights) in kinds.items()}


class TwinVideo(twins.VideoTwin):
    width = twins.WIDTH

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layer

    def forward(self, film: Tensor) -> Tensor:
        return super().forward((film.transpose(1, 2) - 0.5) / 0.25)


class TwinImage(twins.ImageTwin):
    width = twins.WIDTH

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layer

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward((pixels - 0.5) / 0.25)[:, 0]


class TwinAudio(twins.AudioTwin):
    width = twins.WIDTH

    def __init__(self) -> None:
        import torchaudio

        super().__init__()
        self.mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=512, hop_length=160, n_mels=64, norm="slaney")

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layer

    def spectrogram(self, samples: Tensor) -> Tensor:
        """(B, n) to (B, 1, M, L)."""
        return (self.mel(samples) + FLOOR).log()[:, None]

    def forward(self, sound: Tensor) -> Tensor:
        spectrogram = sound if sound.ndim == 4 else self.spectrogram(sound.mean(1))
        return super().forward((spectrogram + 8) / 4)  # about -1.5 in silence

    def known(self, mask: Tensor, tokens: int, column: int) -> Tensor:
        return F.adaptive_max_pool1d(mask.float(), tokens) > 0


class VideoBackbone(nn.Module):
    """A VJEPA2Model without its predictor, whose patches are averaged over the picture."""

    def __init__(self, model: nn.Module, said: dict[str, Any]) -> None:
        super().__init__()
        model.predictor = nn.Identity()  # 22 million parameters that are only for learning
        self.model, self.said, self.width = model, said, model.config.hidden_size

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.encoder.layer

    def forward(self, film: Tensor) -> Tensor:
        size = self.model.config.crop_size
        pixels = normalised(resized(film.flatten(0, 1), size).expand(-1, 3, -1, -1), self.said).unflatten(0, film.shape[:2])
        states = self.model(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
        return states.unflatten(1, (film.shape[1] // self.model.config.tubelet_size, -1)).mean(2)


class ImageBackbone(nn.Module):
    """A vision transformer of transformers, cut to its class token."""

    def __init__(self, model: nn.Module, said: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.said, self.width = model, said, model.config.hidden_size

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.encoder.layer

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=normalised(resized(pixels, self.said.get("size") or 224), self.said)).last_hidden_state[:, 0]


class AudioBackbone(nn.Module):
    """An ASTModel over windows of its length, STRIDE columns apart; a window's token is the mean of the class and the distillation token."""

    def __init__(self, model: nn.Module, extractor: Any = None) -> None:
        super().__init__()
        self.model, self.extractor, self.width = model, extractor, model.config.hidden_size
        self.centre, self.spread = (extractor.mean, extractor.std) if extractor else (-4.2677393, 4.5689974)  # of AudioSet

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.layers

    def starts(self, size: int, column: int = 1) -> list[int]:
        """Of the windows of a sound of `size` columns, or samples where `column` says how many make one; the last may be shorter than the others."""
        overlap = max(self.model.config.max_length - STRIDE, 0) * column
        return list(range(0, max(size - overlap, 1), STRIDE * column))[:WINDOWS]

    def spectrogram(self, samples: Tensor) -> Tensor:
        """(B, n) samples to (B, L, M), as the folder's own preprocessor makes it but for its scaling."""
        import torchaudio

        samples = F.pad(samples, (0, max(FRAME - samples.shape[1], 0)))
        return torch.stack(
            [
                torchaudio.compliance.kaldi.fbank(
                    one[None], sample_frequency=RATE, window_type="hanning", num_mel_bins=self.model.config.num_mel_bins, htk_compat=True,
                    use_energy=False, dither=0.0, frame_shift=10,
                )
                for one in samples
            ]
        )  # fmt: skip

    def forward(self, sound: Tensor) -> Tensor:
        length = self.model.config.max_length
        scaled = [(F.pad(part, (0, 0, 0, length - part.shape[1])) - self.centre) / (2 * self.spread) for part in self._windows(sound, length)]
        return torch.stack([self.model(input_values=part).last_hidden_state[:, :2].mean(1) for part in scaled], 1)

    def known(self, mask: Tensor, tokens: int, column: int) -> Tensor:
        """mask: (B, columns), or (B, samples) where `column` says how many make one."""
        length = self.model.config.max_length * column
        return torch.stack([mask[:, start : start + length].any(1) for start in self.starts(mask.shape[1], column)[:tokens]], 1)

    def _windows(self, sound: Tensor, length: int) -> list[Tensor]:
        """(B, at most `length`, M) each. Samples are cut before their spectrogram is made, as `ast` does."""
        bands = self.model.config.num_mel_bins
        if sound.ndim == 3:
            samples, parts = sound.mean(1), self.starts(sound.shape[2], COLUMN)
            return [self.spectrogram(samples[:, start : start + length * COLUMN]) for start in parts]
        if sound.shape[2] != bands:
            raise ValueError(f"the audio backbone reads spectrograms of {bands} mel bands, these have {sound.shape[2]}; give samples at 16 kHz instead")
        columns = sound[:, 0].transpose(1, 2)  # (B, L, M)
        return [columns[:, start : start + length] for start in self.starts(columns.shape[1])]


def folder_of(weights: str, owner: str, backbones: Path) -> pretrained.Folder:
    """weights: the name of a folder, or the address of a model on the hub, "owner/name"; its folder may stand under both or under its name alone."""
    name = weights if (backbones / weights).is_dir() else weights.rpartition("/")[2]
    return pretrained.find(name, weights if "/" in weights else f"{owner}/{weights}", backbones)


def held(film: Tensor, mask: Tensor) -> Tensor:
    """Frames that are none replaced by the last that is one, before it or, at the beginning, after it. film: (B, T, ...); mask: (B, T)."""
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    last = torch.where(mask, place, torch.zeros_like(place)).cummax(1).values
    chosen = torch.where(mask.cumsum(1) > 0, last, mask.float().argmax(1, keepdim=True))
    frames = film.take_along_dim(chosen.view(*chosen.shape, *[1] * (film.ndim - 2)), 1)
    return torch.where(mask.any(1).view(-1, *[1] * (film.ndim - 1)), frames, torch.zeros_like(frames))


def resized(pixels: Tensor, size: int) -> Tensor:
    """(N, C, H, W) whole, to a square."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)


def normalised(pixels: Tensor, said: dict[str, Any]) -> Tensor:
    """(N, 3, H, W) in 0..1 by the folder's own mean and standard deviation, else by those of ImageNet."""
    centre, spread = (pixels.new_tensor(said.get(key) or other).view(1, 3, 1, 1) for key, other in zip(("mean", "std"), IMAGENET, strict=True))
    return (pixels - centre) / spread


def parameters(module: nn.Module) -> tuple[int, int]:
    """How many there are, and how many of them learn."""
    found = list(module.parameters())
    return sum(one.numel() for one in found), sum(one.numel() for one in found if one.requires_grad)
