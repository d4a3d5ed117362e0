"""Mid fusion, what cross-attention has to beat: the mean token of each modality side by side, beside which modalities are there, into a small network.

Tokens are encoded as for all deep detectors, so the sensors are read by a Transformer here as well; only what joins the modalities differs.

B records, M modalities, W width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stages.fusion.deep.maths.detector import DeepDetector
from stages.fusion.deep.maths.encoder import Encoded
from stages.fusion.deep.maths.network import Fused


class MidFusion(DeepDetector):
    def fusion(self, modalities: Sequence[str]) -> nn.Module:
        return Concatenation(len(modalities), self.encoding.width, self.features, self.encoding.dropout)


class Concatenation(nn.Module):
    def __init__(self, modalities: int, width: int, features: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(modalities * (width + 1), features), nn.GELU(), nn.Dropout(dropout), nn.Linear(features, features), nn.GELU()
        )

    def forward(self, encoded: Encoded) -> Fused:
        together = torch.cat([encoded.pooled.flatten(1), encoded.present.to(encoded.tokens.dtype)], 1)
        return Fused(self.layers(together)[:, None])
