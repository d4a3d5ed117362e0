"""The search: every combination fitted quickly, those that are chosen by the validation block fitted in full, the best of them kept.

Combinations are taken in a random order that the seed fixes, so that whatever a budget allows is a fair sample of the grid. What is finished is written
down at once and is never done again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import engine
from stages.errors import UserError
from stages.progress import progress
from stages.seed import numpy_generator
from stages.timeseries.search.grid import searched
from stages.timeseries.search.judging import judge
from stages.timeseries.search.ledger import Ledger
from stages.timeseries.search.plan import Plan
from stages.timeseries.search.selection import QUALITY, Selection, select

Line = dict[str, Any]  # of a ledger: number, seconds, and figures and history, or the reason why it was refused
Judge = Callable[[Plan, str, int], Line]


class Limits(NamedTuple):
    """How much is done and by how many; nothing here changes a figure."""

    workers: int = 1
    threads: int = 1  # of each worker
    budget_s: float | None = None  # of each stage: no combination begins after it
    combinations: int | None = None  # of the quick stage in all, earlier ones included
    quick_only: bool = False
    rule: str = "diverse"
    keep: tuple[int, int] = (50, 70)


class Found(NamedTuple):
    """What came of a search; lines by number. best: its number, None where nothing could be fitted."""

    plan: Plan
    limits: Limits
    quick: list[Line]
    selection: Selection | None
    full: list[Line]

    @property
    def final(self) -> str:
        """The stage that the best comes from."""
        return "full" if any("figures" in line for line in self.full) else "quick"

    @property
    def best(self) -> Line:
        """Highest by validation in the last stage. Raises UserError where no combination could be fitted."""
        lines = judged(self.full) or judged(self.quick)
        if not lines:
            why = next((line["refused"] for line in self.quick), "the budget allowed none")
            raise UserError(f"no combination of the search could be fitted: {why}")
        return min(lines, key=lambda line: (-line["figures"][QUALITY], line["number"]))


def search(plan: Plan, folder: Path, limits: Limits, say: Callable[[str], None] = print) -> Found:
    """Go on with the search whose ledgers lie in `folder`, or begin it."""
    quick = run_stage(plan, "quick", [point.number for point in plan.points], folder, limits, say)
    if limits.quick_only or not judged(quick):
        return Found(plan, limits, quick, None, [])
    selection = select(table(plan, judged(quick)), searched(plan.grid, plan.regime), limits.rule, limits.keep)
    say(f"{len(selection.criterion)} of {len(quick)} combinations go on to the full stage")
    full = run_stage(plan, "full", list(selection.criterion), folder, limits._replace(combinations=None), say)
    return Found(plan, limits, quick, selection, full)


def run_stage(
    plan: Plan, stage: str, numbers: Iterable[int], folder: Path, limits: Limits, say: Callable[[str], None] = print, judge: Judge = judge
) -> list[Line]:
    """The lines of those of `numbers` that are finished, by number, after as many more of them as the limits allow.

    Exits with the code of the worst crash once the others are done.
    """
    ledger = Ledger(folder / f"{stage}.jsonl")
    if ledger.torn:
        say(f"{ledger.path}: the last line was half written and was cut off; its combination is done again")
    order = shuffled(plan, numbers)[: limits.combinations]
    waiting = [number for number in order if number not in ledger.finished]
    until = None if limits.budget_s is None else time.time() + limits.budget_s
    units = [
        engine.Unit(f"{stage}/{number:03d}", {"judge": judge, "plan": plan, "stage": stage, "number": number, "until": until})
        for number in waiting
    ]
    with progress(f"search, {stage} stage", len(order), len(order) - len(waiting)) as advance:

        def note(outcome: engine.Outcome) -> None:
            if outcome.value is not None:
                ledger.add(outcome.value)
                advance(1)

        outcomes = engine.run(
            begin, units, processes=limits.workers, threads=limits.threads, preload=("torch", judge.__module__), done=note
        )
    if code := engine.exit_code("search", outcomes):
        raise SystemExit(code)
    return [ledger.finished[number] for number in sorted(order) if number in ledger.finished]


def begin(judge: Judge, plan: Plan, stage: str, number: int, until: float | None) -> Line | None:
    """One unit; None where the time was up before it began."""
    return None if until is not None and time.time() >= until else judge(plan, stage, number)


def shuffled(plan: Plan, numbers: Iterable[int]) -> list[int]:
    """In the order of the search: that of the whole grid, so that a part of it keeps its order."""
    size = max((point.number for point in plan.points), default=-1) + 1
    place = numpy_generator(plan.seed, "search", "order").permutation(size)
    return sorted(numbers, key=lambda number: place[number])


def judged(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if "figures" in line]


def table(plan: Plan, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """A row for each line: its number, its levels, its figures."""
    levels = {point.number: point.levels for point in plan.points}
    return [{"number": line["number"], **levels[line["number"]], **line["figures"]} for line in lines]
