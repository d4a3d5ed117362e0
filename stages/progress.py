"""Long work says how far it is: a bar with the time left on a terminal, elsewhere a plain line every tenth of the way, once
the work has lasted a few seconds. Always on stderr.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]
PLAIN_AFTER_S = 5.0  # work that is shorter leaves no line in a log


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0, quiet: bool = False) -> Iterator[Advance]:
    """Yields a function to call with the number of units just finished; `done` of `total` were finished before."""
    if quiet:
        yield lambda count: None
        return
    if not sys.stderr.isatty():
        yield _plain(what, total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def _plain(what: str, total: int, done: int) -> Advance:
    started, before, said = time.monotonic(), done, done * 10 // max(total, 1)

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        tenth = done * 10 // max(total, 1)
        passed = time.monotonic() - started
        if tenth > said and passed >= PLAIN_AFTER_S:
            said = tenth
            left = passed / max(done - before, 1) * (total - done)
            print(f"{what}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)

    return advance
