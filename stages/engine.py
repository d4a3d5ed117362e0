"""Fan-out inside a stage: a function is mapped over keyed units, here or in a pool of processes, with the same result bit for bit.

An engine is a generator that takes (function, units, ...) and gives one Outcome per unit, in any order: `_in_process` and `_in_pool`
below; Ray tasks would be a third, and `run` is the one place that chooses. A unit is pure and idempotent: it reads its arguments and
files, and may run twice. The pool forks workers from a server that has imported `preload` once (spawn where there is no forkserver) and
hands each one unit at a time: no more units are in flight than there are processes, and it is known which unit a dead worker had.
"""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from stages import errors

TRIES = 2  # how often one unit may take its worker down with it
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Unit(NamedTuple):
    """One call. The key names it in the log, e.g. "bottle/seed0"; the arguments are plain values that can be pickled."""

    key: str
    arguments: dict[str, Any]


class Outcome(NamedTuple):
    """What one unit came to: its value, or the text that says how it failed (one line that a user can act on, a traceback, how its worker died)."""

    key: str
    value: Any | None
    error: str | None
    mendable: bool = False  # the error is the user's to mend


def run(
    function: Callable[..., Any],
    units: Sequence[Unit],
    *,
    processes: int = 1,
    threads: int = 1,
    preload: Sequence[str] = (),
    done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """`function(**unit.arguments)` for every unit, as outcomes in the order of `units`.

    function: at module level, so that a child can import it. threads: of each process. preload: modules that workers inherit imported.
    done: called here with each outcome as it comes, in the order of completion.
    A unit that raises, or that twice takes its worker down, is an outcome with an error; the others finish. With one process or one unit
    nothing leaves this process. Raises ValueError for keys given twice; whatever `done` raises stops the run.
    """
    keys = [unit.key for unit in units]
    if len(set(keys)) < len(keys):
        twice = sorted(key for key, count in collections.Counter(keys).items() if count > 1)
        raise ValueError(f"unit keys must be unique, got more than one of {', '.join(twice)}; add what tells them apart to the key")
    workers = min(processes, len(units))
    engine = _in_pool(function, units, workers, threads, preload) if workers > 1 else _in_process(function, units, threads)
    outcomes = {}
    with contextlib.closing(engine):
        for outcome in engine:
            outcomes[outcome.key] = outcome
            if done:
                done(outcome)
    return [outcomes[key] for key in keys]


def exit_code(label: str, outcomes: Sequence[Outcome]) -> int:
    """0, 1 where all that failed can be mended by the user, else 2. Failures are printed to stderr, the same mistake in many units once."""
    failed = [outcome for outcome in outcomes if outcome.error]
    for error in dict.fromkeys(outcome.error for outcome in failed if outcome.mendable):
        print(f"{label}: {error}", file=sys.stderr)
    for outcome in failed:
        if not outcome.mendable:
            print(f"{label} {outcome.key} crashed:\n{outcome.error}", file=sys.stderr)
    return max([errors.MENDABLE if outcome.mendable else errors.DEFECT for outcome in failed], default=errors.OK)


def _in_process(function: Callable[..., Any], units: Sequence[Unit], threads: int) -> Iterator[Outcome]:
    keep_freed_memory()
    for unit in units:
        with thread_limit(threads):
            outcome = _call(function, unit)
        yield outcome


def _in_pool(
    function: Callable[..., Any], units: Sequence[Unit], processes: int, threads: int, preload: Sequence[str]
) -> Iterator[Outcome]:
    context = _context(preload)
    waiting, deaths, workers = collections.deque(units), collections.Counter(), []
    try:
        while waiting or any(worker.unit for worker in workers):
            while waiting and sum(worker.unit is not None for worker in workers) < processes:
                _idle(workers, context, threads).give(function, waiting.popleft())
            for worker in _ready(workers):
                unit, outcome = worker.unit, worker.take()
                if outcome is None:
                    workers.remove(worker)
                    deaths[unit.key] += 1
                    if deaths[unit.key] < TRIES:
                        waiting.append(unit)  # at the end: where memory ran out there may be more of it then
                        continue
                    outcome = Outcome(unit.key, None, _obituary(unit, worker))
                yield outcome
    finally:
        for worker in workers:
            worker.end()


def _context(preload: Sequence[str]) -> multiprocessing.context.BaseContext:
    """The fork server is one per process: what the first pool preloads is what it keeps; later pools import the rest in their workers."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *preload])
    return context


def _idle(workers: list[_Worker], context: multiprocessing.context.BaseContext, threads: int) -> _Worker:
    """A living worker without a unit: one of `workers`, or a new one that joins them."""
    for worker in [worker for worker in workers if worker.unit is None]:
        if worker.process.is_alive():
            return worker
        workers.remove(worker)
        worker.end()
    workers.append(_start(context, threads))
    return workers[-1]


def _start(context: multiprocessing.context.BaseContext, threads: int) -> _Worker:
    for pause in (0.1, 0.5, 2.0):
        try:
            return _Worker(context, threads)
        except (OSError, EOFError):  # the fork server was killed and that was not known yet: the next try starts another
            time.sleep(pause)
    return _Worker(context, threads)


class _Worker:
    """One child process, our end of the pipe to it, and the unit that it has in hand."""

    def __init__(self, context: multiprocessing.context.BaseContext, threads: int) -> None:
        self.unit: Unit | None = None
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads))
        with _environment(threads):  # the fork server and spawned children read it before they import anything
            self.process.start()
        theirs.close()  # the pipe ends when the child does

    def give(self, function: Callable[..., Any], unit: Unit) -> None:
        self.unit = unit
        with contextlib.suppress(ConnectionError):  # it died while it was idle: `take` will say so
            self.connection.send((function, unit))

    def take(self) -> Outcome | None:
        """The outcome of the unit in hand; None if the worker died, and then it is gone for good."""
        try:
            outcome = self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            outcome = None
        if outcome is None:
            self.end()
        self.unit = None
        return outcome

    def end(self) -> None:
        """An idle worker leaves when its pipe closes; a busy one is killed, as its unit can be run again."""
        self.connection.close()
        if not self.unit:
            self.process.join(timeout=5)
        self.process.kill()
        self.process.join()


def _ready(workers: list[_Worker]) -> list[_Worker]:
    """The busy workers that have an outcome or are dead; waits for the first. Both, as a child of the child may hold the pipe open."""
    busy = [worker for worker in workers if worker.unit]
    awake = multiprocessing.connection.wait([handle for worker in busy for handle in (worker.connection, worker.process.sentinel)])
    return [worker for worker in busy if worker.connection in awake or worker.process.sentinel in awake]


def _obituary(unit: Unit, worker: _Worker) -> str:
    code = worker.process.exitcode
    how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"gone with exit code {code}"
    hint = " If that was for want of memory, lower compute.processes." if code == -9 else " What it wrote last is in the log above."
    return f"the worker of unit {unit.key!r} was {how}; it is worker number {TRIES} that died of this unit.{hint}"


def _serve(connection: multiprocessing.connection.Connection, threads: int) -> None:
    """The life of a worker: units in, outcomes out, until the pipe closes or the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides and ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()
    keep_freed_memory()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True, write_through=False)  # progress comes in time and in whole lines
    with thread_limit(threads), contextlib.suppress(EOFError, ConnectionError):
        while True:
            _answer(connection)


def _answer(connection: multiprocessing.connection.Connection) -> None:
    function, unit = connection.recv()
    outcome = _call(function, unit)
    try:
        connection.send(outcome)
    except ConnectionError:
        raise
    except Exception:  # the value cannot be pickled: say so rather than die of it
        connection.send(Outcome(unit.key, None, traceback.format_exc()))


def _die_with_parent() -> None:
    """A worker whose parent was killed would go on and overwrite what the next run has written."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable[..., Any], unit: Unit) -> Outcome:
    try:
        return Outcome(unit.key, function(**unit.arguments), None)
    except errors.MENDED_BY_USERS as error:
        return Outcome(unit.key, None, errors.told(error), mendable=True)
    except (Exception, SystemExit):  # a unit that exits must not take the others with it
        return Outcome(unit.key, None, traceback.format_exc())


def keep_freed_memory() -> None:
    """Makes drawing pictures a third and training a small network a fifth faster with glibc, and changes nothing elsewhere.

    glibc hands arrays of a megabyte back to the system at once, and each new one costs its page faults again. Freeing one block of just
    under 32 MiB raises the size from which it does so (mallopt(3), M_MMAP_THRESHOLD, "dynamic").
    """
    bytearray(31 << 20)


@contextlib.contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """Within the block numerical libraries use this many threads, whether they were imported before it or will be in it."""
    import threadpoolctl

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    with _environment(threads), threadpoolctl.threadpool_limits(threads):
        if torch:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


@contextlib.contextmanager
def _environment(threads: int) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
