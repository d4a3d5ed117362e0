"""Pictures of how a model learns: the same test windows judged after every epoch of a training that is done again.

E epochs, W windows of L steps, V variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.ranking import auroc
from stages.plots.series_figure import INK, Figure, figure, table, wrapped
from stages.plots.series_palette import KINDS, NAMED, NORMAL, STUDENT, TEACHER

GROUP = "training_progress"
LINES = 14  # trajectories of each kind
DOTS = 220  # of each kind in a scatter plot
SHOWN = 6  # epochs side by side
Array = NDArray[np.floating]


class Progress(NamedTuple):
    """What the model made of the test windows each time it was looked at."""

    epoch: NDArray[np.integer]  # (E,) when the model was looked at, in `unit`
    unit: str  # "epoch" or "training step"
    kind: NDArray[np.str_]  # (W,) of KINDS
    cause: NDArray[np.str_]  # (W,) "" where nothing is anomalous
    score: Array  # (E, W)
    reconstruction: Array  # (E, W)
    discrepancy: Array  # (E, W)
    threshold: Array  # (E,) each from that epoch's scores of normal validation windows
    figures: Sequence[Mapping[str, float]]  # of each epoch: name -> value
    window: Array  # (L,) one variable of one anomalous window, standardised
    teacher: Array  # (E, L)
    student: Array  # (E, L)
    shown: str  # what that window is

    @property
    def anomalous(self) -> NDArray[np.bool_]:
        return self.kind == "anomaly"

    @property
    def level(self) -> Array:
        """(E, W) scores in units of each epoch's threshold, so that epochs can be compared; an alarm from 1 on."""
        return self.score / np.maximum(self.threshold, 1e-12)[:, None]


def figures(progress: Progress) -> list[Figure]:
    """Every picture of the group, in the order of the list of names."""
    drawn = (
        score_evolution, sample_trajectories, metrics_evolution, late_bloomers, anomaly_type_learning, reconstruction_evolution,
        decision_boundary_evolution,
    )  # fmt: skip
    return [draw(progress) for draw in drawn]


def score_evolution(progress: Progress) -> Figure:
    """Median and middle half of each kind."""
    import altair as alt

    rows = []
    for kind in _kinds(progress):
        low, middle, high = np.quantile(progress.level[:, progress.kind == kind], [0.25, 0.5, 0.75], axis=1)
        rows += [
            {"kind": kind, "epoch": epoch, "low": low[at], "middle": middle[at], "high": high[at]}
            for at, epoch in enumerate(progress.epoch)
        ]
    base = alt.Chart(table(rows, "scores")).encode(x=_epochs(progress), color=_colour(progress))
    bands = base.mark_area(opacity=0.22).encode(y=_levels("low", [row["low"] for row in rows]), y2="high:Q")
    lines = base.mark_line(strokeWidth=2.5, point=alt.OverlayMarkDef(size=30)).encode(y="middle:Q")
    return figure(
        GROUP, "score_evolution", (bands + lines + _limit()).properties(width=640, height=300), "How the kinds part as training goes on",
        "Line: the median window; band: the middle half; dashed: the threshold at that time",
    )  # fmt: skip


def sample_trajectories(progress: Progress) -> Figure:
    """Single windows as training goes on."""
    places = [place for kind in _kinds(progress) for place in _even(np.flatnonzero(progress.kind == kind), LINES)]
    return figure(
        GROUP, "sample_trajectories", _trajectories(progress, places).properties(width=640, height=320), "Single windows as training goes on",
        f"Up to {LINES} windows of each kind, evenly taken; dashed: the threshold at that time",
    )  # fmt: skip


def metrics_evolution(progress: Progress) -> Figure:
    """Every figure after every epoch."""
    import altair as alt

    rows = [
        {"epoch": epoch, "figure": name, "value": value}
        for epoch, values in zip(progress.epoch, progress.figures)
        for name, value in values.items()
    ]
    names = list(progress.figures[0])
    colours = {"domain": names, "range": [NAMED[place % len(NAMED)] for place in range(len(names))]}
    lines = alt.Chart(table(rows, "figures")).mark_line(strokeWidth=2.2, point=alt.OverlayMarkDef(size=35)).encode(
        x=_epochs(progress), y=alt.Y("value:Q", title="test windows").scale(zero=False), color=alt.Color("figure:N", title=None).scale(**colours),
    )  # fmt: skip
    best = max(range(len(rows)), key=lambda place: (rows[place]["figure"] == names[0], rows[place]["value"]))
    return figure(
        GROUP, "metrics_evolution", lines.properties(width=640, height=300), f"{names[0]} is highest after {progress.unit} {rows[best]['epoch']:,}",
        "To look at, never to choose by: these are test windows",
    )  # fmt: skip


def late_bloomers(progress: Progress) -> Figure:
    """Anomalies that were missed at the first look and found at the last."""
    late = np.flatnonzero(progress.anomalous & (progress.level[0] < 1) & (progress.level[-1] >= 1))
    order = late[np.argsort(-progress.level[-1, late], kind="stable")]
    missed = int((progress.anomalous & (progress.level[0] < 1)).sum())
    shown = [*order[: 2 * LINES]] if len(order) else _even(np.flatnonzero(progress.anomalous), LINES)
    return figure(
        GROUP,
        "late_bloomers",
        _trajectories(progress, shown).properties(width=640, height=320),
        f"{len(late)} of {missed} anomalies missed at first were found in the end",
        "Their scores as training goes on; dashed: the threshold at that time"
        if len(order)
        else "None was; a sample of all anomalies instead",
    )


def anomaly_type_learning(progress: Progress) -> Figure:
    """AUC of each cause against all normal windows, epoch by epoch."""
    import altair as alt

    causes = sorted(set(progress.cause[progress.anomalous]) - {""})
    rows = []
    for cause in causes:
        chosen = progress.anomalous & (progress.cause == cause)
        used = chosen | ~progress.anomalous
        rows += [
            {"cause": cause.replace("_", " "), "epoch": epoch, "auc": auroc(score[used], chosen[used])}
            for epoch, score in zip(progress.epoch, progress.score)
        ]
    last = {row["cause"]: row["auc"] for row in rows}
    base = alt.Chart(table(rows, "auc")).encode(
        x=alt.X("epoch:O", title=progress.unit).axis(labelAngle=0, domain=False, ticks=False),
        y=alt.Y("cause:N", title=None, sort=sorted(last, key=lambda cause: -last[cause])).axis(labelLimit=180, domain=False, ticks=False),
    )
    color = (
        alt.Color("auc:Q", title="AUC against all normal windows")
        .scale(scheme="blues", domain=[0.5, 1], clamp=True)
        .legend(orient="bottom", gradientLength=220)
    )
    ink = alt.condition("datum.auc > 0.78", alt.value("#ffffff"), alt.value(INK))
    numbers = base.mark_text(fontSize=11).encode(text=alt.Text("auc:Q", format=".2f"), color=ink)
    chart = (base.mark_rect(stroke="#ffffff").encode(color=color) + numbers).properties(
        width=max(44 * len(progress.epoch), 260), height=28 * len(causes)
    )
    return figure(GROUP, "anomaly_type_learning", chart, "Which kinds of anomaly are learnt first", "One half is chance")


def reconstruction_evolution(progress: Progress) -> Figure:
    """One window as the teacher and the student redraw it, epoch by epoch."""
    import altair as alt

    who = {"signal": NORMAL, "teacher": TEACHER, "student": STUDENT}
    panels = []
    for at in _epochs_shown(progress):
        drawn = zip(who, (progress.window, progress.teacher[at], progress.student[at]))
        rows = [{"who": name, "step": step, "value": value} for name, values in drawn for step, value in enumerate(values)]
        lines = alt.Chart(table(rows, f"epoch {progress.epoch[at]}")).mark_line(strokeWidth=1.5).encode(
            x=alt.X("step:Q", title=None).axis(tickCount=4), y=alt.Y("value:Q", title=None).axis(tickCount=3),
            color=alt.Color("who:N", title=None).scale(domain=list(who), range=list(who.values())),
            strokeDash=alt.StrokeDash("who:N", title=None).scale(domain=list(who), range=[[1, 0], [6, 2], [2, 2]]),
        )  # fmt: skip
        panels.append(
            lines.properties(width=270, height=110, title=alt.Title(f"after {progress.unit} {progress.epoch[at]:,}", fontSize=13))
        )
    return figure(
        GROUP,
        "reconstruction_evolution",
        wrapped(panels, 3),
        "One window, redrawn after more and more training",
        f"{progress.shown}; standard deviations",
    )


def decision_boundary_evolution(progress: Progress) -> Figure:
    """Both errors of each window, and which of them raise an alarm, epoch by epoch."""
    import altair as alt

    kinds = _kinds(progress)
    places = [place for kind in kinds for place in _even(np.flatnonzero(progress.kind == kind), DOTS)]
    positive = min(progress.reconstruction.min(), progress.discrepancy.min()) > 0
    scale = {"type": "log", "nice": False} if positive else {"zero": False}
    panels = []
    for at in _epochs_shown(progress):
        rows = [
            {
                "kind": progress.kind[place],
                "reconstruction": progress.reconstruction[at, place],
                "discrepancy": progress.discrepancy[at, place],
                "alarm": bool(progress.level[at, place] >= 1),
            }
            for place in places
        ]
        base = alt.Chart(table(rows, f"epoch {progress.epoch[at]}")).encode(
            x=alt.X("reconstruction:Q", title="reconstruction").scale(**scale).axis(tickCount=3, format="~g"),
            y=alt.Y("discrepancy:Q", title="discrepancy").scale(**scale).axis(tickCount=3, format="~g"),
            color=_colour(progress),
        )
        passed = base.transform_filter("!datum.alarm").mark_point(size=18, opacity=0.5, strokeWidth=1)
        alarms = base.transform_filter("datum.alarm").mark_point(filled=True, shape="triangle-up", size=38, opacity=0.75)
        panels.append(
            (passed + alarms).properties(
                width=250, height=170, title=alt.Title(f"after {progress.unit} {progress.epoch[at]:,}", fontSize=13)
            )
        )
    return figure(
        GROUP, "decision_boundary_evolution", wrapped(panels, 3), "Where alarms begin among the two errors",
        f"Each mark is a window; filled triangles: alarms; both errors {'on logarithmic axes' if positive else 'in squared standard deviations'}",
    )  # fmt: skip


def _trajectories(progress: Progress, places: Sequence[int]) -> Any:
    import altair as alt

    rows = [
        {"window": int(place), "kind": progress.kind[place], "epoch": epoch, "level": progress.level[at, place]}
        for place in places
        for at, epoch in enumerate(progress.epoch)
    ]
    y = _levels("level", [row["level"] for row in rows])
    lines = alt.Chart(table(rows, "windows")).mark_line(strokeWidth=1.1, opacity=0.7)
    return lines.encode(x=_epochs(progress), y=y, detail="window:N", color=_colour(progress)) + _limit()


def _levels(column: str, values: Sequence[float]) -> Any:
    """Scores in thresholds: logarithmic where all are above 0."""
    import altair as alt

    positive = min(values) > 0
    scale = alt.Scale(type="log", nice=False) if positive else alt.Scale(zero=False)
    return alt.Y(f"{column}:Q", title=f"score, in thresholds{' (log)' if positive else ''}", scale=scale)


def _limit() -> Any:
    import altair as alt

    return alt.Chart(table([{"threshold": 1}], "threshold")).mark_rule(strokeDash=[5, 3], color=INK).encode(y="threshold:Q")


def _epochs(progress: Progress) -> Any:
    import altair as alt

    return alt.X("epoch:Q", title=progress.unit).axis(tickCount=min(len(progress.epoch), 10), format="d").scale(zero=False, nice=False)


def _epochs_shown(progress: Progress) -> list[int]:
    return [int(at) for at in np.unique(np.linspace(0, len(progress.epoch) - 1, SHOWN).astype(int))]


def _even(places: NDArray[np.intp], most: int) -> list[int]:
    return [int(place) for place in places[np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).astype(int))]]


def _kinds(progress: Progress) -> list[str]:
    return [kind for kind in KINDS if (progress.kind == kind).any()]


def _colour(progress: Progress) -> Any:
    import altair as alt

    kinds = _kinds(progress)
    return alt.Color("kind:N", title=None).scale(domain=kinds, range=[KINDS[kind] for kind in kinds])
