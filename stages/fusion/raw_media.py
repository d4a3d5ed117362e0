"""Welds as raw media in batches of the training loop, and as the tokens that a model's encoders make of them.

Tokens made here are packed as stored ones are, without what was masked, so that everything behind them is the code that learns from stored tokens.

B records, M modalities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stages.datasets.records import Ragged, Records
from stages.datasets.welding_dataset import ARRAYS, WeldingDataset, collate
from stages.types import Batch

if TYPE_CHECKING:
    from stages.fusion.deep.maths.encoder import Padded
    from stages.fusion.deep.maths.sota_model import QuadModalSOTAModel

HELD = 2**30  # bytes of decoded media of one list that are kept in memory; what does not fit is decoded anew each time
PIXELS = (ARRAYS["video"], ARRAYS["image"])
AT_ONCE = 16  # records that are encoded together where nothing learns


class MediaSource:
    """The welds of a data set as the training loop takes them: "media.", "mask." and "time." of each medium, and the class.

    classes: (N,) int64, -1 for none that is known. labels: (N,). faults: N.
    """

    def __init__(self, welds: WeldingDataset, classes: Tensor, labels: Tensor, faults: Sequence[str] = (), held: int = HELD) -> None:
        self.welds, self.classes, self.labels, self.faults, self.samples = welds, classes, labels, list(faults), len(welds)
        self._held: dict[int, dict[str, Any]] = {}
        self._room = held

    @property
    def record_id(self) -> list[str]:
        return [row.record_id for row in self.welds.rows]

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, AT_ONCE):
            yield self.take(list(range(start, min(start + AT_ONCE, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        found = collate([self._sample(place) for place in positions])
        features = {"class": self.classes[positions]}
        for name in ARRAYS.values():
            features |= {f"media.{name}": found[name], f"mask.{name}": found["masks"][name], f"time.{name}": found["time"][name]}
        return Batch(features, self.labels[positions].long(), None, found["record_id"], [""] * len(positions))

    def _sample(self, place: int) -> dict[str, Any]:
        if place in self._held:
            return self._held[place]
        sample = self.welds[place]
        for name in PIXELS:  # a quarter of the bytes, and the same values: files hold bytes
            sample[name] = np.rint(sample[name] * 255).astype(np.uint8)
        size = sum(sample[name].nbytes for name in ARRAYS.values())
        if size <= self._room:
            self._room -= size
            self._held[place] = sample
        return sample


def encoded(model: QuadModalSOTAModel, features: Mapping[str, Tensor]) -> dict[str, Ragged]:
    """What the encoders make of a batch of `MediaSource`, with a gradient to whatever of them learns."""
    media = {name: features[f"media.{name}"] for name in ARRAYS.values()}
    parts = {part: {name: features[f"{part}.{name}"] for name in ARRAYS.values()} for part in ("mask", "time")}
    return {name: packed(part) for name, part in model.tokens({**media, "masks": parts["mask"], "time": parts["time"]}).items()}


def packed(part: Padded) -> Ragged:
    """Without the tokens that are none."""
    lengths = part.mask.sum(1)
    return Ragged(part.values[part.mask], part.time[part.mask], torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))


@torch.no_grad()
def extracted(model: QuadModalSOTAModel, source: MediaSource, device: torch.device | str = "cpu") -> Records:
    """The tokens of all welds of a source, on the CPU."""
    model.eval()
    batches = []
    for batch in source:
        found = encoded(model, {name: value.to(device) for name, value in batch.features.items()})
        batches.append({name: Ragged(*(one.cpu() for one in part)) for name, part in found.items()})
    tokens = {name: _joined([batch[name] for batch in batches]) for name in batches[0]}
    return Records(source.record_id, source.labels.to(torch.int8), tokens, source.faults)


def _joined(parts: Sequence[Ragged]) -> Ragged:
    lengths = torch.cat([part.lengths for part in parts])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Ragged(torch.cat([part.values for part in parts]), torch.cat([part.time for part in parts]), offsets)
