"""What detectors read: batches of features, pixels, labels and masks, whichever form the store has.

`open_batches` is the only entry: float32 and float16 stores are read through memory maps, a streamed encoder runs as it is asked, and a
detector cannot tell which it got.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from stages.encoders.encoder import Encoder
from stages.encoders.shards import Store
from stages.params import Params, ParamsError
from stages.types import Batch, Features, Refusal

MASK, PIXELS = "mask", "pixels"
UNKNOWN_LABEL = -1  # in a batch; null in the sample table


class Source(Protocol):
    """Rows by sample id: a store, or files that are decoded as they are asked for."""

    @property
    def has_masks(self) -> bool: ...

    def categories(self) -> dict[str, list[str]]: ...

    def read(self, sample_ids: list[str], names: list[str]) -> Features: ...


class StoredBatches:
    """Implements stages.types.Batches over a pixels source and, unless only pixels are wanted, one encoder's features."""

    def __init__(
        self,
        rows: list[dict[str, Any]],
        pixels: Source,
        features: Store | Streamed,
        layers: list[str],
        batch_size: int,
        encoder_identity: dict[str, Any],
    ) -> None:
        self.rows, self.layers, self.batch_size, self.encoder_identity = rows, layers, batch_size, encoder_identity
        self._pixels, self._features = pixels, features
        self.samples = len(rows)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.samples, self.batch_size):
            yield self.take(list(range(start, min(start + self.batch_size, self.samples))))

    def take(self, positions: list[int]) -> Batch:
        """The samples at these positions, in this order. Features are float32, pixels uint8; an unknown label is -1."""
        rows = [self.rows[position] for position in positions]
        ids = [row["sample_id"] for row in rows]
        seen = self._pixels.read(ids, [PIXELS, MASK])
        mask = seen.pop(MASK, None)
        features = {**self._features.read(ids, self.layers), **seen} if self.layers else seen
        label = [UNKNOWN_LABEL if row["label"] is None else int(row["label"]) for row in rows]
        return Batch(features, torch.tensor(label, dtype=torch.int64), mask, ids, [row["category"] for row in rows])


class Streamed:
    """An encoder as a source: features are computed at every read. It is built at the first, so that the source can be pickled."""

    def __init__(self, about: dict[str, Any], pixels: Source, device: str, threads: int, backbones: Path) -> None:
        self.about, self._pixels = about, pixels
        self._settings = (device, threads, backbones)
        self._encoder: Encoder | None = None

    def read(self, sample_ids: list[str], names: list[str]) -> Features:
        if self._encoder is None:
            self._encoder = Encoder.from_identity(self.about, *self._settings)
        features = self._encoder.encode(self._pixels.read(sample_ids, [PIXELS])[PIXELS])
        return {name: features[name] for name in names}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}


def open_batches(
    dataset: str,
    encoder: str,
    rows: list[dict[str, Any]],
    layers: list[str] | tuple[str, ...],
    params: Params,
    batch_size: int | None = None,
    project: Path = Path(),
) -> StoredBatches:
    """The samples of `rows` (manifest rows with sample_id, label, category) as batches of `layers` and "pixels".

    batch_size: features.batch_size of the parameters unless given.
    Raises Refusal with the recorded reason, ParamsError for a layer that the entry does not give, FileNotFoundError before extract ran.
    """
    folder = project / "features" / dataset / encoder
    about = _about(folder)
    wanted = [layer for layer in layers if layer != PIXELS]  # pixels come with every batch
    _require_layers(encoder, about, wanted)
    pixels = pixels_source(folder if about["entry"]["kind"] == PIXELS else project / about["reads"], project)
    features: Store | Streamed = Store(folder)
    if about["form"] == "streamed":
        features = Streamed(about, pixels, params.compute.device, params.compute.threads, project / params.backbones_folder)
    return StoredBatches(rows, pixels, features, wanted, batch_size or params.features.batch_size, about)


def pixels_source(folder: Path, project: Path) -> Source:
    """The pixels of a store, or, where they were too many to store, decoded from the files."""
    about = _about(folder)
    if about["form"] != "streamed":
        return Store(folder)
    from stages.encoders.pixels import Decoded

    return Decoded(project / about["reads"], about["entry"]["image_size"])


def refusal(dataset: str, encoder: str, project: Path = Path()) -> str | None:
    """Why this encoder has no features here, or None where it has them."""
    return Store(project / "features" / dataset / encoder).about.get("refused")


def _about(folder: Path) -> dict[str, Any]:
    about = Store(folder).about
    if "refused" in about:
        raise Refusal(about["refused"])
    return about


def _require_layers(encoder: str, about: dict[str, Any], wanted: list[str]) -> None:
    missing = [layer for layer in wanted if layer not in about["layers"]]
    if missing:
        raise ParamsError(
            f"the encoder entry {encoder} gives {', '.join(about['layers'])}, but {', '.join(missing)} is asked for: "
            f"add it to encoders.{encoder}.layers in params.yaml and run `dvc repro extract`"
        )
