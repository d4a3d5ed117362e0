"""Gated fusion: each modality brings its own features, and a gate that sees all of them says how much each counts for this record.

After the gated multimodal unit (Arevalo et al., arXiv:1702.01992). Deviations: the gate is one share a modality, not one of each feature; the shares sum
to 1 over the modalities that are there, so that one that is absent counts for nothing.

B records, M modalities, W width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.datasets.records import Records
from stages.fusion.deep.maths.detector import DeepDetector
from stages.fusion.deep.maths.encoder import Encoded
from stages.fusion.deep.maths.fusion import by_modality
from stages.fusion.deep.maths.network import Fused


class GatedFusion(DeepDetector):
    def fusion(self, modalities: Sequence[str]) -> nn.Module:
        return Gate(len(modalities), self.encoding.width, self.features, self.encoding.dropout)

    @torch.no_grad()
    def attention(self, records: Records) -> Tensor:
        """(B, M), columns in the order of `widths`: the share of each modality, 0 of one that is absent; rows sum to 1."""
        reading = self(records)
        return by_modality(reading.fused.attention, reading.encoded).to(records.label.device)


class Gate(nn.Module):
    def __init__(self, modalities: int, width: int, features: int, dropout: float) -> None:
        super().__init__()
        self.each = nn.ModuleList(nn.Sequential(nn.Linear(width, features), nn.Tanh()) for _ in range(modalities))
        self.gate = nn.Sequential(
            nn.Linear(modalities * (width + 1), features), nn.GELU(), nn.Dropout(dropout), nn.Linear(features, modalities)
        )

    def forward(self, encoded: Encoded) -> Fused:
        pooled = encoded.pooled
        seen = torch.cat([pooled.flatten(1), encoded.present.to(pooled.dtype)], 1)
        share = self.gate(seen).masked_fill(~encoded.present, torch.finfo(pooled.dtype).min).softmax(1)  # (B, M)
        features = torch.stack([layer(pooled[:, number]) for number, layer in enumerate(self.each)], 1)  # (B, M, F)
        return Fused((share[..., None] * features).sum(1, keepdim=True), _over_tokens(share, encoded))


def _over_tokens(share: Tensor, encoded: Encoded) -> Tensor:
    """(B, M) to (B, L): each modality's share, spread evenly over its tokens."""
    parts = [mask / mask.sum(1, keepdim=True) * share[:, number, None] for number, (_, mask) in enumerate(encoded.parts)]
    return torch.cat(parts, 1)
