"""Which anomalies are found, and which normal steps are mistaken for one: metrics per kind of region and per kind of step.

Three kinds of steps: an anomaly; a *disturbing* normal step, at most `reach` steps after an anomaly, so that a window ending there still holds some of
it; a *pure* normal step, which is any other. Values are means over training seeds; where some seeds have none, `over` says how many speak.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.datasets.recordings import Region
from stages.metrics.events import Lengths, Runs, first_alarm, flagged_within, segment_bounds, segment_ends
from stages.metrics.inputs import Flags, Floats

Cell = dict[str, Any]  # {"value", "low", "high"}, {"value"} where no interval is known, {"value": None, "reason"} where there is none


class Kinds(NamedTuple):
    """Which steps are of which kind, (T,) each; every step is of one."""

    pure: Flags
    disturbing: Flags
    anomaly: Flags


class Seen(NamedTuple):
    """One training seed's view of the test steps."""

    score: Floats  # (T,)
    alarm: Flags | None  # (T,) at its deployable threshold; None where there is no threshold


def step_kinds(anomalous: Flags, reach: int, lengths: Lengths = None, disturbing: Flags | None = None) -> Kinds:
    """anomalous: (T,). disturbing: (T,), where the data set says itself which steps those are; only normal ones count."""
    if disturbing is None:
        step = np.arange(len(anomalous))
        last = np.maximum.accumulate(np.where(anomalous, step, -1))
        first = segment_bounds(step, segment_ends(len(anomalous), lengths))[0]
        disturbing = (last >= first) & (step - last <= reach)
    disturbing = disturbing & ~anomalous
    return Kinds(~anomalous & ~disturbing, disturbing, anomalous)


def type_table(seeds: Sequence[Seen], regions: Sequence[Region], kinds: Kinds) -> dict[str, dict[str, Any]]:
    """Per kind of region, in alphabetical order: how many there are, and the cells of how they are seen."""
    names = sorted({region.kind for region in regions})
    return {
        name: _type_row(seeds, _places([region for region in regions if region.kind == name], len(kinds.pure)), kinds) for name in names
    }


def kind_table(seeds: Sequence[Seen], kinds: Kinds) -> dict[str, dict[str, Any]]:
    """Pure and disturbing normal steps: how many, ROC AUC of anomalies against them, and how often they raise an alarm."""
    rows = {"pure_normal": kinds.pure, "disturbing_normal": kinds.disturbing}
    return {
        name: {
            "steps": int(steps.sum()),
            "roc_auc": mean_cell(
                [outscores(seen.score[kinds.anomaly], seen.score[steps]) for seen in seeds], "no anomalous step, or none of this kind"
            ),
            "false_alarm_rate": _alarmed(seeds, lambda alarm, steps=steps: _share(alarm[steps]), "no step of this kind"),
        }
        for name, steps in rows.items()
    }


def outscores(anomalous: Floats, normal: Floats) -> float:
    """ROC AUC of (N,) against (M,): how often an anomalous step outscores a normal one, ties one half; NaN where either is empty."""
    if not len(anomalous) or not len(normal):
        return float("nan")
    below = sum(np.searchsorted(np.sort(normal), anomalous, side=side).mean() for side in ("left", "right"))
    return float(below / 2 / len(normal))


def mean_cell(values: Sequence[float], reason: str) -> Cell:
    """Mean over the seeds that have a value (are not NaN), or the reason why none has."""
    have = [value for value in values if np.isfinite(value)]
    if not have:
        return {"value": None, "reason": reason}
    return {"value": float(np.mean(have))} | ({"over": f"{len(have)} of {len(values)} seeds"} if len(have) < len(values) else {})


def _places(regions: Sequence[Region], size: int) -> Runs:
    """In the order of their start. Raises ValueError where one lies outside the test steps."""
    for region in regions:
        if not 0 <= region.start < region.stop <= size:
            raise ValueError(
                f"region {region.kind!r} must lie within the {size} test steps, got {region.start}..{region.stop}; place it in them first"
            )
    start, stop = (np.array([getattr(region, side) for region in regions], dtype=np.int64) for side in ("start", "stop"))
    order = np.argsort(start, kind="stable")
    return Runs(start[order], stop[order])


def _type_row(seeds: Sequence[Seen], events: Runs, kinds: Kinds) -> dict[str, Any]:
    steps = np.zeros(len(kinds.pure), dtype=bool)
    for start, stop in zip(*events, strict=True):
        steps[start:stop] = True
    return {
        "events": events.number,
        "event_recall": _alarmed(seeds, lambda alarm: _share(flagged_within(alarm, events) > 0), "no event"),
        "point_recall": _alarmed(seeds, lambda alarm: _share(alarm[steps]), "no step"),
        "delay": _alarmed(seeds, lambda alarm: _median(first_alarm(alarm, events)), "no event was found"),
        "mean_score": mean_cell([seen.score[steps].mean() for seen in seeds], "no step"),
        "roc_auc_pure": mean_cell([outscores(seen.score[steps], seen.score[kinds.pure]) for seen in seeds], "no pure normal step"),
        "roc_auc_disturbing": mean_cell(
            [outscores(seen.score[steps], seen.score[kinds.disturbing]) for seen in seeds], "no disturbing normal step"
        ),
    }


def _alarmed(seeds: Sequence[Seen], measure: Callable[[Flags], float], reason: str) -> Cell:
    values = [measure(seen.alarm) if seen.alarm is not None else float("nan") for seen in seeds]
    return mean_cell(values, reason if any(seen.alarm is not None for seen in seeds) else "no deployable threshold")


def _share(flags: Flags) -> float:
    return float(flags.mean()) if len(flags) else float("nan")


def _median(waited: Floats) -> float:
    found = waited[np.isfinite(waited)]
    return float(np.median(found)) if len(found) else float("nan")


def attribution_hits(shares: Floats, regions: Sequence[Region], variables: Sequence[str]) -> Cell:
    """Whether the right variables are blamed: of the k that show an anomaly, the share among the k that add most to its score; a mean over regions.

    shares: (T, V) >= 0; regions: placed in those T steps. `chance` is what blaming at random gives.
    """
    found, luck = [], []
    for region in regions:
        true = [variables.index(name) for name in region.variables]
        if true:
            blamed = np.argsort(-shares[region.start : region.stop].sum(0), kind="stable")[: len(true)]
            found.append(len(set(true) & set(blamed.tolist())) / len(true))
            luck.append(len(true) / len(variables))
    if not found:
        return {"value": None, "reason": "the data set does not say which variables show an anomaly"}
    return {"value": float(np.mean(found)), "chance": float(np.mean(luck)), "events": len(found)}
