"""One modality alone: the mean of its tokens through a small network, and the records that have it."""

from __future__ import annotations

from torch import nn

from stages.datasets.records import RecordSet, batches
from stages.fusion.deep.maths.encoder import Encoded
from stages.fusion.deep.maths.network import Fused


class Alone(nn.Module):
    """`Encoded` of one modality to `Fused`."""

    def __init__(self, width: int, features: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, features), nn.GELU(), nn.Dropout(dropout), nn.Linear(features, features), nn.GELU())

    def forward(self, encoded: Encoded) -> Fused:
        return Fused(self.layers(encoded.pooled))


def having(records: RecordSet, modality: str) -> RecordSet:
    """Those of the records that have the modality."""
    there = [
        number for number, has in enumerate(has for part in batches(records) for has in (part.tokens[modality].lengths > 0).tolist()) if has
    ]
    return records.kept(there)
