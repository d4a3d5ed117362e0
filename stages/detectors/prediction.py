"""What a detector says of whole images, whichever form their batches have: tiles are put together to the images they were cut from.

The score of an image in tiles is the highest of its tiles' scores, its map is that of its tiles, blended where they overlap. A transductive detector
is shown all images of a split at once, whose features must fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch

from stages.datasets.tiles import Grid
from stages.encoders.batches import TiledBatches, label_of
from stages.types import Batch, Batches, Detector, Features, Prediction, Refusal


@torch.no_grad()
def predictions(detector: Detector, batches: Batches) -> Iterator[tuple[Batch, Prediction]]:
    """Each batch of whole images, without features where they are in tiles, and what the detector says of it; one batch of all for a transductive one."""
    require_whole_images(detector, batches)
    if detector.transductive:
        if batches.samples:
            every = joined(list(batches))
            yield every, predict(detector, every.features)
        return
    if not isinstance(batches, TiledBatches):
        for batch in batches:
            yield batch, predict(detector, batch.features)
        return
    for position, row in enumerate(batches.images):
        tiles = list(batches.tiles_of(position))
        mask = batches.grid.merge(torch.cat([batch.mask for batch in tiles])) if tiles[0].mask is not None else None
        whole = Batch({}, torch.tensor([label_of(row)]), mask, [row["sample_id"]], [row["category"]])
        yield whole, whole_image(batches.grid, [predict(detector, batch.features) for batch in tiles])


def require_whole_images(detector: Detector, batches: Batches) -> None:
    """Raises Refusal where a detector that scores a set of images is given tiles of them."""
    if detector.transductive and isinstance(batches, TiledBatches):
        raise Refusal(
            f"{type(detector).__name__} is transductive: it compares whole images with each other, and these are cut into tiles. "
            "Pair it with an encoder without tiles"
        )


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all images, in their order."""
    names, mask = batches[0].features, batches[0].mask
    return Batch(
        {name: torch.cat([batch.features[name] for batch in batches]) for name in names},
        torch.cat([batch.label for batch in batches]),
        None if mask is None else torch.cat([batch.mask for batch in batches]),
        [sample for batch in batches for sample in batch.sample_id],
        [category for batch in batches for category in batch.category],
    )


def predict(detector: Detector, features: Features) -> Prediction:
    """`detector.score` where the detector lies."""
    device = next((tensor.device for tensor in chain(detector.parameters(), detector.buffers())), torch.device("cpu"))
    return detector.score({name: value.to(device) for name, value in features.items()})


def whole_image(grid: Grid, tiles: Sequence[Prediction]) -> Prediction:
    """One prediction for one image from those of its tiles, in the order of the grid and in any number of batches."""
    score = torch.cat([tile.image_score for tile in tiles]).amax(dim=0, keepdim=True)
    if tiles[0].anomaly_map is None:
        return Prediction(score, None)
    return Prediction(score, grid.merge(torch.cat([tile.anomaly_map for tile in tiles])))
