"""Running the verbs of the pipeline as DVC does: `python -m stages.<verb>` in the project's folder, one process each.

A process of its own leaves the caller's threads, working folder and `__main__` alone, and the code that runs is the project's own where it has any.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import stages
from stages.params import PATH, Params, ParamsError, RecordTask, Series, load, nearest

OF_RUNS, OF_DATASETS = ("train", "evaluate"), ("ensemble", "bench")
OF_SIGNALS = ("prepare", "manifest", "train", "evaluate", "bench")  # verbs that signals have too, each as stages/<verb>_series.py
OF_RECORDS = ("prepare", "extract", "manifest", "train", "evaluate", "bench")  # and records, as stages/<verb>_records.py


def run(
    verb: str, *names: str, project: Path = Path(), out: TextIO | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """The exit code of one verb. What it prints is passed on line by line to `out` (stdout by default); its errors go to stderr.

    environment: variables that it sees beside ours.
    """
    settings = load(project / PATH)
    for task, suffix in _tasks(settings, verb):
        if names[0] in (*task.runs, *task.datasets):
            entry = task.runs.get(names[0])
            verb = f"{verb}{suffix}"
            break
    else:
        entry = settings.entry("runs", names[0]) if verb in OF_RUNS else None
    if entry:
        _remove_outs(project / ("models" if verb.startswith("train") else "metrics") / entry.dataset, entry.model)
    installed = str(Path(stages.__file__).parent.parent)
    paths = [os.environ["PYTHONPATH"], installed] if os.environ.get("PYTHONPATH") else [installed]
    command = [sys.executable, "-u", "-m", f"stages.{verb}", *names]
    seen = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | dict(environment or {})
    with subprocess.Popen(command, cwd=project, env=seen, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        for line in process.stdout or ():
            print(line, end="", file=out or sys.stdout, flush=True)
    return process.returncode


def _tasks(params: Params, verb: str) -> list[tuple[Series | RecordTask, str]]:
    """The tasks beside images that have this verb, each with what its modules end in."""
    tasks = ((params.series, "_series", OF_SIGNALS), (params.records, "_records", OF_RECORDS))
    return [(task, suffix) for task, suffix, verbs in tasks if task and verb in verbs]


def _remove_outs(root: Path, model: str) -> None:
    """As DVC does before it runs a stage: what an earlier run left (a refusal, a category that is gone) must not pass for this one's."""
    shutil.rmtree(root / model, ignore_errors=True)
    (root / f"{model}.json").unlink(missing_ok=True)


def jobs(params: Params, verb: str, names: Sequence[str], everything: bool) -> list[str]:
    """What to give the verb, once each: runs for train and evaluate (of a data set: all its runs), data sets for ensemble and bench.

    Raises ParamsError for an unknown name, or where nothing is named.
    """
    tasks = [params, *(task for task, _ in _tasks(params, verb))]
    runs = {name: run.dataset for task in tasks for name, run in task.runs.items()} if verb in OF_RUNS else {}
    datasets = [name for task in tasks for name in task.datasets]
    known = [*runs, *datasets]
    if everything:
        return list(runs or datasets)
    if not names:
        raise ParamsError(f"name what to {verb}, or say --all. Known: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ParamsError(f"nothing to {verb} is called {name!r}{nearest(name, known)}")
    found = [job for name in names for job in ([name] if name in runs or not runs else _of_dataset(runs, name))]
    return list(dict.fromkeys(found))


def _of_dataset(runs: Mapping[str, str], dataset: str) -> list[str]:
    return [run for run, of in runs.items() if of == dataset]
