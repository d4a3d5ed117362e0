"""Pixels in, a filled feature store out: threads decode and encode a few batches ahead of the one that is being written.

Each batch is encoded by one thread of its own, so the bits do not depend on how many of them there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stages import io
from stages.encoders.batches import MASK, PIXELS, Source
from stages.encoders.encoder import Encoder
from stages.encoders.shards import ABOUT, ShardWriter, write_index
from stages.errors import UserError
from stages.progress import progress
from stages.types import Features

AHEAD = 2  # batches beyond those in work that may wait to be written

Shapes = dict[str, tuple[tuple[int, ...], str]]  # {name: (shape of one row, dtype name)}


def stored_shapes(encoder: Encoder, source: Source) -> Shapes:
    """What one sample takes in the store, by name."""
    shapes = encoder.row_shapes()
    if PIXELS in shapes and source.has_masks:
        return {**shapes, MASK: ((encoder.image_size, encoder.image_size), "bool")}
    if encoder.form == "float16":
        return {name: (shape, "float16") for name, (shape, _) in shapes.items()}
    return shapes


def fill(folder: Path, encoder: Encoder, source: Source, about: dict[str, Any], batch_size: int, shard_mb: int, workers: int = 2) -> None:
    """Encode every sample of `source` into the store `folder`, which is complete when `encoder.json` (`about`) stands in it.

    workers: batches in work at the same time. Raises UserError (E301) for features that are not finite.
    """
    categories = source.categories()
    counts = {category: len(ids) for category, ids in categories.items()}
    writer = ShardWriter(folder, counts, shard_mb)
    names = [name for name in about["layers"] if name in (PIXELS, MASK)] or [PIXELS]
    batches = [(category, ids[at : at + batch_size]) for category, ids in categories.items() for at in range(0, len(ids), batch_size)]
    with progress(f"{about['dataset']}/{about['entry']['name']}", sum(counts.values())) as advance:
        encoded = _ahead(lambda batch: _rows(encoder, source.read(batch[1], names), batch[1]), batches, workers)
        for (category, ids), rows in zip(batches, encoded, strict=True):
            writer.add(category, ids, rows)
            advance(len(ids))
    writer.close(about)


def describe_streamed(folder: Path, source: Source, about: dict[str, Any]) -> None:
    """A store without shards: the samples it would hold, and the encoder to run when they are read."""
    write_index(folder, [(sample_id, category, None, None) for category, ids in source.categories().items() for sample_id in ids])
    io.write_json(folder / ABOUT, about)


def describe_refused(folder: Path, about: dict[str, Any]) -> None:
    """A store that could not be made; `about["refused"]` says why."""
    write_index(folder, [])
    io.write_json(folder / ABOUT, about)


def _rows(encoder: Encoder, seen: Features, ids: list[str]) -> Features:
    """The tensors of one batch as the store keeps them."""
    features = encoder.encode(seen[PIXELS])
    if PIXELS in features:
        return seen
    for name, value in features.items():
        if not value.isfinite().all():
            first = ids[int((~value.isfinite()).flatten(1).any(1).nonzero()[0])]
            hint = "; float16 ends at 65504, set features.form to float32" if encoder.form == "float16" else ""
            raise UserError(f"E301 {name} of {first} is not finite{hint}")
    return {name: value.half() for name, value in features.items()} if encoder.form == "float16" else features


def _ahead(encode: Callable[[Any], Features], batches: Iterable[Any], workers: int) -> Iterator[Features]:
    """`encode` of every batch in order, computed by threads a few batches ahead."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        for batch in batches:
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > workers + AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
