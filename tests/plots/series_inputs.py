"""Small made-up inputs for every picture of the series task."""

import numpy as np

from stages.datasets import server_metrics
from stages.datasets.injected import KINDS, clock
from stages.plots.series_architecture import Architecture
from stages.plots.series_data import Signals
from stages.plots.series_model import Scored
from stages.plots.series_search import Finished, Searched
from stages.plots.series_training import Progress

VARIABLES = server_metrics.VARIABLES
FIGURES = {"val_roc_auc": "ROC AUC, validation", "test_roc_auc": "ROC AUC, test", "test_pr_auc": "PR AUC, test"}
FACTORS = {
    "masking_ratio": (0.4, 0.7),
    "margin_type": ("hinge", "softplus"),
    "patchify_mode": ("linear", "cnn_first"),
    "force_mask_anomaly": (False, True),
}
CAUSES = ("spike", "memory_leak", "contextual")


def signals(steps: int = 12_000) -> Signals:
    made = server_metrics.generate(steps, seed=100, interval_scale=0.5)
    plain = server_metrics.normal(clock(steps, [], 0), 100, ())
    changes = {name: server_metrics.normal(clock(steps, [], 0), 100, (name,)) - plain for name in server_metrics.COMPLEXITY}
    normal = server_metrics.normal(clock(steps, made.regions, 1.0), 100)
    blocks = [
        {"stage": "quick", "block": name, "start": at, "stop": at + 4000, "use": "1 epoch"}
        for at, name in ((0, "train"), (4000, "validation"), (8000, "test"))
    ]
    return Signals(
        made.values, normal, made.label, made.regions, VARIABLES, changes, {kind: f"A rule of {kind}." for kind in KINDS}, blocks, 100, 4
    )


def architecture() -> Architecture:
    draw = np.random.default_rng(0)
    sizes = dict(steps=100, variables=8, patches=25, width=64, heads=4, encoder_layers=3, teacher_layers=4, student_layers=1)
    reach = {"linear": np.repeat([0.0, 1.0, 0.0], 4), "cnn_first": np.repeat([0.2, 1.0, 0.2], 4)}
    masks = {"patch": np.tile(np.arange(25) % 3 == 0, (8, 1)), "feature_wise": draw.random((8, 25)) < 0.4}
    window = draw.normal(size=(100, 8))
    weights = [
        {"epoch": epoch, "reconstruction": 1.0, "distillation": 0.5 * (epoch > 1), "push": 0.5 * (epoch > 2)} for epoch in range(1, 6)
    ]
    parameters = dict(embedding=2112, encoder=150_000, teacher=200_000, student=52_000)
    passes = np.arange(25) % 5 == np.arange(5)[:, None]
    return Architecture(sizes, False, parameters, reach, masks, passes, window, 0.9 * window, 0.8 * window, VARIABLES, 0.5, 0.8, weights)


def searched() -> Searched:
    draw = np.random.default_rng(1)
    rows = [
        {"number": number, "masking_ratio": ratio, "margin_type": margin, "patchify_mode": mode, "force_mask_anomaly": force}
        for number, (ratio, margin, mode, force) in enumerate(np.ndindex(2, 2, 2, 2))
    ]
    rows = [{**row, **{factor: levels[row[factor]] for factor, levels in FACTORS.items()}} for row in rows]
    rows = [{**row, **{column: float(draw.uniform(0.6, 0.9)) for column in FIGURES}} for row in rows]
    effects = {factor: {"value": 0.3, "low": 0.1, "high": 0.5, "luck": 0.05} for factor in FACTORS}
    return Searched(rows, list(FACTORS), FIGURES, "val_roc_auc", effects)


def finished() -> Finished:
    quick = searched()
    rows = [
        {
            **row,
            **{f"quick_{column}": row[column] - 0.02 for column in FIGURES},
            "improvement": 0.02,
            "selection_criterion": "masking_ratio = 0.4; top by val_roc_auc",
        }
        for row in quick.rows[:9]
    ]
    histories = {row["number"]: [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}] for row in rows}
    best = max(rows, key=lambda row: row["val_roc_auc"])["number"]
    return Finished(quick._replace(rows=rows), histories, {"value": 0.4, "low": 0.1, "high": 0.6}, best)


def scored(windows: int = 120) -> Scored:
    """Anomalies have one variable moved in their last 20 steps, and the teacher does not follow it."""
    draw = np.random.default_rng(2)
    kind = np.array(["normal", "disturbing", "anomaly", "normal"])[np.arange(windows) % 4]
    cause = np.where(kind == "normal", "", np.array(CAUSES)[np.arange(windows) // 4 % 3])
    window = draw.normal(size=(windows, 100, 8))
    teacher, label, moved = window + 0.1 * draw.normal(size=window.shape), np.zeros((windows, 100), int), np.zeros((windows, 8), bool)
    for place in np.flatnonzero(kind != "normal"):
        span = slice(80, 100) if kind[place] == "anomaly" else slice(60, 80)
        label[place, span], moved[place, place % 8] = 1, True
        window[place, span, place % 8] += draw.gamma(1, 1.0)
    student = teacher + 0.1 * draw.normal(size=window.shape)
    error, gap = (np.square(one - other)[:, -4:].mean((1, 2)) for one, other in ((teacher, window), (teacher, student)))
    threshold = float(np.quantile((error + gap)[kind == "normal"], 0.95))
    return Scored(
        kind, cause, error + gap, error, gap, threshold, window, teacher, student, label, moved, VARIABLES, 4, "5 % of normal windows"
    )


def progress() -> Progress:
    last, epochs = scored(), np.arange(1, 5)
    growth = np.linspace(0.3, 1, len(epochs))[:, None]
    error, gap = last.reconstruction**growth, last.discrepancy**growth
    threshold = np.quantile((error + gap)[:, last.kind == "normal"], 0.95, axis=1)
    figures = [{"ROC AUC": 0.7 + 0.05 * at} for at in range(len(epochs))]
    lines = (values[2, :, 0] * growth for values in (last.teacher, last.student))
    return Progress(
        epochs, "epoch", last.kind, last.cause, error + gap, error, gap, threshold, figures, last.window[2, :, 0], *lines, "memory of a spike"
    )
