"""One combination: fitted on the first block of a signal, judged on windows of the second and the third.

A window is anomalous if its last steps are. Patches of different length ask about different last steps, so windows are drawn for which all patch
sizes of the grid agree: an anomaly reaches into the last steps of the smallest patch, or has ended before the last steps of the largest. All
combinations of a grid are thereby judged on the same windows with the same labels. The model scores the last patch of a window, as in a stream.

L steps of a window, V variables, W windows.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.recordings import Labels, Recording, Segment
from stages.datasets.segments import known_in, normal_parts
from stages.datasets.server_metrics import generate
from stages.errors import UserError
from stages.metrics.inputs import Floats, Undefined
from stages.metrics.ranking import auroc, average_precision, f1_max
from stages.seed import numpy_generator
from stages.timeseries.search.plan import Plan, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from stages.timeseries.masked.scoring import Errors
    from stages.timeseries.masked_autoencoder import MaskedAutoencoder

KINDS = ("pure", "disturbing", "anomaly")
CALIBRATION = 4_000  # normal steps at the start of the validation block from which the model's score takes its scale
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
    calibrated: Block  # what is left of val once the model's score has taken its scale from the start of it
    judged: dict[str, Judged]  # of calibrated, as val, and of test


@functools.lru_cache(maxsize=2)
def task_of(plan: Plan, stage: str) -> Task:
    """The signal of a stage, its blocks and the windows that are judged; made once in a process."""
    sizes = plan.stage(stage)
    signal = generate(sizes.steps, gain=plan.gain, seed=plan.data_seed, interval_scale=plan.interval_scale)
    train, val, test = blocks(signal.label, sizes)
    calibrated = Block(val.start + min(CALIBRATION, (val.stop - val.start) // 4), val.stop)
    judged = {name: draw_windows(plan, signal.label, block, name) for name, block in (("val", calibrated), ("test", test))}
    return Task(signal, train, val, test, calibrated, judged)


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


def figures(judged: Judged, score: Floats, reconstruction: Floats, discrepancy: Floats) -> dict[str, float]:
    """Of anomalous windows against normal ones, and against each kind of those alone; then the two parts of the score by themselves.

    score, reconstruction, discrepancy: (W,). Raises Undefined where a kind of window is missing.
    """
    pure, disturbing = (judged.kind != KINDS.index(other) for other in ("disturbing", "pure"))
    return {
        "roc_auc": auroc(score, judged.label),
        "pr_auc": average_precision(score, judged.label),
        "f1_max": f1_max(score, judged.label).value,
        "pure_auc": auroc(score[pure], judged.label[pure]),
        "disturbing_auc": auroc(score[disturbing], judged.label[disturbing]),
        "reconstruction_auc": auroc(reconstruction, judged.label),
        "discrepancy_auc": auroc(discrepancy, judged.label),
    }


def floor(plan: Plan, stage: str) -> dict[str, float]:
    """ROC AUC on the test block of the largest |z| in the last steps of a window: what can be had without a model."""
    task, last = task_of(plan, stage), plan.patch_sizes[-1]
    train = task.signal.values[task.train.start : task.train.stop]
    z = np.abs((task.signal.values - np.nanmean(train, 0)) / np.nanstd(train, 0))
    judged = task.judged["test"]
    score = np.array([np.nanmax(z[end - last : end]) for end in judged.ends])
    return {"test_roc_auc": round(auroc(score, judged.label), DIGITS)}


def judge(plan: Plan, stage: str, number: int) -> dict[str, Any]:
    """The line of one combination: its figures, or the reason why there are none."""
    started = time.monotonic()
    try:
        line = fit(plan, stage, number)[1]
    except (UserError, Undefined) as reason:
        line = {"number": number, "refused": str(reason)}
    return {**line, "seconds": round(time.monotonic() - started, 2)}


def fit(plan: Plan, stage: str, number: int) -> tuple[MaskedAutoencoder, dict[str, Any]]:
    """The fitted model and its line, without the time. Raises what a fit raises, and Undefined where a block lacks a kind of window."""
    from stages.timeseries.masked_autoencoder import MaskedAutoencoder
    from stages.training import Run

    task, sizes = task_of(plan, stage), plan.stage(stage)
    levels = {point.number: point.levels for point in plan.points}[number]
    options = options_of(plan, sizes, levels)
    run = Run(seed=plan.seed, device=plan.device, quiet=True)
    model = MaskedAutoencoder(**options, score_stride=plan.stride).to(run.device).fit(*segments(plan, task), run)
    measured = {}
    for block, judged in task.judged.items():
        parts = window_scores(model, task, judged)
        measured |= {f"{block}_{name}": round(value, DIGITS) for name, value in figures(judged, *parts).items()}
    windows = {block: np.bincount(judged.kind, minlength=len(KINDS)).tolist() for block, judged in task.judged.items()}
    return model, {"number": number, "options": options, "figures": measured, "windows": windows, "history": run.history}


def options_of(plan: Plan, stage: Stage, levels: dict[str, Any]) -> dict[str, Any]:
    """What the model is built with."""
    training = {"epochs": stage.epochs, "batch_size": stage.batch_size, "learning_rate": stage.learning_rate, "dropout": stage.dropout}
    return {"regime": plan.regime, "seq_length": plan.window, "window_stride": plan.stride, "scoring": "last_patch", **training, **levels}


def segments(plan: Plan, task: Task) -> tuple[list[Segment], list[Segment]]:
    """What the regime lets a fit see of the first block, and the normal steps at the start of the second, from which scores take their scale."""
    train = known_in(plan.regime, [_segment(task, task.train)])
    held_out = normal_parts([_segment(task, Block(task.val.start, task.calibrated.start))])
    return train, [segment._replace(label=None) for segment in held_out]


def window_scores(model: MaskedAutoencoder, task: Task, judged: Judged) -> list[NDArray[np.float32]]:
    """For each window its score and the two parts of it, reconstruction and discrepancy, (W,) each."""
    import torch

    from stages.timeseries.windows import WINDOWS_AT_ONCE, views

    length, first = model.shape.steps, int(judged.ends.min()) - model.shape.steps
    values = model.standardised(torch.from_numpy(task.signal.values[first : judged.ends.max()]))
    window = views(values, length)[torch.from_numpy(judged.ends - length - first)]
    found = [last_errors(model, part) for part in window.split(WINDOWS_AT_ONCE)]
    scores = (
        [model.combined(part) for part in found],
        [part.squared.mean(1) for part in found],
        [part.discrepancy.mean(1) for part in found],
    )
    return [torch.cat(score).cpu().numpy() for score in scores]


def last_errors(model: MaskedAutoencoder, window: Tensor) -> Errors:
    """Means over the last patch of each window, hidden, (W, V). window: (W, L, V) standardised."""
    import torch

    from stages.timeseries.masked import masks
    from stages.timeseries.masked.scoring import Errors
    from stages.timeseries.masked_autoencoder import FURTHEST

    window, last = window.clamp(-FURTHEST, FURTHEST), -model.network.patch_size
    with torch.no_grad():
        output = model.network(window, masks.last(model.shape.patches, 1).to(window.device).expand(len(window), -1))
    error, apart = (window - output.teacher)[:, last:], (output.teacher - output.student)[:, last:]
    return Errors(error.mean(1), error.square().mean(1), apart.square().mean(1))


def _segment(task: Task, block: Block) -> Segment:
    part = slice(block.start, block.stop)
    return Segment(f"{task.signal.category}/{task.signal.name}", block.start, task.signal.values[part], task.signal.label[part])
