"""The proposed fusion: learnt queries read the tokens of all modalities by cross-attention, so that what one medium shows decides where another is looked at.

The layers are in maths/fusion.py, with their papers and deviations; docs/deep_fusion.md has the shapes.

B records, L tokens, M modalities, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stages.datasets.records import Records
from stages.fusion.deep.maths.detector import ENCODING, LEARNING, DeepDetector
from stages.fusion.deep.maths.encoder import Encoding
from stages.fusion.deep.maths.fusion import LEARNED, CrossAttentionFusionModule, by_modality, check_sizes
from stages.fusion.deep.maths.learning import Learning
from stages.types import Refusal


class CrossAttention(DeepDetector):
    """queries, layers, heads, ffn: sizes of the fusion. query: "learned", or the modality whose tokens ask. style: "joint", or "per_modality" readers that a
    network joins."""

    def __init__(
        self,
        *,
        queries: int = 4,
        layers: int = 2,
        heads: int = 8,
        ffn: int = 1024,
        query: str = LEARNED,
        style: Literal["joint", "per_modality"] = "joint",
        encoding: Encoding = ENCODING,
        features: int = 512,
        learning: Learning = LEARNING,
    ) -> None:
        super().__init__(encoding=encoding, features=features, learning=learning)
        self.queries, self.layers, self.heads, self.ffn, self.query, self.style = queries, layers, heads, ffn, query, style
        check_sizes(features, {"queries": queries, "layers": layers, "heads": heads, "ffn": ffn}, query, style)

    def fusion(self, modalities: Sequence[str]) -> nn.Module:
        if self.query != LEARNED and self.query not in modalities:
            raise Refusal(f"the records have no modality {self.query!r} to ask with; they have {', '.join(modalities)}")
        return CrossAttentionFusionModule(
            modalities, self.encoding.width, self.features, heads=self.heads, queries=self.queries, layers=self.layers, ffn=self.ffn,
            dropout=self.encoding.dropout, query=self.query, style=self.style,
        )  # fmt: skip

    @torch.no_grad()
    def attention(self, records: Records) -> Tensor:
        """(B, M), columns in the order of `widths`: the share of attention; what goes to the sign of an absent modality counts for it; rows sum to 1."""
        reading = self(records)
        return by_modality(reading.fused.attention, reading.encoded).to(records.label.device)
