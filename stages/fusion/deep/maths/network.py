"""One network: tokens of all modalities to a common sequence, that to the features of the record, those to its classes.

Which fusion stands in the middle is all that the deep detectors differ in.

B records, L tokens, M modalities, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from stages.fusion.deep.maths.encoder import Encoded, Encoding, Padded, TokenEncoder
from stages.fusion.deep.maths.heads import Heads


class Fused(NamedTuple):
    """What a fusion makes of `Encoded`."""

    features: Tensor  # (B, 1, F)
    attention: Tensor | None = (
        None  # (B, L) how much each token was looked at, rows sum to 1; None where nothing is looked at more than the rest
    )
    weights: tuple[Tensor, ...] = ()  # of each layer (B, heads, Q, L), its attention from queries to tokens
    within: tuple[Tensor, ...] = ()  # of each layer (B, heads, Q, Q), that among queries


class Reading(NamedTuple):
    features: Tensor  # (B, F), of any length
    logits: Tensor  # (B, C) at the shares of the training records
    encoded: Encoded
    fused: Fused

    @property
    def unit(self) -> Tensor:
        """(B, F) what neighbours are found by."""
        return functional.normalize(self.features, dim=1)


class Network(nn.Module):
    """fusion: a module from Encoded to Fused."""

    def __init__(self, widths: Mapping[str, int], encoding: Encoding, fusion: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.fusion, self.heads = TokenEncoder(widths, encoding), fusion, Heads(features, classes)

    def forward(self, tokens: Mapping[str, Padded]) -> Reading:
        encoded = self.encoder(tokens)
        fused = self.fusion(encoded)
        features = fused.features[:, 0]
        return Reading(features, self.heads(features), encoded, fused)
