"""Batches with the same number of records of each of a few classes, so that rare faults are seen as often as good welds and every anchor has positives.

The classes of a batch are dealt from a shuffled pack of all classes, the records of a class from a shuffled pack of its records; a pack is shuffled anew
when it is used up. So classes are drawn equally often, and so are the records within a class, up to one; an epoch has as many draws as there are records.

N records, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def balanced(classes: Tensor, classes_per_batch: int = 3, per_class: int = 4) -> Callable[[torch.Generator], list[int]]:
    """What `Plan.order` takes: from a generator the positions of one epoch, N of them, for batches of classes_per_batch * per_class.

    classes: (N,) int, 0 or more. With fewer classes than classes_per_batch a batch has more records of each; a class with fewer records than are asked
    for has some twice in one batch. The last batch of an epoch is cut short, evenly over its classes.
    """
    if classes_per_batch < 1 or per_class < 1:
        raise ValueError(f"classes_per_batch and per_class must be at least 1, got {classes_per_batch} and {per_class}")
    if len(classes) == 0 or int(classes.min()) < 0:
        raise ValueError("every record to learn from needs a class of 0 or more, and there must be one")
    members = [(classes == kind).nonzero()[:, 0].tolist() for kind in classes.unique(sorted=True)]
    size, many = classes_per_batch * per_class, min(classes_per_batch, len(members))

    def order(generator: torch.Generator) -> list[int]:
        kinds = _dealt(list(range(len(members))), generator)
        records = [_dealt(rows, generator) for rows in members]
        drawn: list[int] = []
        held: list[int] = []
        while len(drawn) < len(classes):
            chosen = _distinct(kinds, many, held)
            drawn += [next(records[chosen[place % many]]) for place in range(size)]
        return drawn[: len(classes)]

    return order


def _dealt(pack: list[int], generator: torch.Generator) -> Iterator[int]:
    """Without end: the whole pack in random order, then again in another."""
    while True:
        yield from (pack[place] for place in torch.randperm(len(pack), generator=generator).tolist())


def _distinct(kinds: Iterator[int], many: int, held: list[int]) -> list[int]:
    """The next `many` different ones. What comes twice, where one pack ends and the next begins, is held for the next batch."""
    waiting, chosen = list(held), []
    held.clear()
    while len(chosen) < many:
        kind = waiting.pop(0) if waiting else next(kinds)
        (held if kind in chosen else chosen).append(kind)
    return chosen
