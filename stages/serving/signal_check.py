"""`assay data check DIR --signals`: what a folder of signals holds, what is wrong with it, and what will be done about it. Changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from stages.datasets import signal_adapters
from stages.datasets.samples import Problem
from stages.datasets.signal_checks import check


class Found(NamedTuple):
    """One recording."""

    recording: str  # "<category>/<name>"
    steps: int
    variables: tuple[str, ...]
    step_s: float | None  # median interval; None without a column of times
    stretches: int  # unbroken ones
    anomalous: int | None  # labelled steps; None where nobody labelled
    missing: int  # values
    problems: list[Problem]


def examine(source: Path, adapter: str | None = None) -> list[Found]:
    """Every recording of a source in order. adapter: any folder of tables by default. Raises DataError for the first that cannot be used."""
    return [_found(recording) for recording in signal_adapters.read(adapter or "signal_folder", source, {})]


def _found(recording: Any) -> Found:
    checked = check(recording)
    kept = checked.recording
    return Found(
        f"{kept.category}/{kept.name}",
        len(kept.values),
        kept.variables,
        checked.median_step_s,
        len(checked.breaks) + 1,
        None if kept.label is None else int((kept.label == 1).sum()),
        checked.missing,
        checked.problems,
    )


def render(found: list[Found]) -> str:
    """A line for each recording, then each problem with what mends it."""
    lines = []
    for one in found:
        labels = "no labels" if one.anomalous is None else f"{one.anomalous} anomalous"
        interval = "no times" if one.step_s is None else f"every {one.step_s:g} s"
        more = [f"{one.stretches} stretches"] if one.stretches > 1 else []
        more += [f"{one.missing} values missing"] if one.missing else []
        lines.append(f"{one.recording}: {', '.join([f'{one.steps} steps of {len(one.variables)} variables', interval, labels, *more])}")
    lines += [f"{problem.severity} {problem.code} {problem.path}: {problem.what}. {problem.fix}" for one in found for problem in one.problems]
    unlabelled = [one.recording for one in found if one.anomalous is None]
    lines += ["without labels detectors can be fitted and followed, but not judged"] if unlabelled and len(unlabelled) == len(found) else []
    return "\n".join(lines)
