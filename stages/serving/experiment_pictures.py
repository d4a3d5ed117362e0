"""What the pictures of a finished search are drawn from: its tables, its plan, its best model, and the signal that it was judged on, made anew.

L steps of a window, N patches, V variables, W windows.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages import io
from stages.errors import Missing, UserError
from stages.training import Run

if TYPE_CHECKING:
    from torch import nn

    from stages.plots.series_architecture import Architecture
    from stages.plots.series_data import Signals
    from stages.plots.series_figure import Figure
    from stages.plots.series_model import Scored
    from stages.plots.series_search import Finished, Searched
    from stages.plots.series_training import Progress
    from stages.timeseries.masked_autoencoder import MaskedAutoencoder
    from stages.timeseries.search.judging import Judged, Task
    from stages.timeseries.search.plan import Plan

SIGNAL_STEPS = 60_000  # of the signal that shows what the generator does
FALSE_ALARMS = 0.01  # of pure normal validation windows, which the threshold allows
POLICY = "1 % false alarms on pure normal validation windows"
PASSES = 5  # in which every patch is redrawn once
BESIDE = 6  # steps beside a patch, where a leak would show
KINDS = {"pure": "normal", "disturbing": "disturbing", "anomaly": "anomaly"}  # of the search -> of the palette
FIGURES = {
    "val_roc_auc": "ROC AUC, validation", "val_pr_auc": "PR AUC, validation", "test_roc_auc": "ROC AUC, test", "test_pr_auc": "PR AUC, test",
    "test_f1_max": "best F1, test", "test_disturbing_auc": "AUC against disturbing normal, test",
}  # fmt: skip
Row = dict[str, Any]


class Group(NamedTuple):
    """The pictures of one folder, or why there are none."""

    name: str
    figures: list[Figure]
    missing: str | None


@dataclass(frozen=True)
class Experiment:
    """A folder that `assay search series` has written."""

    folder: Path
    metadata: Mapping[str, Any]
    config: Mapping[str, Any]  # best_config.json

    @cached_property
    def plan(self) -> Plan:
        from stages.timeseries.search.plan import Plan

        return Plan.of_json(self.metadata["plan"])

    @property
    def stage(self) -> str:
        """The stage that the best model comes from."""
        return self.config["stage"]

    @cached_property
    def task(self) -> Task:
        from stages.timeseries.search.judging import task_of

        return task_of(self.plan, self.stage)

    @cached_property
    def model(self) -> MaskedAutoencoder:
        """Raises DamagedFile where the files do not fit together."""
        from stages import timeseries

        path = self.folder / "best_model.safetensors"
        model = timeseries.build(self.config["detector"], self.config["options"], at=("best_config", "options"))
        try:
            model.load_state_dict(io.read_model(path))
        except RuntimeError as error:  # tensors of another model
            raise io.DamagedFile(path, error) from error
        return model.eval()

    @cached_property
    def scored(self) -> Scored:
        return scored(self)


def open_experiment(folder: Path) -> Experiment:
    """Raises Missing where `folder` holds no finished search."""
    for name in ("metadata.json", "best_config.json", "quick_results.csv"):
        if not (folder / name).is_file():
            raise Missing(f"{folder / name} is not there: give --experiment-dir the folder of a finished `assay search series`")
    return Experiment(folder, io.read_json(folder / "metadata.json"), io.read_json(folder / "best_config.json"))


def groups(experiment: Experiment, wanted: Sequence[str], retrain: bool) -> list[Group]:
    """The pictures of the groups of that name, drawn from what the folder holds."""
    from stages.plots import series_architecture, series_cases, series_causes, series_data, series_model, series_search, series_training

    def best_model() -> list[Figure]:
        return [one for module in (series_model, series_causes, series_cases) for one in module.figures(experiment.scored)]

    drawn: dict[str, Callable[[], list[Figure]]] = {
        "data": lambda: series_data.figures(signals(experiment)),
        "architecture": lambda: series_architecture.figures(architecture(experiment)),
        "stage1": lambda: series_search.quick_figures(quick(experiment)),
        "stage2": lambda: series_search.full_figures(full(experiment)),
        "best_model": best_model,
        "training_progress": lambda: series_training.figures(progress(experiment, retrain)),
    }
    return [_group(name, drawn[name]) for name in wanted]


def _group(name: str, draw: Callable[[], list[Figure]]) -> Group:
    try:
        return Group(name, draw(), None)
    except UserError as reason:
        return Group(name, [], str(reason))


def quick(experiment: Experiment) -> Searched:
    return _searched(experiment, _rows(experiment, "quick_results.csv"), experiment.metadata["main_effects"]["factors"] or {})


def full(experiment: Experiment) -> Finished:
    """Raises Missing where there was no full stage."""
    from stages.plots.series_search import Finished

    if not (experiment.folder / "full_results.csv").is_file():
        raise Missing("full_results.csv is not there: the search was stopped before its full stage, or --quick-only left it out")
    rows = _rows(experiment, "full_results.csv")
    if not rows:
        raise Missing("full_results.csv has no row: no combination finished the full stage; go on with `assay search series --resume`")
    histories = io.read_json(experiment.folder / "histories.json").get("full", {})
    best = max(rows, key=lambda row: (row["val_roc_auc"], -row["number"]))["number"]
    return Finished(
        _searched(experiment, rows, {}), {int(number): rows for number, rows in histories.items()}, experiment.metadata["kendall_tau"], best
    )


def _searched(experiment: Experiment, rows: list[Row], effects: Mapping[str, Any]) -> Searched:
    from stages.plots.series_search import Searched
    from stages.timeseries.search.grid import searched

    shown = {column: name for column, name in FIGURES.items() if column in rows[0]}
    measured = {factor: {**found["eta_squared"], "luck": found["luck"]} for factor, found in effects.items()}
    return Searched(rows, searched(experiment.plan.grid, experiment.plan.regime), shown, "val_roc_auc", measured)


def _rows(experiment: Experiment, name: str) -> list[Row]:
    """A table of the search with its levels and its numbers as they were."""
    from stages.timeseries.search.grid import GRIDS

    levels = {factor: {str(level): level for level in values} for factor, values in GRIDS[experiment.plan.grid].items()}

    def value(column: str, text: str) -> Any:
        if column in levels:
            return levels[column][text]
        return text if column == "selection_criterion" else int(text) if column == "number" else float(text)

    with (experiment.folder / name).open(encoding="utf-8", newline="") as file:
        return [{column: value(column, text) for column, text in row.items()} for row in csv.DictReader(file)]


def signals(experiment: Experiment) -> Signals:
    """A signal of the generator with the settings of the search, shorter than those that were searched on."""
    import inspect

    from stages.datasets import injected, server_metrics
    from stages.plots.series_data import Signals

    plan = experiment.plan
    made = server_metrics.generate(SIGNAL_STEPS, gain=plan.gain, seed=plan.data_seed, interval_scale=plan.interval_scale)
    still = injected.clock(SIGNAL_STEPS, [], plan.gain)
    plain = server_metrics.normal(still, plan.data_seed, ())
    changes = {name: server_metrics.normal(still, plan.data_seed, (name,)) - plain for name in server_metrics.COMPLEXITY}
    normal = server_metrics.normal(injected.clock(SIGNAL_STEPS, made.regions, plan.gain), plan.data_seed)
    rules = {name: (inspect.getdoc(kind.effect) or "Periods pass faster.").split("\n")[0] for name, kind in injected.KINDS.items()}
    return Signals(
        made.values, normal, made.label, made.regions, made.variables, changes, rules, _blocks(plan), plan.window, plan.patch_sizes[0]
    )


def _blocks(plan: Plan) -> list[Row]:
    rows = []
    for name in ("quick", "full"):
        stage = plan.stage(name)
        borders = [0, round(stage.steps * stage.train), round(stage.steps * (stage.train + stage.val)), stage.steps]
        judged = f"{sum(plan.judged):,} windows"
        uses = (f"{stage.epochs} epoch{'s' * (stage.epochs > 1)}", judged, judged)
        rows += [
            {"stage": name, "block": block, "start": start, "stop": stop, "use": use}
            for block, use, start, stop in zip(("train", "validation", "test"), uses, borders, borders[1:])
        ]
    return rows


def scored(experiment: Experiment) -> Scored:
    """The test windows of the stage that the best model comes from, judged by it once more."""
    from stages.plots.series_model import Scored
    from stages.timeseries.search import judging

    model, task = experiment.model, experiment.task
    parts = {block: judging.window_scores(model, task, task.judged[block]) for block in ("val", "test")}
    judged, pure = task.judged["test"], task.judged["val"].kind == judging.KINDS.index("pure")
    threshold = float(np.quantile(parts["val"][0][pure], 1 - FALSE_ALARMS, method="higher"))
    window, teacher, student = redrawn(model, task, judged)
    cause, moved = _causes(task, judged, model.shape.steps)
    label = np.stack([task.signal.label[end - model.shape.steps : end] for end in judged.ends])
    kind = np.array([KINDS[judging.KINDS[place]] for place in judged.kind])
    last = model.network.patch_size
    return Scored(kind, cause, *parts["test"], threshold, window, teacher, student, label, moved, task.signal.variables, last, POLICY)


def redrawn(model: MaskedAutoencoder, task: Task, judged: Judged) -> tuple[NDArray[np.float32], ...]:
    """The windows, standardised, and what the teacher and the student make of each patch while it is hidden; (W, L, V) each."""
    import torch

    from stages.timeseries.masked import masks
    from stages.timeseries.windows import WINDOWS_AT_ONCE, views

    length, first = model.shape.steps, int(judged.ends.min()) - model.shape.steps
    values = model.standardised(torch.from_numpy(task.signal.values[first : judged.ends.max()]))
    windows = views(values, length)[torch.from_numpy(judged.ends - length - first)]
    teachers, students = torch.zeros_like(windows), torch.zeros_like(windows)
    with torch.no_grad():
        for start in range(0, len(windows), WINDOWS_AT_ONCE):
            part = slice(start, start + WINDOWS_AT_ONCE)
            for hidden in masks.interleaved(model.shape.patches, min(PASSES, model.shape.patches)):
                output = model.network(windows[part], hidden.expand(len(windows[part]), -1))
                steps = hidden.repeat_interleave(model.network.patch_size)
                teachers[part, steps], students[part, steps] = output.teacher[:, steps], output.student[:, steps]
    return windows.numpy(), teachers.numpy(), students.numpy()


def _causes(task: Task, judged: Judged, length: int) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """The kind of the last region that reaches into each window, "" where none does, and the variables that it moves: (W,) and (W, V)."""
    regions = sorted(task.signal.regions)
    starts = np.array([region.start for region in regions])
    names, moved = [], np.zeros((len(judged.ends), len(task.signal.variables)), dtype=bool)
    for place, end in enumerate(judged.ends):
        at = int(np.searchsorted(starts, end)) - 1
        reaches = at >= 0 and regions[at].stop > end - length
        names.append(regions[at].kind if reaches else "")
        if reaches:
            moved[place] = np.isin(task.signal.variables, regions[at].variables)
    return np.array(names), moved


def architecture(experiment: Experiment) -> Architecture:
    """The best model's network, and what it makes of its surest find."""
    import torch

    from stages.plots.series_architecture import Architecture
    from stages.timeseries.masked import masks

    model, shape, found = experiment.model, experiment.model.shape, experiment.scored
    place = int(np.argmax(np.where(found.anomalous, found.score, -np.inf)))
    draw = torch.Generator().manual_seed(0)
    by_patch = masks.drawn(1, shape.patches, model.ratio, draw).expand(len(found.variables), -1)
    by_variable = masks.drawn_by_variable(1, shape.patches, len(found.variables), model.ratio, draw)[0].T
    passes = masks.interleaved(shape.patches, min(PASSES, shape.patches))
    apart = found.discrepancy[~found.anomalous]
    dynamic = float(apart.mean() + model.losses.dynamic_k * apart.std())
    return Architecture(
        {"steps": shape.steps, "variables": len(found.variables), "patches": shape.patches, "width": shape.width, "heads": shape.heads,
         "encoder_layers": shape.encoder_layers, "teacher_layers": shape.teacher_layers, "student_layers": shape.student_layers},
        shape.mask_before, _parameters(model), reach(model), {"patch": by_patch.numpy(), "feature_wise": by_variable.numpy()}, passes.numpy(),
        found.window[place], found.teacher[place], found.student[place], found.variables, model.losses.margin, dynamic,
        _weights(model),
    )  # fmt: skip


def _parameters(model: MaskedAutoencoder) -> dict[str, int]:
    """Learnt numbers of each part of the network."""
    network = model.network
    parts: dict[str, list[nn.Module]] = {
        "embedding": [network.embed], "encoder": [network.encoder, network.encoder_norm],
        "teacher": [network.teacher, network.teacher_head], "student": [network.student, network.student_head],
    }  # fmt: skip
    return {name: sum(one.numel() for module in modules for one in module.parameters()) for name, modules in parts.items()}


def reach(model: MaskedAutoencoder) -> dict[str, NDArray[np.float32]]:
    """How strongly a token of the middle answers to each step of its patch and of BESIDE steps on either side; the strongest is 1.

    Measured on new embeddings of the model's size, by gradients over 64 random windows with nothing hidden.
    """
    import torch

    from stages.timeseries.masked.network import Embedding

    shape = model.network.shape
    patch, answers = shape.steps // shape.patches, {}
    token = shape.patches // 2
    around = slice(token * patch - BESIDE, (token + 1) * patch + BESIDE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for mode in ("linear", "patch_cnn", "cnn_first"):
            embedding = Embedding(shape._replace(patchify=mode, by_variable=False))
            window = torch.randn(64, shape.steps, shape.variables, requires_grad=True)
            tokens = embedding(window, torch.zeros(64, shape.patches, dtype=torch.bool))[:, token]
            total = sum(torch.autograd.grad(one.sum(), window, retain_graph=True)[0].abs().mean((0, 2)) for one in tokens.T[:16])
            answers[mode] = (total / total.max())[around].numpy()
    return answers


def _weights(model: MaskedAutoencoder) -> list[dict[str, float]]:
    """The weight of each term of the loss as the epochs go by."""
    push = model.weight if model.regime == "weak" and model.losses.margin_type != "none" else 0.0
    rows = []
    for done in np.linspace(0, 1, 41):
        begun = done >= model.teacher_warmup
        rising = min(max(done - model.teacher_warmup, 0) / 0.2, 1.0)
        rows.append(
            {"epoch": done * model.epochs, "reconstruction": 1.0, "distillation": model.weight * begun, "push": push * rising * begun}
        )
    return rows


@dataclass
class Watched(Run):
    """A fit that is looked at after every tenth of its training."""

    look: Callable[[], None] = field(default=lambda: None)

    def train(self, model, batches, loss, plan, measure=None, name="train") -> int:
        def measured() -> Mapping[str, float]:
            self.look()
            return measure() if measure else {}

        return super().train(model, batches, loss, plan, measured, name)


def progress(experiment: Experiment, retrain: bool) -> Progress:
    """The best combination trained once more; its scores are the teacher's error and the weighted discrepancy, which need no scale.

    Raises UserError unless `retrain`.
    """
    from stages.metrics.ranking import auroc, average_precision
    from stages.plots.series_training import Progress
    from stages.timeseries.masked_autoencoder import MaskedAutoencoder
    from stages.timeseries.search import judging

    if not retrain:
        raise UserError("how the best model learnt is not kept; --retrain trains it once more and looks at it on the way")
    plan, task, found = experiment.plan, experiment.task, experiment.scored
    judged, pure = task.judged["test"], task.judged["val"].kind == judging.KINDS.index("pure")
    model = MaskedAutoencoder(**experiment.config["options"])
    place = int(np.argmax(np.where(found.anomalous, found.score, -np.inf)))
    variable = int(np.argmax(np.abs(found.window[place] - found.teacher[place])[-found.last :].sum(0)))
    one = judged._replace(ends=judged.ends[[place]], kind=judged.kind[[place]])
    seen: dict[str, list[Any]] = {
        name: [] for name in ("step", "score", "reconstruction", "discrepancy", "threshold", "figures", "teacher", "student")
    }

    def look() -> None:
        (_, error, apart), (_, val_error, val_apart) = (judging.window_scores(model, task, task.judged[block]) for block in ("test", "val"))
        score = error + model.weight * apart
        limit = np.quantile((val_error + model.weight * val_apart)[pure], 1 - FALSE_ALARMS, method="higher")
        measured = {"ROC AUC": auroc(score, judged.label), "PR AUC": average_precision(score, judged.label)}
        measured |= {"ROC AUC, reconstruction": auroc(error, judged.label), "ROC AUC, discrepancy": auroc(apart, judged.label)}
        _, teacher, student = redrawn(model, task, one)
        row = (int(model.trained), score, error, apart, limit, measured, teacher[0, :, variable], student[0, :, variable])
        for column, value in zip(seen.values(), row):
            column.append(value)

    model.fit(*judging.segments(plan, task), Watched(seed=plan.seed, quiet=True, look=look))
    arrays = {name: np.array(column) for name, column in seen.items() if name != "figures"}
    shown = f"{found.cause[place].replace('_', ' ')}, {found.variables[variable]}"
    return Progress(
        arrays["step"], "training step", found.kind, found.cause, arrays["score"], arrays["reconstruction"], arrays["discrepancy"], arrays["threshold"],
        seen["figures"], found.window[place, :, variable], arrays["teacher"], arrays["student"], shown,
    )  # fmt: skip
