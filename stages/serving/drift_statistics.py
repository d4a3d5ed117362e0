"""What is compared of records: numbers that a person can name, (B,) each, of two sides one after the other; NaN where a record does not have it.

Of sensors, for each channel: its mean over the tokens and its spread, in the sensor's own units, and its level where tokens are taken relative to it. Of
every other modality, which a network has seen: the mean of a record's tokens on the first principal axes of the training records, its length, and its
distance to them (Mahalanobis, in some axes more). Of all: whether a modality is missing, and how many tokens it has. Of facts: numbers as they are, words as
the share that has each.

B records of both sides, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.records import Ragged
from stages.serving.drift_sides import Side

AXES = 3  # that are compared one by one
MOST_AXES = 10  # of the distance
SESSIONS_AN_AXIS = 5
FOLDS = 5
SENSORS = ("windows", "sensor_steps", "sensor_residual")  # kinds of encoders whose columns are channels
Floats = NDArray[np.float64]


class Statistic(NamedTuple):
    name: str
    of: str  # the modality, "facts" or "scores"
    values: Floats  # (B,)


def statistics(reference: Side, new: Side, about: Mapping[str, Mapping[str, Any]], settings: list[str]) -> list[Statistic]:
    """Those that both sides have and that are not the same number everywhere. about: of the stores. settings: facts whose words are compared."""
    found = [*_of_modalities(reference, new, about), *_of_levels(reference, new), *_of_facts(reference, new, settings)]
    start = reference.records.samples
    return [
        one for one in found if _told(one.values[:start]) and _told(one.values[start:]) and np.nanmin(one.values) < np.nanmax(one.values)
    ]


def _told(values: Floats) -> bool:
    return not np.isnan(values).all()


def _of_modalities(reference: Side, new: Side, about: Mapping[str, Mapping[str, Any]]) -> Iterator[Statistic]:
    entries = {name: one.get("entry", {}) for one in about.values() for name in one["modalities"]}
    for name in reference.records.tokens:
        if name not in new.records.tokens:
            continue
        sides = [side.records.tokens[name] for side in (reference, new)]
        length = np.concatenate([one.lengths.numpy() for one in sides]).astype(np.float64)
        yield Statistic(f"{name} missing", name, (length == 0).astype(np.float64))
        yield Statistic(f"{name} tokens", name, np.where(length > 0, length, np.nan))
        if entries[name].get("kind") in SENSORS:
            yield from _of_sensors(name, sides, entries[name])
        else:
            yield from _of_embedding(name, np.concatenate([_pooled(one)[0] for one in sides]), np.array(reference.group))


def _of_sensors(name: str, sides: list[Ragged], entry: Mapping[str, Any]) -> Iterator[Statistic]:
    mean, spread = (np.concatenate(parts) for parts in zip(*map(_pooled, sides), strict=True))
    each = 1 if entry["kind"] != "windows" else 6 + entry["frequencies"]  # columns of a channel: its mean, its deviation, and more
    figures = _figures(entry, mean.shape[1] // each)
    for place, (channel, (centre, unit)) in enumerate(figures.items()):
        column = place * each
        centre = 0.0 if entry.get("relative") else centre
        yield Statistic(f"{channel} mean", name, mean[:, column] * unit + centre)
        yield Statistic(f"{channel} spread", name, (mean[:, column + 1] if each > 1 else spread[:, column]) * unit)


def _figures(entry: Mapping[str, Any], channels: int) -> dict[str, tuple[float, float]]:
    """By channel the centre and the unit that its tokens were scaled by; ratios and unnamed channels are left as they are."""
    from stages.datasets.weld_files import NOMINAL

    known = entry.get("nominal") or (NOMINAL if entry["kind"] == "sensor_steps" else {})
    if entry["kind"] != "sensor_residual" and len(known) == channels:
        return {name: (float(centre), float(unit)) for name, (centre, unit) in known.items()}
    return {f"channel {number + 1}": (0.0, 1.0) for number in range(channels)}


def _pooled(tokens: Ragged) -> tuple[Floats, Floats]:
    """(B, D) the mean and the deviation of each record's tokens; NaN where it has none."""
    mean, spread = (np.full((len(tokens.lengths), tokens.values.shape[1]), np.nan) for _ in range(2))
    for place, one in enumerate(tokens.values.double().split(tokens.lengths.tolist())):
        if len(one):
            mean[place], spread[place] = one.mean(0).numpy(), one.std(0, correction=0).numpy()
    return mean, spread


def _of_embedding(name: str, pooled: Floats, group: NDArray) -> Iterator[Statistic]:
    """pooled: (B, D), the reference first; group: of the reference alone."""
    there = ~np.isnan(pooled[:, 0])
    known = there[: len(group)]
    if not known.any():
        return
    train, names = pooled[: len(group)][known], group[known]
    yield Statistic(f"{name} length", name, np.linalg.norm(pooled, axis=1))
    count = max(1, min(MOST_AXES, len(set(names.tolist())) // SESSIONS_AN_AXIS))
    fit = _Axes(train, count)
    for place in range(min(AXES, len(fit.deviation))):
        yield Statistic(f"{name} axis {place + 1}", name, fit.along(pooled)[:, place])
    distance = fit.distance(pooled)
    distance[: len(group)][known] = _held_out(train, names, count)
    yield Statistic(f"{name} distance", name, distance)


class _Axes:
    """Principal axes of (n, D) and the deviation along each; a sign that makes the largest weight positive."""

    def __init__(self, values: Floats, count: int) -> None:
        self.centre = values.mean(0)
        _, size, axes = np.linalg.svd(values - self.centre, full_matrices=False)
        deviation = size / np.sqrt(len(values))
        kept = [place for place in range(min(count, len(size))) if deviation[place] > 1e-9 * max(deviation[0], 1e-30)]
        chosen = axes[kept]
        largest = np.abs(chosen).argmax(1)
        self.axes = chosen * np.sign(chosen[np.arange(len(kept)), largest])[:, None]
        self.deviation = deviation[kept]

    def along(self, values: Floats) -> Floats:
        return (values - self.centre) @ self.axes.T

    def distance(self, values: Floats) -> Floats:
        return np.sqrt(((self.along(values) / self.deviation) ** 2).sum(1))


def _held_out(train: Floats, group: NDArray, count: int) -> Floats:
    """(n,) distances of training records to the others: a fifth of the groups is left out of each fit, as what is new was out of it, too."""
    names = np.unique(group)
    found = np.full(len(train), np.nan)
    for fold in range(min(FOLDS, len(names))):
        own = np.isin(group, names[fold::FOLDS])
        if (~own).any():
            found[own] = _Axes(train[~own], count).distance(train[own])
    return found


def _of_levels(reference: Side, new: Side) -> Iterator[Statistic]:
    for name, values in reference.levels.items():
        if name in new.levels:
            yield Statistic("arc seconds" if name == "arc_s" else f"{name} level", "series", np.concatenate([values, new.levels[name]]))


def _of_facts(reference: Side, new: Side, settings: list[str]) -> Iterator[Statistic]:
    rows = [*reference.facts, *new.facts]
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        words = sorted({value for value in values if isinstance(value, str)})
        if not words:
            yield Statistic(name, "facts", np.array([np.nan if value is None else float(value) for value in values]))
        elif name in settings:
            for word in words if len(words) > 2 else words[:1]:  # of two the other says the same
                yield Statistic(
                    f"{name} = {word}", "facts", np.array([np.nan if value is None else float(value == word) for value in values])
                )
