"""One combination: fitted on the first block of a signal, judged on windows of the second and the third.

A window is anomalous if its last steps are. Patches of different length ask about different last steps, so windows are drawn for which all patch
sizes of the grid agree: an anomaly reaches into the last steps of the smallest patch, or has ended before the last steps of the largest. All
combinations of a grid are thereby judged on the same windows with the same labels. The model scores the last patch of a window, as in a stream.

L steps of a window, V variables, W windows.
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.recordings import Labels, Recording, Segment
from stages.datasets.server_metrics import generate
from stages.errors import UserError
from stages.metrics.inputs import Undefined
from stages.metrics.ranking import auroc, average_precision, f1_max
from stages.seed import numpy_generator
from stages.timeseries.search.plan import Plan, Stage

KINDS = ("pure", "disturbing", "anomaly")
CALIBRATION = 5_000  # normal steps at the start of the validation block from which the model's score takes its scale
DIGITS = 6


class Block(NamedTuple):
    """Steps start .. stop - 1 of the signal."""

    start: int
    stop: int


class Judged(NamedTuple):
    """Windows of one block."""

    ends: NDArray[np.int64]  # (W,) the step after the last of each window
    kind: NDArray[np.int64]  # (W,) place in KINDS

    @property
    def label(self) -> NDArray[np.bool_]:
        return self.kind == KINDS.index("anomaly")


class Task(NamedTuple):
    """What all combinations of one stage share."""

    signal: Recording
    train: Block
    val: Block
    test: Block
    judged: dict[str, Judged]  # of val and test


@functools.lru_cache(maxsize=2)
def task_of(plan: Plan, stage: str) -> Task:
    """The signal of a stage, its blocks and the windows that are judged; made once in a process."""
    sizes = plan.stage(stage)
    signal = generate(sizes.steps, gain=plan.gain, seed=plan.data_seed, interval_scale=plan.interval_scale)
    train, val, test = blocks(signal.label, sizes)
    calibrated = Block(val.start + min(CALIBRATION, (val.stop - val.start) // 4), val.stop)
    judged = {name: draw_windows(plan, signal.label, block, name) for name, block in (("val", calibrated), ("test", test))}
    return Task(signal, train, val, test, judged)


def blocks(label: Labels, stage: Stage) -> list[Block]:
    """Train, validation and test, in order of time. An anomaly across a border belongs to neither side. label: (T,)."""
    steps = len(label)
    borders = [round(steps * stage.train), round(steps * (stage.train + stage.val))]
    starts, stops = [0], []
    for border in borders:
        across = label[border - 1] and label[border]
        normal = np.flatnonzero(label == 0) if across else np.empty(0, int)
        stops.append(int(normal[normal < border].max()) + 1 if across else border)
        starts.append(int(normal[normal > border].min()) if across else border)
    return [Block(start, stop) for start, stop in zip(starts, [*stops, steps])]


def draw_windows(plan: Plan, label: Labels, block: Block, name: str) -> Judged:
    """As many windows of each kind as the plan has, or all that there are; sorted by time."""
    ends = np.arange(block.start + plan.window, block.stop + 1)
    anomalous = np.concatenate([[0], np.cumsum(label, dtype=np.int64)])

    def within_last(steps: int) -> NDArray[np.bool_]:
        return anomalous[ends] > anomalous[ends - steps]

    smallest, largest = plan.patch_sizes[0], plan.patch_sizes[-1]
    of_kind = (~within_last(plan.window), within_last(plan.window) & ~within_last(largest), within_last(smallest))
    generator = numpy_generator(plan.data_seed, "search", "windows", name)
    drawn = [generator.permutation(ends[chosen])[:count] for chosen, count in zip(of_kind, plan.judged)]
    kind = np.repeat(np.arange(len(KINDS)), [len(of) for of in drawn])
    order = np.argsort(np.concatenate(drawn), kind="stable")
    return Judged(np.concatenate(drawn)[order], kind[order])


def figures(judged: Judged, score: NDArray[np.floating]) -> dict[str, float]:
    """Of anomalous windows against normal ones, and against each kind of those alone. score: (W,). Raises Undefined without both."""
    pure, disturbing = (judged.kind != KINDS.index(other) for other in ("disturbing", "pure"))
    return {
        "roc_auc": auroc(score, judged.label),
        "pr_auc": average_precision(score, judged.label),
        "f1_max": f1_max(score, judged.label).value,
        "pure_auc": auroc(score[pure], judged.label[pure]),
        "disturbing_auc": auroc(score[disturbing], judged.label[disturbing]),
    }


def judge(plan: Plan, stage: str, number: int) -> dict[str, Any]:
    """The line of one combination: its figures, or the reason why there are none."""
    started = time.monotonic()
    try:
        line = fit(plan, stage, number)[1]
    except (UserError, Undefined) as reason:
        line = {"number": number, "refused": str(reason)}
    return {**line, "seconds": round(time.monotonic() - started, 2)}
