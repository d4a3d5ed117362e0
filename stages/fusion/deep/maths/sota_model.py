"""Raw media of a weld in, its class and anomaly score out: frozen encoders of film, pictures and sound, then the network that learns from stored tokens.

The two halves are the ones that stand apart elsewhere. What is trained on tokens that were extracted once is put behind the encoders that made them and is
the same function of the media; what is trained here, end to end, saves as that network and, where any were asked for, adapters.

A batch is a dict: "video" (B, T, 1, H, W) grey, "post_images" or "post_weld_images" (B, N, 3, H, W), "audio" (B, 1, M, L) log-mel or (B, C, n) samples at
16 kHz, "sensors" (B, S, V). Pixels are uint8, or float in 0..1: each backbone centres them itself. Any of the four may be left out. Beside them, if wanted:
"masks", by these names, True where a frame, view, column (or sample) or step is one; "present" (B, 4) bool in the order above; "time", by these names, the
places of frames, columns and steps in 0..1 on one clock, without which each medium is spread over the record; "label" (B,), which is not looked at.

B records, T frames, N views, M mel bands, S steps, V sensors, L tokens, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.datasets.records import key
from stages.errors import UserError
from stages.fusion.deep.maths.backbones import Encoder, parameters
from stages.fusion.deep.maths.encoder import Encoding, Padded
from stages.fusion.deep.maths.fusion import CrossAttentionFusionModule
from stages.fusion.deep.maths.heads import log_odds
from stages.fusion.deep.maths.network import Network
from stages.seed import derive

ENCODING = Encoding()
SPELT = {"video": ("video",), "image": ("post_images", "post_weld_images"), "audio": ("audio",), "series": ("sensors",)}
DIMENSIONS = {"video": (5,), "image": (5,), "audio": (3, 4), "series": (3,)}
PIXELS = ("video", "image")
ALONG = {"video": 1, "image": 1, "series": 1, "audio": -1}  # the axis that a mask and a time are of


class WrongBatch(UserError, ValueError):
    """A batch of raw media that is not what the model takes: another shape, lengths that differ, values that nobody normalised."""


class QuadModalSOTAModel(nn.Module):
    """encoders: of "video", "image" and "audio"; network: of the modalities "video", "image", "audio" and "series", of their widths."""

    def __init__(self, encoders: Mapping[str, Encoder], network: Network, quiet: bool = False) -> None:
        super().__init__()
        self.encoders, self.network = nn.ModuleDict(encoders), network
        if set(network.encoder.names) != set(SPELT):
            raise ValueError(f"the network is of {', '.join(network.encoder.names)}; expected {', '.join(SPELT)}")
        self.channels = network.encoder.adapters[key("series")].standard.centre.numel()
        if not quiet:
            print(self.described())

    @classmethod
    def fresh(
        cls, encoders: Mapping[str, Encoder], *, classes: int = 12, channels: int = 6, features: int = 512, encoding: Encoding = ENCODING, seed: int = 0,
        quiet: bool = False, **fusion: Any,
    ) -> Self:  # fmt: skip
        """One that has learnt nothing yet. channels: V. fusion: options of CrossAttentionFusionModule."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "network"))
            middle = CrossAttentionFusionModule(list(SPELT), encoding.width, features, **fusion)
            network = Network({**{name: encoder.width for name, encoder in encoders.items()}, "series": channels}, encoding, middle, features, classes)
        return cls(encoders, network, quiet)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """"features" (B, F) of unit length, "projection" (B, 128) for the contrast, "logits" (B, C), "anomaly_score" (B,) log odds of any fault,
        "attention" (B, L) over all tokens and "modality_attention" (B, 4), rows of both sum to 1.

        Raises WrongBatch.
        """  # fmt: skip
        reading = self.network(self.tokens(batch))
        spans = [reading.encoded.spans[name] for name in SPELT]
        return {
            "features": reading.unit,
            "projection": self.network.heads.project(reading.features),
            "logits": reading.logits,
            "anomaly_score": log_odds(reading.logits),
            "attention": reading.fused.attention,
            "modality_attention": torch.stack([reading.fused.attention[:, span].sum(1) for span in spans], 1),
        }

    def tokens(self, batch: Mapping[str, Any]) -> dict[str, Padded]:
        """What the encoders make of the batch, as the network takes it. Raises WrongBatch."""
        media = {name: found for name in SPELT if (found := _given(batch, name)) is not None}
        if not media:
            raise WrongBatch(f"a batch has at least one of {', '.join(spelling for spellings in SPELT.values() for spelling in spellings)}; it has none")
        sizes = {SPELT[name][0]: len(values) for name, values in media.items()}
        if len(set(sizes.values())) > 1:
            raise WrongBatch(f"the modalities are of different numbers of records: {', '.join(f'{name} {size}' for name, size in sizes.items())}")
        count = next(iter(sizes.values()))
        present = batch.get("present")
        if present is not None and tuple(present.shape) != (count, len(SPELT)):
            raise WrongBatch(f"present has the shape {tuple(present.shape)}; expected {(count, len(SPELT))}: {', '.join(SPELT)}")
        found = {}
        for column, name in enumerate(SPELT):
            there = None if present is None else present[:, column].bool()
            found[name] = self._tokens(name, media[name], batch, there) if name in media else self._none(name, count)
        if bare := (~torch.stack([part.mask.any(1) for part in found.values()]).any(0)).nonzero()[:, 0].tolist():
            raise WrongBatch(f"record {bare[0]} of the batch has none of the four modalities; leave it out")
        return found

    def described(self) -> str:
        """How many parameters there are and how many of them learn, part by part."""
        parts = {**{f"{name} encoder": encoder for name, encoder in self.encoders.items()}, "fusion network": self.network, "all": self}
        rows = [f"{name:<15}{total:>14,}{learning:>14,}" for name, (total, learning) in ((name, parameters(part)) for name, part in parts.items())]
        total, learning = parameters(self)
        return "\n".join([f"{'':<15}{'parameters':>14}{'trainable':>14}", *rows, f"{100 * learning / total:.2f} % of the parameters are trainable"])

    def parameter_groups(self, head: float = 1e-4, backbone: float = 1e-6) -> list[dict[str, Any]]:
        """For an optimiser: layers of a backbone that learn have a rate of their own; adapters are new and have that of the head."""
        slow, fast = [], []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (slow if name.startswith("encoders.") and not name.endswith((".up", ".down")) else fast).append(parameter)
        return [group for group in ({"params": fast, "lr": head}, {"params": slow, "lr": backbone}) if group["params"]]

    def _tokens(self, name: str, given: Tensor, batch: Mapping[str, Any], there: Tensor | None) -> Padded:
        mask = _mask(name, given, _named(batch.get("masks"), name))
        if there is not None:
            mask = mask & there[:, None]
        time, length = _named(batch.get("time"), name), given.shape[ALONG[name]]
        if time is not None and tuple(time.shape) != tuple(mask.shape):
            raise WrongBatch(f"the time of {SPELT[name][0]} has the shape {tuple(time.shape)}; expected {tuple(mask.shape)}, a place for each of its {length}")
        _sound(name, given, mask)
        values = given.float() / 255 if given.dtype == torch.uint8 else given.float()
        if name == "series":
            steps = torch.arange(length, device=given.device) / max(length - 1, 1)
            return Padded(torch.where(mask[..., None], values, torch.zeros_like(values)), steps.expand_as(mask) if time is None else time, mask)
        tokens = self.encoders[name](values, mask)
        units = {"samples": given.ndim == 3} if name == "audio" else {}
        known = self.encoders[name].known(mask, tokens.shape[1], **units)
        return Padded(torch.where(known[..., None], tokens, torch.zeros_like(tokens)), _places(name, tokens, mask, time), known)

    def _none(self, name: str, count: int) -> Padded:
        """As many records, all without the modality."""
        width = self.channels if name == "series" else self.encoders[name].width
        there = next(self.network.parameters())
        return Padded(there.new_zeros(count, 1, width), there.new_zeros(count, 1), torch.zeros(count, 1, dtype=torch.bool, device=there.device))


def _given(batch: Mapping[str, Any], name: str) -> Tensor | None:
    """A modality under any of its names, of the right number of axes; None where it was left out."""
    found = [spelling for spelling in SPELT[name] if batch.get(spelling) is not None]
    if len(found) > 1 and batch[found[0]] is not batch[found[1]]:
        raise WrongBatch(f"{' and '.join(found)} are two names of one modality; give one of them")
    if not found:
        return None
    values = batch[found[0]]
    if values.ndim not in DIMENSIONS[name]:
        raise WrongBatch(f"{found[0]} has the shape {tuple(values.shape)}; expected {' or '.join(map(str, DIMENSIONS[name]))} axes")
    if name in PIXELS and values.shape[2] != (1 if name == "video" else 3):
        raise WrongBatch(f"{found[0]} has {values.shape[2]} channels; expected {'1, grey' if name == 'video' else '3, red, green and blue'}")
    return values


def _named(found: Mapping[str, Tensor] | None, name: str) -> Tensor | None:
    return next((found[spelling] for spelling in SPELT[name] if found.get(spelling) is not None), None) if found else None


def _mask(name: str, given: Tensor, mask: Tensor | None) -> Tensor:
    """(B, length), all True where none is given."""
    shape = (len(given), given.shape[ALONG[name]])
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=given.device)
    if tuple(mask.shape) != shape:
        raise WrongBatch(f"the mask of {SPELT[name][0]} has the shape {tuple(mask.shape)} and the modality {shape}: they are out of step")
    return mask.bool()


def _sound(name: str, given: Tensor, mask: Tensor) -> None:
    """Raises WrongBatch where what is known of a modality is not finite, or is pixels that are neither uint8 nor in 0..1."""
    if given.dtype == torch.uint8 or not mask.any():
        return
    known = given.movedim(ALONG[name], 1)[mask]
    if not known.isfinite().all():
        raise WrongBatch(f"{SPELT[name][0]} holds values that are not finite where its mask says that it is known; mask them, or fill the gap")
    if name in PIXELS and (known.min() < -1e-3 or known.max() > 1 + 1e-3):
        raise WrongBatch(
            f"{SPELT[name][0]} goes from {float(known.min()):.3g} to {float(known.max()):.3g}; expected float in 0..1, or uint8. "
            "Do not subtract a mean before: each backbone does so itself"
        )


def _places(name: str, tokens: Tensor, mask: Tensor, time: Tensor | None) -> Tensor:
    """(B, L) times of an encoder's tokens: the mean of what is known of what each was made of. Without a clock, views have no order and the last token is 1."""
    if time is not None and name == "image":
        return torch.where(mask, time.float(), torch.zeros_like(mask, dtype=torch.float32))
    if time is not None:
        share = F.adaptive_avg_pool1d(mask.float(), tokens.shape[1])
        return F.adaptive_avg_pool1d(torch.where(mask, time.float(), torch.zeros_like(mask, dtype=torch.float32)), tokens.shape[1]) / share.clamp(min=1e-6)
    if name == "image":
        return tokens.new_zeros(tokens.shape[:2])
    every = torch.arange(mask.shape[1], device=tokens.device, dtype=torch.float32)[None]
    moments = F.adaptive_avg_pool1d(every, tokens.shape[1])
    return (moments / moments.max().clamp(min=1e-6)).expand(tokens.shape[:2])
