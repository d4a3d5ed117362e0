"""`assay predict stream.csv --follow`: a verdict for each row of a CSV file as rows arrive, and a state file from which a restart goes on.

Scores are those of the stored series (see timeseries/stream.py), as many rows late as the detector looks ahead. The state is written whole or not at
all, whenever the file has no more rows for now, every `save_every` rows and at the end. So a restart repeats nothing; after a kill without notice, or
where whoever reads the verdicts goes away, it repeats those since the last save, and none is ever skipped.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import errors, io
from stages.serving.csv_tail import CsvTail, Replaced, Row
from stages.serving.series_model import SeriesModel
from stages.timeseries.detector import SeriesDetector
from stages.timeseries.stream import StepScore, Stream

SHOWN = 3  # variables named in a line


class StepVerdict(NamedTuple):
    step: int  # the row of the file, counted from 0
    time: str | None  # as the file has it
    score: float
    threshold: float | None
    alarm: bool | None  # score > threshold; None where there is no threshold
    added: dict[str, float]  # shares of the variables that add most to the score, largest first; empty where the model cannot say
    note: str | None  # what is wrong with the row


class Follower:
    """A stream, the file that feeds it and the rows that wait for their score."""

    def __init__(
        self,
        path: Path,
        detector: SeriesDetector,
        variables: Sequence[str],
        *,
        model: str,
        threshold: float | None,
        state: Path,
        every: int = 1,
    ) -> None:
        """variables: in the order of training. model: what tells this model from others (a hash), so that no other goes on from its state.

        Raises UserError where the state file is of another model.
        """
        self.path, self.detector, self.variables, self.every = path, detector, tuple(variables), every
        self.model, self.threshold, self.state = model, threshold, state
        self._start_anew()
        if state.is_file():
            self._restore()

    def follow(
        self, stop: threading.Event, *, once: bool = False, save_every: int = 100, poll_s: float = 0.2, say: Callable[[str], None] = print
    ) -> Iterator[StepVerdict]:
        """A verdict for each row, in order, until `stop` is set; `stop` is looked at between rows, so that none is lost.

        once: stop at the end of the file, and judge the rows that still wait for others by what there is. say: is told what happens to the file.
        """
        try:
            for count, scored in enumerate(self._arriving(stop, once, poll_s, say), 1):
                yield from self._judged(scored)
                if count % save_every == 0:
                    self.save()
        except errors.MENDED_BY_USERS:
            self.save()
            raise
        self.save()  # not where whoever asked has gone in the middle of a row: it comes again

    def save(self) -> None:
        """Write the state, if there is something new to write."""
        about = {"offset": self.tail.offset, "head": self.tail.head.hex(), "waiting": self.waiting, "model": self.model}
        known = (self.tail.offset, self.stream.scored)
        if self.saved != known:
            io.write_model(self.state, self.stream.state(), about)
            self.saved = known

    def _start_anew(self) -> None:
        self.stream = Stream(self.detector, every=self.every, explain=True)
        self.tail = CsvTail(self.path, self.variables)
        self.waiting: list[tuple[str | None, str | None]] = []  # time and note of the rows that have no score yet
        self.saved: tuple[int, int] | None = None
        self.absent = False

    def _restore(self) -> None:
        tensors, about = _read_state(self.state)
        if about["model"] != self.model:
            raise errors.UserError(
                f"{self.state} is the state of another model. Remove it to start at the first row, or name another with --state"
            )
        self.stream.restore(tensors)
        self.tail = CsvTail(self.path, self.variables, about["offset"], bytes.fromhex(about["head"]))
        self.waiting = [tuple(row) for row in about["waiting"]]
        self.saved = (self.tail.offset, self.stream.scored)

    def _arriving(self, stop: threading.Event, once: bool, poll_s: float, say: Callable[[str], None]) -> Iterator[list[StepScore]]:
        """The scores that each row brings; while there are no rows, the state is saved."""
        while not stop.is_set():
            try:
                for row in self._rows(once, say):
                    self.waiting.append((row.time, row.note))
                    yield self.stream.push(row.values)
                    if stop.is_set():
                        return
            except Replaced as error:
                say(f"{error}. Its rows are a new series, from step 0")
                yield self.stream.flush()
                self._start_anew()
                continue
            if once:
                yield self.stream.flush()
                return
            self.save()
            stop.wait(poll_s)

    def _rows(self, once: bool, say: Callable[[str], None]) -> Iterator[Row]:
        try:
            yield from self.tail.rows(last_line_ends=once)
        except FileNotFoundError:
            if once:
                raise errors.Missing(f"{self.path} is not here. Without --once, it would be waited for") from None
            if not self.absent:
                say(f"{self.path} is not here; waiting for it")
            self.absent = True

    def _judged(self, scored: list[StepScore]) -> Iterator[StepVerdict]:
        for one in scored:
            time, note = self.waiting.pop(0)
            alarm = None if self.threshold is None else one.score > self.threshold
            yield StepVerdict(one.step, time, one.score, self.threshold, alarm, self._largest(one), note)

    def _largest(self, scored: StepScore) -> dict[str, float]:
        if scored.added is None or not (total := float(scored.added.sum())) > 0:
            return {}
        values, places = scored.added.topk(min(SHOWN, len(self.variables)))
        return {self.variables[place]: value / total for value, place in zip(values.tolist(), places.tolist())}


def render(verdict: StepVerdict) -> str:
    """One line for a terminal."""
    parts = [f"step {verdict.step}", *([verdict.time] if verdict.time else []), f"score {verdict.score:.4g}"]
    if verdict.threshold is not None:
        parts.append(f"threshold {verdict.threshold:.4g}")
        parts.append("ALARM" if verdict.alarm else "ok")
    if verdict.added:
        parts.append(", ".join(f"{name} {100 * share:.0f} %" for name, share in verdict.added.items()))
    return "  ".join(parts) + (f"  ({verdict.note})" if verdict.note else "")


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["assay"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise errors.UserError(f"{path} is no state of a stream ({error}). Remove it to start at the first row") from error


def head(model: SeriesModel, limit: float | None) -> str:
    """Which model speaks, and at which threshold."""
    at = "no threshold" if limit is None else f"threshold {limit:.4g}"
    return f"{model.name} on {model.dataset} / {model.category}; {at}"


def open_follower(path: Path, model: SeriesModel, limit: float | None, state: Path | None = None) -> Follower:
    """state: the file to go on from and to write; beside the CSV file by default."""
    state = state or path.with_name(f"{path.name}.follow.safetensors")
    return Follower(path, model.detector(), model.variables(), model=model.fingerprint, threshold=limit, state=state)


@contextlib.contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """An event that Ctrl-C or a request to end sets, so that the row at hand is finished; a second one ends at once."""
    stop = threading.Event()
    before = {}

    def ask(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[number])

    try:
        before |= {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
