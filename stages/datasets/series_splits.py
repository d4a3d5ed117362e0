"""Where train, val, threshold and test of a recording lie: in order of time, with no anomaly across a border and no copy of a test step in train.

What is held out lies between train and test, in two halves. A fit may see the first one, val, to measure what its scores are on normal data; no fit sees
the second one, from which thresholds come: scores of steps that a detector was tuned on are too low to set a threshold by. Where the held-out steps of a
category are too few for both, thresholds get all of them, and a fit has to do with its training steps.

A data set that gives the first steps of a recording for training keeps that border, and what is held out is the last share of them; otherwise all parts
follow each other by the shares of the protocol.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from stages.datasets.samples import DataError

SPLITS = ("train", "val", "threshold", "test")
LEAST = 1_000  # held-out steps of a category, in each half; fewer are no measure of a score that means over dozens of steps


class Rule(NamedTuple):
    train_fraction: float
    val_fraction: float


class Span(NamedTuple):
    """The steps start .. stop - 1 of a recording."""

    split: str
    start: int
    stop: int


class Excluded(NamedTuple):
    recording_id: str
    start: int
    stop: int
    reason: str


def split(recordings: Sequence[dict[str, Any]], rule: Rule) -> tuple[list[dict[str, Any]], list[Excluded]]:
    """Segments and what is in none, of the rows of recordings.json. Raises DataError where a category has nothing to learn from or to be judged on."""
    halved = _halved(recordings, rule)
    spans = [(row, _spans(row, rule, row["category"] in halved)) for row in recordings]
    excluded = sorted([*_across_borders(spans), *_copies(recordings, rule)])
    left_out: dict[str, list[Excluded]] = defaultdict(list)
    for part in excluded:
        left_out[part.recording_id].append(part)
    segments = [
        {"recording_id": row["recording_id"], "category": row["category"], "split": span.split, "start": start, "stop": stop}
        for row, own in spans
        for span in own
        for start, stop in _unbroken(span.start, span.stop, row["breaks"], left_out[row["recording_id"]])
    ]
    _refuse_empty(recordings, segments)
    return segments, excluded


def borders(row: dict[str, Any], rule: Rule) -> tuple[int, int]:
    """Where what is held out and where test begin."""
    steps, fixed = row["steps"], row["train_steps"]
    if fixed is None:
        return round(steps * rule.train_fraction), round(steps * (rule.train_fraction + rule.val_fraction))
    return fixed - round(fixed * rule.val_fraction), fixed


def _halved(recordings: Iterable[dict[str, Any]], rule: Rule) -> set[str]:
    """The categories with enough held-out steps for val and threshold."""
    steps: dict[str, int] = defaultdict(int)
    for row in recordings:
        held_out, test = borders(row, rule)
        steps[row["category"]] += test - held_out
    return {category for category, total in steps.items() if total >= 2 * LEAST}


def _spans(row: dict[str, Any], rule: Rule, halved: bool) -> list[Span]:
    """In order, without the empty ones."""
    held_out, test = borders(row, rule)
    middle = (held_out + test) // 2 if halved else held_out
    spans = map(Span, SPLITS, (0, held_out, middle, test), (held_out, middle, test, row["steps"]))
    return [span for span in spans if span.stop > span.start]


def _across_borders(spans: Iterable[tuple[dict[str, Any], list[Span]]]) -> list[Excluded]:
    """An anomaly with a border inside is in neither part: half of it would be judged by who has seen the other half."""
    return [
        Excluded(
            row["recording_id"], region["start"], region["stop"], f"{region['kind']} across the border of {before.split} and {after.split}"
        )
        for row, own in spans
        for before, after in pairwise(own)
        for region in row["regions"]
        if region["start"] < after.start < region["stop"]
    ]


def _copies(recordings: Iterable[dict[str, Any]], rule: Rule) -> list[Excluded]:
    """Steps for training of a recording that an identical one gives to test."""
    alike: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in recordings:
        alike[row["content_hash"]].append(row)
    found = []
    for rows in alike.values():
        first = min(rows, key=lambda row: borders(row, rule)[1])
        tested = borders(first, rule)[1]
        found += [
            Excluded(
                row["recording_id"], tested, borders(row, rule)[1], f"identical to {first['recording_id']}, where these steps are test"
            )
            for row in rows
            if borders(row, rule)[1] > tested
        ]
    return found


def _unbroken(start: int, stop: int, breaks: Iterable[int], excluded: Iterable[Excluded]) -> list[tuple[int, int]]:
    """The stretches of start .. stop - 1 without what is excluded, cut before each break."""
    kept = np.ones(stop - start, bool)
    for part in excluded:
        kept[max(part.start - start, 0) : max(part.stop - start, 0)] = False
    stretches, first = [], 0
    for at in sorted({*(at - start for at in breaks if start < at < stop), *(np.flatnonzero(np.diff(kept)) + 1).tolist(), stop - start}):
        if at > first and kept[first]:
            stretches.append((start + first, start + at))
        first = at
    return stretches


def _refuse_empty(recordings: Iterable[dict[str, Any]], segments: Iterable[dict[str, Any]]) -> None:
    filled = {(segment["category"], segment["split"]) for segment in segments}
    for category in dict.fromkeys(row["category"] for row in recordings):
        for name in ("train", "test"):
            if (category, name) not in filled:
                raise DataError(f"E319 {category} has no step for {name}. Give it longer recordings, or others")
