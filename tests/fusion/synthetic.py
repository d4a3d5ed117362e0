"""Small made-up records: tokens around a state of the record that all its modalities share, and faults that mostly one of them shows.

Where a modality looks to show a fault is drawn from its name and not from the seed, so that records of two seeds are train and test of one world.
"""

from functools import cache

import numpy as np
import torch

from stages.datasets.records import Record, Records, Tokens, packed
from stages.seed import numpy_generator

WIDTHS = {"text": 8, "image": 12, "series": 6}


def samples(
    seed: int,
    count: int = 60,
    widths: dict[str, int] = WIDTHS,
    missing: float = 0.3,
    anomalous: float = 0.5,
    strength: float = 4.0,
    faint: float = 0.4,
    tokens: int = 5,
    by_group: int = 3,
) -> list[Record]:
    """`count` records, the share `anomalous` of them with a fault, in random order.

    missing: the chance of each modality to be absent; one is always left, and nothing about it depends on the label. A fault is named after the
    modality that shows it, with all of `strength` (in deviations of a token's noise); the others show `faint` of that: 1 is redundant, 0 complementary.
    tokens: a modality has 1 to so many. by_group: consecutive records that share a group.
    """
    random, names = numpy_generator(seed, "records"), list(widths)
    label = random.permutation(np.arange(count) < round(anomalous * count)).astype(int)
    absent = random.random((count, len(names))) < missing
    absent[np.arange(count), random.integers(len(names), size=count)] = False
    return [
        Record(
            f"r{seed}-{number:04d}",
            _modalities(
                random,
                widths,
                fault := names[random.integers(len(names))] if label[number] else "",
                absent[number],
                strength,
                faint,
                tokens,
            ),
            int(label[number]),
            group=f"g{seed}-{number // by_group:03d}",
            fault=fault,
        )
        for number in range(count)
    ]


def records(seed: int, count: int = 60, widths: dict[str, int] = WIDTHS, **options) -> Records:
    """The same, packed."""
    return packed(samples(seed, count, widths, **options), widths)


def _modalities(
    random, widths: dict[str, int], fault: str, absent: np.ndarray, strength: float, faint: float, tokens: int
) -> dict[str, Tokens]:
    state, found = random.standard_normal(2), {}
    for (name, width), gone in zip(widths.items(), absent, strict=True):
        steps = int(random.integers(1, tokens + 1))
        values = random.standard_normal((steps, width)) + state @ _axes(name, width)[1:]
        if fault:
            values += strength * (1 if fault == name else faint) * _axes(name, width)[0]
        if not gone:
            found[name] = Tokens(torch.from_numpy(values.astype(np.float32)), torch.linspace(0, 1, steps))
    return found


@cache
def _axes(name: str, width: int) -> np.ndarray:
    """(3, width) unit vectors of one modality: the first is what a fault adds, two carry the state of the record."""
    axes = numpy_generator(0, "axes", name).standard_normal((3, width))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)
