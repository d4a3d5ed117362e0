"""`assay tune MODEL`: search the parameters of one model on held-out images, and say whether what was found is better or only luck.

Test images are never read: what is chosen here can be judged on them afterwards. Nothing is changed unless it is asked for.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import detectors, io, params
from stages.params import ModelGroup, Params, ParamsError, nearest
from stages.serving.tuning import takeover
from stages.serving.tuning.decision import FEWEST, Decision, decide
from stages.serving.tuning.search import Search, earlier, go_on, search_of
from stages.serving.tuning.space import as_json, read_space, space_of
from stages.serving.tuning.task import task_of
from stages.serving.tuning.trials import Trial, ranked

SHOWN = 5  # trials in the table


class Tuned(NamedTuple):
    search: Search
    trials: list[Trial]
    continued: int  # of them, from earlier calls
    decision: Decision
    command: str | None  # that takes the best over; None where it is what is in use
    others: list[str]  # data sets that the same entry is also run on
    applied: bool


def tune(
    model: str,
    dataset: str | None = None,
    categories: Sequence[str] = (),
    *,
    budget_s: float,
    trials: int | None = None,
    seed: int = 0,
    space: Path | None = None,
    restart: bool = False,
    apply: bool = False,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Search until the budget, which planting and encoding count into, or the number of trials is used up.

    say: is told what begins. apply: write the best into params.yaml where it is better. Raises ParamsError for what cannot be tuned.
    """
    started, settings = clock(), params.load()
    if budget_s <= 0 or (trials is not None and trials < 2):
        raise ParamsError(f"a search needs a budget above 0 and at least 2 trials, got {budget_s / 60:g} minutes and {trials} trials")
    name = run_of(settings, model, dataset)
    run, entry = settings.runs[name], settings.rows(model)[model]
    factory = detectors.load(entry.detector)
    if factory.transductive:
        raise ParamsError(f"{model} is transductive: its scores hold only within one set of images, so held-out images cannot choose its parameters")
    now = as_json(params.options(factory, entry.options, at=("models", model)))
    task = task_of(settings, name, list(categories), seed)
    stored = io.read_json(Path("features", run.dataset, run.encoder, "encoder.json"))["layers"]
    found = read_space(space, list(now)) if space else space_of(factory, now, list(stored))
    if not found:
        raise ParamsError(f"{model} ({entry.detector}) has no option to search; name some with --space. It has {', '.join(now) or 'none'}")
    search = search_of(settings, task, entry.detector, now, found, seed)
    if restart:
        shutil.rmtree(search.folder, ignore_errors=True)
    before = earlier(search)
    say(head(search, len(before)))
    done = go_on(settings, search, before, budget_s - (clock() - started), trials, clock)
    decision = decide(task, done, settings.protocol.bootstrap_resamples, seed)
    applied = apply and decision.better
    command = takeover.command(model, decision.best.changes) if decision.best.changes else None
    if applied:
        takeover.apply(model, decision.best.changes)
    others = sorted({other.dataset for other in settings.runs.values() if other.model == model} - {run.dataset})
    return Tuned(search, done, len(before), decision, command, others, applied)


def run_of(settings: Params, model: str, dataset: str | None) -> str:
    """The name of the run of a model on a data set, which must be named where there are several."""
    if isinstance(settings.entry("models", model), ModelGroup):
        raise ParamsError(f"{model} is a group of models, not one with parameters to search")
    runs = {run.dataset: name for name, run in settings.runs.items() if run.model == model}
    if not runs:
        raise ParamsError(f"{params.PATH}: no run uses the model {model!r}. Add one with `assay models add` or `assay add`")
    if dataset is None and len(runs) > 1:
        raise ParamsError(f"{model} is run on {', '.join(runs)}: say which with --dataset")
    chosen = dataset or next(iter(runs))
    if chosen not in runs:
        raise ParamsError(f"no run of {model} on a data set {chosen!r}{nearest(chosen, runs)}")
    return runs[chosen]


def head(search: Search, before: int) -> str:
    """What is searched, and by what it is judged."""
    task, run = search.task, search.task.run
    good = sum(row["label"] == 0 for row in task.val)
    bad = f"{len(task.copies)} copies of them with planted defects" if task.planted else f"{len(task.val) - good} bad ones"
    fixed = [name for name in search.now if name not in search.space]
    lines = [
        f"{run.model} on {run.dataset}: {task.objective}",
        f"judged by {good} held-out good images and {bad} ({', '.join(task.categories)}); no test image is read",
        f"searched: {', '.join(search.space)}",
    ]
    lines += [f"left as it is: {', '.join(fixed)} (--space searches what you name)"] if fixed else []
    return "\n".join(lines + ([f"continuing after {before} trials"] if before else []))


def render(tuned: Tuned) -> str:
    """The best trials, what is in use now, the verdict, and what to do with it."""
    order, now = ranked(tuned.trials), tuned.trials[0]
    shown = order[:SHOWN] + ([now] if now not in order[:SHOWN] else [])
    refused = [trial for trial in tuned.trials if trial.refused]
    rows = [("place", "trial", "AUROC", "margin", "seconds", "what differs from params.yaml")]
    rows += [
        (str(order.index(one) + 1), str(one.number), f"{one.auroc:.4f}", f"{one.margin:.2f}", f"{one.seconds:.1f}", _differences(one))
        for one in shown
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    table = ["  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows]
    counted = f"{len(tuned.trials)} trials" + (f", {len(refused)} of them refused, e.g. {refused[-1].refused}" if refused else "")
    return "\n".join(["", counted, *table, "", verdict(tuned), *_next_steps(tuned)])


def verdict(tuned: Tuned) -> str:
    """One sentence on whether the best is better, two where the figures need a word."""
    decision, now = tuned.decision, tuned.trials[0]
    if not decision.best.changes:
        others = f"{decision.compared} other{'' if decision.compared == 1 else 's'}"
        return f"Nothing that was tried ({others}) is better than what you have (AUROC {now.auroc:.4f})."
    value, low, high = decision.difference
    if value == 0:
        why = "both find everything" if now.auroc == 1 else "both have the same AUROC"
        return f"No better than what you have: {why}; the wider margin of trial {decision.best.number} is a hint, no proof."
    against = "AUROC against planted defects" if tuned.search.task.planted else "AUROC"
    interval = f"{against} {value:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
    care = f"over held-out images, widened because it is the best of {decision.compared}"
    if not decision.enough:
        return (
            f"It cannot be told whether that is better: {decision.images} held-out good images are too few, {FEWEST} at least; {interval}."
        )
    return f"{'Better' if decision.better else 'No better'} than what you have: {interval} ({care})."


def as_dict(tuned: Tuned) -> dict[str, Any]:
    """For machines: everything but the single scores, which lie in the file named under `trials_file`."""
    decision, task = tuned.decision, tuned.search.task
    trials = [{name: value for name, value in trial._asdict().items() if name != "scores"} for trial in tuned.trials]
    return {
        "dataset": task.run.dataset, "model": task.run.model, "categories": task.categories, "seed": tuned.search.seed,
        "objective": task.objective, "planted": task.planted is not None, "continued_after": tuned.continued,
        "now": trials[0], "best": trials[decision.best.number], "difference": decision.difference._asdict(), "compared": decision.compared,
        "better": decision.better, "verdict": verdict(tuned), "command": tuned.command, "applied": tuned.applied,
        "also_run_on": tuned.others, "trials": trials, "trials_file": tuned.search.file.as_posix(),
    }  # fmt: skip


def _differences(trial: Trial) -> str:
    texts = [f"{name}={'+'.join(value) if isinstance(value, list) else value}" for name, value in trial.changes.items()]
    return " ".join(texts) or "(as it is now)"


def _next_steps(tuned: Tuned) -> list[str]:
    model = tuned.search.task.run.model
    if not tuned.command:
        return []
    lines = [
        "take it over, judged on the test images by the same stages as before:" if tuned.decision.better else "to look at it all the same:"
    ]
    lines += [f"  {tuned.command}"]
    if tuned.applied:
        lines = [f"written to params.yaml (models.{model}); next: dvc repro"]
    elif tuned.decision.better:
        lines += ["or write it to params.yaml: the same `assay tune` with --apply"]
    return lines + ([f"models.{model} is also run on {', '.join(tuned.others)}: it changes there too"] if tuned.others else [])
