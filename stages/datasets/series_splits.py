"""Where train, val and test of a recording lie: in order of time, with no anomaly across a border and no copy of a test step in train.

A data set that gives the first steps of a recording for training keeps that border, and val is the last share of them; otherwise train, val and test
follow each other by the shares of the protocol.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.datasets.samples import DataError

SPLITS = ("train", "val", "test")


class Rule(NamedTuple):
    train_fraction: float
    val_fraction: float


class Excluded(NamedTuple):
    recording_id: str
    start: int
    stop: int
    reason: str


def split(recordings: Sequence[dict[str, Any]], rule: Rule) -> tuple[list[dict[str, Any]], list[Excluded]]:
    """Segments and what is in none, of the rows of recordings.json. Raises DataError where a category has nothing to learn from or to be judged on."""
    excluded = sorted([*_across_borders(recordings, rule), *_copies(recordings, rule)])
    left_out: dict[str, list[Excluded]] = defaultdict(list)
    for part in excluded:
        left_out[part.recording_id].append(part)
    segments = [
        {"recording_id": row["recording_id"], "category": row["category"], "split": name, "start": start, "stop": stop}
        for row in recordings
        for name, first, last in _spans(row, rule)
        for start, stop in _unbroken(first, last, row["breaks"], left_out[row["recording_id"]])
    ]
    _refuse_empty(recordings, segments)
    return segments, excluded


def borders(row: dict[str, Any], rule: Rule) -> tuple[int, int]:
    """Where val and where test begin."""
    steps, fixed = row["steps"], row["train_steps"]
    if fixed is None:
        return round(steps * rule.train_fraction), round(steps * (rule.train_fraction + rule.val_fraction))
    return fixed - round(fixed * rule.val_fraction), fixed


def _spans(row: dict[str, Any], rule: Rule) -> list[tuple[str, int, int]]:
    val, test = borders(row, rule)
    return list(zip(SPLITS, (0, val, test), (val, test, row["steps"])))


def _across_borders(recordings: Iterable[dict[str, Any]], rule: Rule) -> list[Excluded]:
    """An anomaly with a border inside is in neither part: half of it would be judged by who has seen the other half."""
    return [
        Excluded(row["recording_id"], region["start"], region["stop"], f"{region['kind']} across the border of {before} and {after}")
        for row in recordings
        for border, before, after in zip(borders(row, rule), SPLITS, SPLITS[1:])
        for region in row["regions"]
        if region["start"] < border < region["stop"]
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
