"""What a detector says of whole images, whichever form their batches have: tiles are put together to the images they were cut from.

The score of an image in tiles is the highest of its tiles' scores, its map is that of its tiles, blended where they overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from stages.datasets.tiles import Grid
from stages.encoders.batches import TiledBatches, label_of
from stages.types import Batch, Batches, Detector, Features, Prediction


@torch.no_grad()
def predictions(detector: Detector, batches: Batches) -> Iterator[tuple[Batch, Prediction]]:
    """Each batch of whole images, without features where they are in tiles, and what the detector says of it."""
    if not isinstance(batches, TiledBatches):
        for batch in batches:
            yield batch, predict(detector, batch.features)
        return
    for position, row in enumerate(batches.images):
        tiles = list(batches.tiles_of(position))
        mask = batches.grid.merge(torch.cat([batch.mask for batch in tiles])) if tiles[0].mask is not None else None
        whole = Batch({}, torch.tensor([label_of(row)]), mask, [row["sample_id"]], [row["category"]])
        yield whole, whole_image(batches.grid, [predict(detector, batch.features) for batch in tiles])


def predict(detector: Detector, features: Features) -> Prediction:
    """`detector.score` where the detector lies."""
    device = next((tensor.device for tensor in detector.state_dict().values()), torch.device("cpu"))
    return detector.score({name: value.to(device) for name, value in features.items()})


def whole_image(grid: Grid, tiles: Sequence[Prediction]) -> Prediction:
    """One prediction for one image from those of its tiles, in the order of the grid and in any number of batches."""
    score = torch.cat([tile.image_score for tile in tiles]).amax(dim=0, keepdim=True)
    if tiles[0].anomaly_map is None:
        return Prediction(score, None)
    return Prediction(score, grid.merge(torch.cat([tile.anomaly_map for tile in tiles])))
