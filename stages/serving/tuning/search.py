"""The search itself: trial after trial until the time is used up, each written down before the next begins.

What is tried next depends on the seed and on what came before, never on the clock. So a search that was killed goes on where it was (it loses
the trial in work), and one of two sittings ends with the trials of one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from stages import io
from stages.errors import UserError
from stages.params import Params
from stages.progress import progress
from stages.serving.tuning.space import Options, Space, propose
from stages.serving.tuning.task import HOME, Task
from stages.serving.tuning.trials import Trial, best_of, code_of, run_trial

AT_LEAST = 2  # what is in use, and one other: without them there is nothing to compare


class Search(NamedTuple):
    """now: all options of the detector as params.yaml has them. folder: where its trials are written down."""

    task: Task
    detector: str
    now: Options
    space: Space
    seed: int
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "trials.json"


def search_of(params: Params, task: Task, detector: str, now: Options, space: Space, seed: int) -> Search:
    """The search with its folder, whose name changes with whatever changes a trial: code, data, features, options, space, seed."""
    run = task.run
    options = {name: [type(option).__name__, *option] for name, option in space.items()}
    made_of = {
        "code": [io.file_hash(path) for path in [*sorted(Path(__file__).parent.glob("*.py")), *code_of(params, task)]],
        "data": [task.train, task.val, task.copies],
        "features": io.read_json(Path("features", run.dataset, run.encoder, "encoder.json")),
        "model": [detector, now, params.seeds(run)[0], params.rows(run.model)[run.model].shots, params.auxiliary.model_dump()],
        "search": [options, seed],
    }
    return Search(task, detector, now, space, seed, HOME / f"{run.dataset}-{run.model}-{io.content_hash(made_of)[:16]}")


def earlier(search: Search) -> list[Trial]:
    """The trials that were finished before."""
    return [Trial(**trial) for trial in io.read_json(search.file)] if search.file.is_file() else []


def go_on(
    params: Params, search: Search, trials: list[Trial], budget_s: float, most: int | None, clock: Callable[[], float] = time.monotonic
) -> list[Trial]:
    """Earlier trials and new ones, in order. budget_s: of this call, from `clock` now. most: trials in all, None for as many as there is time for.

    A trial is begun where the median one would still end in time. Raises UserError where what is in use cannot be fitted.
    """
    trials, begun = list(trials), clock()
    total, done = (most, len(trials)) if most else (round(budget_s), 0)
    with progress(f"tune {search.task.run.model} on {search.task.run.dataset}" + ("" if most else " (seconds)"), total, done) as advance:
        shown = done
        while _may_begin(trials, clock() - begun, budget_s, most):
            changes = _next(search, trials)
            if changes is None:
                break
            started = clock()
            result = run_trial(params, search.task, search.detector, search.now | changes)
            trials.append(Trial(len(trials), changes, round(clock() - started, 2), **result))
            if trials[0].refused:
                raise UserError(
                    f"{search.task.run.model} cannot be fitted as it is now, so there is nothing to improve: {trials[0].refused}"
                )
            io.write_json(search.file, [trial._asdict() for trial in trials])
            reached = len(trials) if most else min(total, round(clock() - begun))
            advance(reached - shown)
            shown = reached
    return trials


def _next(search: Search, trials: list[Trial]) -> Options | None:
    if not trials:
        return {}
    tried: list[Any] = [trial.changes for trial in trials]
    return propose(search.space, search.now, best_of(trials).changes, tried, len(trials), search.seed)


def _may_begin(trials: list[Trial], passed_s: float, budget_s: float, most: int | None) -> bool:
    if most is not None and len(trials) >= most:
        return False
    if len(trials) < AT_LEAST:
        return True
    return passed_s + statistics.median(trial.seconds for trial in trials if trial.refused is None) <= budget_s
