"""What detectors read: batches of features, pixels, labels and masks, whichever form the store has.

`open_batches` is the only entry: float32 and float16 stores are read through memory maps, a streamed encoder runs as it is asked, and a
detector cannot tell which it got.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from stages.datasets.tiles import Grid
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

    @property
    def grid(self) -> Grid | None: ...

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
        return Batch(features, torch.tensor([label_of(row) for row in rows]), mask, ids, [row["category"] for row in rows])

    def picture(self, position: int) -> Tensor:
        """(H, W, 3) uint8: one whole image as the detector is shown it."""
        return self._pixels.read([self.rows[position]["sample_id"]], [PIXELS])[PIXELS][0].permute(1, 2, 0)


class TiledBatches(StoredBatches):
    """The same where images are cut into tiles: every tile is a sample to learn from. `images` are the rows that they were cut from.

    A tile of an anomalous image is anomalous where the mask marks something in it; without masks its label is unknown.
    """

    def __init__(self, images: list[dict[str, Any]], grid: Grid, *source: Any) -> None:
        super().__init__([row | {"sample_id": name} for row in images for name in grid.names(row["sample_id"])], *source)
        self.images, self.grid = images, grid

    def take(self, positions: list[int]) -> Batch:
        batch = super().take(positions)
        marked = batch.mask.flatten(1).any(dim=1).long() if batch.mask is not None else torch.full_like(batch.label, UNKNOWN_LABEL)
        return batch._replace(label=torch.where(batch.label == 1, marked, batch.label))

    def tiles_of(self, image: int) -> Iterator[Batch]:
        """The tiles of one image, in the order of the grid."""
        first, last = image * self.grid.count, (image + 1) * self.grid.count
        for start in range(first, last, self.batch_size):
            yield self.take(list(range(start, min(start + self.batch_size, last))))

    def picture(self, position: int) -> Tensor:
        tiles = self._pixels.read(self.grid.names(self.images[position]["sample_id"]), [PIXELS])[PIXELS]
        return self.grid.merge(tiles)[0].permute(1, 2, 0)


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


def label_of(row: dict[str, Any]) -> int:
    """0 normal, 1 anomalous, UNKNOWN_LABEL."""
    return UNKNOWN_LABEL if row["label"] is None else int(row["label"])


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
    source = (pixels, features, wanted, batch_size or params.features.batch_size, about)
    return TiledBatches(rows, pixels.grid, *source) if pixels.grid else StoredBatches(rows, *source)


def pixels_source(folder: Path, project: Path) -> Source:
    """The pixels of a store, or, where they were too many to store, decoded from the files."""
    about = _about(folder)
    if about["form"] != "streamed":
        return Store(folder)
    from stages.encoders.pixels import Decoded

    return Decoded(project / about["reads"], about["entry"]["image_size"], Grid.of(about))


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
