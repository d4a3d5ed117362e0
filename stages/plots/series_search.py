"""Pictures of the two-stage search: what the quick stage found over the whole grid, and what the full stage made of those that were chosen.

A row is a combination: its number, the level of each factor, its figures. Everything is judged by `quality`, a figure of the validation block.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.plots.series_figure import INK, Figure, beneath, beside, figure, table, wrapped
from stages.plots.series_palette import ANOMALY, DISTURBING, NORMAL, QUIET, STUDENT, TEACHER

FIRST, SECOND = "stage1", "stage2"
TOP = 10
LINES = 150  # of the parallel coordinates; the best and an even sample of the others
Rows = Sequence[Mapping[str, Any]]


class Searched(NamedTuple):
    """One stage of a search."""

    rows: Rows
    factors: Sequence[str]  # those with more than one level
    figures: Mapping[str, str]  # column -> what it is called
    quality: str  # the column that chooses
    effects: Mapping[str, Mapping[str, float]]  # factor -> {"value", "low", "high", "luck"}: eta squared; empty where nothing varies


class Finished(NamedTuple):
    """The second stage. Its rows also have "quick_<figure>", "improvement" and "selection_criterion"."""

    stage: Searched
    histories: Mapping[int, Sequence[Mapping[str, Any]]]  # number -> what training remembered: {"step", "loss", ...}
    tau: Mapping[str, float | None]  # Kendall's, between the stages: {"value", "low", "high"}
    best: int  # number


def quick_figures(quick: Searched) -> list[Figure]:
    """Every picture of stage 1; one heat map for each figure."""
    drawn = (parallel_coordinates, parameter_importance, top_k_comparison, metric_distributions)
    compared = [mode for mode in ("patchify_mode", "margin_type") if mode in quick.factors]
    return [
        *(heatmaps(quick, column) for column in quick.figures),
        *(draw(quick) for draw in drawn),
        *(comparison(quick, mode) for mode in compared),
        stage1_summary_dashboard(quick),
    ]


def full_figures(full: Finished) -> list[Figure]:
    """Every picture of stage 2; one for each factor."""
    drawn = (best_config_summary, stage2_summary_dashboard)
    return [
        quick_vs_full(full), selection_criterion(full), *([learning_curves(full)] if any(full.histories.values()) else []),
        *(hyperparameter(full, factor) for factor in full.stage.factors), hyperparameter_interactions(full), *(draw(full) for draw in drawn),
    ]  # fmt: skip


def heatmaps(quick: Searched, column: str) -> Figure:
    """The mean figure of each pair of levels, over all other factors."""
    name, size = quick.figures[column], 34 * sum(len(_levels(quick, factor)) for factor in quick.factors)
    return figure(
        FIRST, f"heatmaps_{column}", _pairs(quick, column, size), f"{name} of each pair of levels",
        "Mean over all combinations that have both; on the diagonal the mean of one level alone; darker is better",
    )  # fmt: skip


def parallel_coordinates(quick: Searched) -> Figure:
    """One line for each combination through its levels to its quality; the best tenth in colour."""
    import altair as alt

    rows = sorted(quick.rows, key=lambda row: -row[quick.quality])
    best = rows[: max(1, len(rows) // 10)]
    rest = rows[len(best) :]
    shown = [*best, *rest[:: max(1, len(rest) // LINES)]]
    values = [row[quick.quality] for row in rows]
    low, high = min(values), max(values)
    spread = np.random.default_rng(0).uniform(
        -0.035, 0.035, (len(shown), len(quick.factors))
    )  # so that lines with one level do not hide each other
    axes = [*quick.factors, quick.quality]
    points = []
    for place, row in enumerate(shown):
        group = "best tenth" if place < len(best) else "others"
        for at, factor in enumerate(quick.factors):
            levels = _levels(quick, factor)
            height = (levels.index(_text(row[factor])) + 0.5) / len(levels) + spread[place, at]
            points.append({"number": row["number"], "axis": _words(factor), "height": height, "value": _text(row[factor]), "group": group})
        height = (row[quick.quality] - low) / (high - low) if high > low else 0.5
        points.append(
            {"number": row["number"], "axis": quick.figures[quick.quality], "height": height, "value": row[quick.quality], "group": group}
        )
    names = [*(_words(factor) for factor in quick.factors), quick.figures[quick.quality]]
    ticks = [
        {"axis": _words(factor), "height": (place + 0.5) / len(levels), "text": level}
        for factor in quick.factors
        for levels in [_levels(quick, factor)]
        for place, level in enumerate(levels)
    ]
    ticks += [{"axis": names[-1], "height": at, "text": f"{low + at * (high - low):.3f}"} for at in (0.0, 0.5, 1.0)]
    x = alt.X("axis:N", sort=names, title=None, scale=alt.Scale(type="point", padding=0.4)).axis(
        orient="top", labelAngle=0, labelFontSize=12, grid=True, domain=False, ticks=False
    )
    y = alt.Y("height:Q", axis=None).scale(domain=[-0.02, 1.02], nice=False)
    lines = alt.Chart(table(points, "lines")).mark_line(strokeWidth=1).encode(
        x=x, y=y, detail="number:N", color=alt.Color("group:N", title=None).scale(domain=["best tenth", "others"], range=[NORMAL, QUIET]),
        opacity=alt.condition("datum.group == 'others'", alt.value(0.13), alt.value(0.8)),
    )  # fmt: skip
    labels = alt.Chart(table(ticks, "levels")).encode(x=x, y=y, text="text:N")
    halo = labels.mark_text(align="left", dx=6, fontSize=12, stroke="#ffffff", strokeWidth=4)
    words = labels.mark_text(align="left", dx=6, fontSize=12, color=INK)
    return figure(
        FIRST, "parallel_coordinates", (lines + halo + words).properties(width=130 * len(axes), height=360), "Which levels the best combinations share",
        f"Lines within a level are spread apart; the best {len(best)} of {len(rows)} combinations by {names[-1]} in colour",
    )  # fmt: skip


def parameter_importance(quick: Searched) -> Figure:
    """Main effects, and the spread of the quality at each level."""

    parts = [*([_importance(quick)] if quick.effects else []), _boxes(quick)]
    return figure(
        FIRST, "parameter_importance", beside(*parts), _importance_said(quick),
        "Left: share of the variance that a factor's levels account for, 95 % interval, grey mark: what luck alone would give; right: quality at each level",
    )  # fmt: skip


def top_k_comparison(quick: Searched) -> Figure:
    """The best combinations, their levels and all their figures."""

    best = sorted(quick.rows, key=lambda row: -row[quick.quality])[:TOP]
    return figure(
        FIRST, "top_k_comparison", beside(_level_table(quick, best), _dots(quick, best)), f"The {len(best)} best combinations and what they share",
        f"In order of {quick.figures[quick.quality]}; each row is one combination, known by its number in the grid",
    )  # fmt: skip


def metric_distributions(quick: Searched) -> Figure:
    """A histogram for each figure."""
    panels = [_distribution(quick, column, 230, 130) for column in quick.figures]
    return figure(
        FIRST,
        "metric_distributions",
        wrapped(panels, 3),
        f"How {len(quick.rows)} combinations do",
        "Number of combinations; the line marks the one chosen by validation",
    )


def comparison(quick: Searched, factor: str) -> Figure:
    """All figures at each level of one factor."""
    name = _words(factor)
    return figure(
        FIRST, f"{factor}_comparison", _by_level(quick, factor), f"What the {name} changes",
        "Each dot is one combination, the bar is the middle half, its line the median",
    )  # fmt: skip


def stage1_summary_dashboard(quick: Searched) -> Figure:
    """The stage on one page."""

    best = sorted(quick.rows, key=lambda row: -row[quick.quality])[:5]
    importance = [_importance(quick)] if quick.effects else []
    top = beside(*importance, _distribution(quick, quick.quality, 320, 30 * len(quick.factors)))
    bottom = beside(_level_table(quick, best), _dots(quick, best))
    return figure(
        FIRST, "stage1_summary_dashboard", beneath(top, bottom), f"Stage 1: {len(quick.rows)} combinations, best {best[0][quick.quality]:.3f}",
        f"{_importance_said(quick)}; beneath, the five best with their levels and figures",
    )  # fmt: skip


def quick_vs_full(full: Finished) -> Figure:
    """Whether the quick stage ranks as the full one does."""
    tau = full.tau
    said = (
        "Kendall's tau is not defined"
        if tau.get("value") is None
        else f"Kendall's tau {tau['value']:.2f}, 95 % interval {tau['low']:.2f} to {tau['high']:.2f}"
    )
    title = f"The quick stage ranks {'much' if (tau.get('value') or 0) >= 0.5 else 'only partly'} as the full one does"
    return figure(
        SECOND, "quick_vs_full", _before_after(full, 460), title, f"{said}; on the dotted line nothing was gained by training longer"
    )


def selection_criterion(full: Finished) -> Figure:
    """How those do that were chosen for different reasons."""
    import altair as alt

    stage = full.stage
    rows = [
        {"number": row["number"], "reason": reason, "quality": row[stage.quality]}
        for row in stage.rows
        for reason in str(row["selection_criterion"]).split("; ")
    ]
    middle = {reason: np.median([row["quality"] for row in rows if row["reason"] == reason]) for reason in {row["reason"] for row in rows}}
    order = sorted(middle, key=lambda reason: (-middle[reason], reason))
    y = alt.Y("reason:N", sort=order, title=None).axis(labelLimit=320, grid=True)
    base = alt.Chart(table(rows, "chosen")).encode(
        y=y, x=alt.X("quality:Q", title=stage.figures[stage.quality]).scale(zero=False).axis(tickCount=8)
    )
    ticks = base.mark_tick(color=INK, thickness=3, height=16).encode(x="median(quality):Q")
    dots = base.mark_point(filled=True, size=45, color=NORMAL, opacity=0.55)
    return figure(
        SECOND, "selection_criterion", (dots + ticks).properties(width=520, height=24 * len(order)), "How combinations do by the reason they were chosen for",
        "Each dot is one combination, once for each of its reasons; the bar is the median",
    )  # fmt: skip


def learning_curves(full: Finished) -> Figure:
    """The loss of every combination, the best one in colour."""
    import altair as alt

    rows = [
        {"number": number, "step": row["step"], "loss": row["loss"], "who": "best" if number == full.best else "others"}
        for number, history in full.histories.items()
        for row in history
        if row.get("loss") is not None
    ]
    who = ["best", "others"]
    lines = alt.Chart(table(rows, "loss")).mark_line(point=alt.OverlayMarkDef(size=14)).encode(
        x=alt.X("step:Q", title="training step").axis(tickCount=8), y=alt.Y("loss:Q", title="training loss").scale(zero=False), detail="number:N",
        color=alt.Color("who:N", title=None).scale(domain=who, range=[ANOMALY, QUIET]),
        strokeWidth=alt.condition("datum.who == 'others'", alt.value(0.8), alt.value(2.6)),
        opacity=alt.condition("datum.who == 'others'", alt.value(0.45), alt.value(1)),
    )  # fmt: skip
    return figure(
        SECOND, "learning_curves", lines.properties(width=640, height=320), "Is training over?",
        f"Loss of each combination that was trained in full; number {full.best} is the best by validation",
    )  # fmt: skip


def hyperparameter(full: Finished, factor: str) -> Figure:
    """All figures at each level of one factor, after full training."""
    name = _words(factor)
    return figure(
        SECOND, f"hyperparam_{factor}", _by_level(full.stage, factor), f"What the {name} changes after full training",
        "Only combinations that were chosen are here, so levels differ in how many they have; bar: middle half, line: median",
    )  # fmt: skip


def hyperparameter_interactions(full: Finished) -> Figure:
    """The mean quality of each pair of levels among those that were trained in full."""
    stage = full.stage
    size = 34 * sum(len(_levels(stage, factor)) for factor in stage.factors)
    return figure(
        SECOND, "hyperparameter_interactions", _pairs(stage, stage.quality, size), f"{stage.figures[stage.quality]} of each pair of levels after full training",
        "An empty square: no combination with both was chosen; darker is better",
    )  # fmt: skip


def best_config_summary(full: Finished) -> Figure:
    """The best combination among all that were trained in full."""

    stage = full.stage
    best = next(row for row in stage.rows if row["number"] == full.best)
    panels = [_distribution(stage, column, 230, 110, best[column]) for column in stage.figures]
    return figure(
        SECOND, "best_config_summary", beneath(_level_table(stage, [best]), wrapped(panels, 3)), f"The best combination is number {full.best}",
        "Its levels, and where it stands among all that were trained in full (line)",
    )  # fmt: skip


def stage2_summary_dashboard(full: Finished) -> Figure:
    """The stage on one page."""

    stage = full.stage
    best = sorted(stage.rows, key=lambda row: -row[stage.quality])[:5]
    top = beside(
        _before_after(full, 300), _distribution(stage, "improvement", 320, 300, name="gained by training longer (ROC AUC on test)")
    )
    return figure(
        SECOND, "stage2_summary_dashboard", beneath(top, beside(_level_table(stage, best), _dots(stage, best))),
        f"Stage 2: {len(stage.rows)} combinations trained in full, best {best[0][stage.quality]:.3f}",
        "Quick against full quality, what was gained, the five best",
    )  # fmt: skip


def _importance(stage: Searched) -> Any:
    import altair as alt

    rows = [{"factor": _words(factor), **stage.effects[factor]} for factor in _by_effect(stage) if factor in stage.effects]
    base = alt.Chart(table(rows, "main effects")).encode(
        y=alt.Y("factor:N", sort=[row["factor"] for row in rows], title=None).axis(labelLimit=180)
    )
    bars = base.mark_bar(color=NORMAL, opacity=0.75).encode(x=alt.X("value:Q", title="eta squared").axis(format=".0%"))
    whiskers = base.mark_rule(strokeWidth=1.5, color=INK).encode(x="low:Q", x2="high:Q")
    luck = base.mark_tick(color=QUIET, thickness=3).encode(x="luck:Q")
    return (bars + whiskers + luck).properties(width=300, height=max(30 * len(rows), 30))


def _boxes(stage: Searched) -> Any:
    import altair as alt

    rows = [
        {"level": f"{_words(factor)}: {_text(row[factor])}", "quality": row[stage.quality]}
        for factor in _by_effect(stage)
        for row in stage.rows
    ]
    order = [f"{_words(factor)}: {level}" for factor in _by_effect(stage) for level in _levels(stage, factor)]
    box = alt.Chart(table(rows, "levels")).mark_boxplot(
        color=NORMAL, size=12, median=alt.MarkConfig(color="#ffffff"), outliers=alt.MarkConfig(size=9, color=QUIET)
    )
    return box.encode(
        y=alt.Y("level:N", sort=order, title=None).axis(labelLimit=260),
        x=alt.X("quality:Q", title=stage.figures[stage.quality]).scale(zero=False),
    ).properties(width=360, height=20 * len(order))


def _importance_said(stage: Searched) -> str:
    known = [factor for factor in _by_effect(stage) if factor in stage.effects]
    if not known:
        return "No factor can be told from another yet"
    above = [factor for factor in known if stage.effects[factor]["low"] > stage.effects[factor]["luck"]]
    return f"What matters most: {_words(above[0])}" if above else "No factor stands out from luck"


def _by_effect(stage: Searched) -> list[str]:
    return sorted(stage.factors, key=lambda factor: -stage.effects.get(factor, {"value": 0})["value"])


def _pairs(stage: Searched, column: str, size: int) -> Any:
    import altair as alt

    labels = [(factor, level) for factor in stage.factors for level in _levels(stage, factor)]
    rows = []
    for (one, high), (other, low) in itertools.product(labels, labels):
        values = [row[column] for row in stage.rows if _text(row[one]) == high and _text(row[other]) == low]
        if values:
            rows.append(
                {"one": f"{_words(one)}: {high}", "other": f"{_words(other)}: {low}", "mean": np.mean(values), "combinations": len(values)}
            )
    order = [f"{_words(factor)}: {level}" for factor, level in labels]
    base = alt.Chart(table(rows, "pairs")).encode(
        x=alt.X("one:N", sort=order, title=None).axis(orient="top", labelAngle=-50, labelLimit=240, domain=False, ticks=False),
        y=alt.Y("other:N", sort=order, title=None).axis(labelLimit=240, domain=False, ticks=False),
    )
    low, high = min(row["mean"] for row in rows), max(row["mean"] for row in rows)
    color = (
        alt.Color("mean:Q", title=stage.figures[column])
        .scale(scheme="blues", domain=[low, high])
        .legend(orient="bottom", gradientLength=260)
    )
    ink = alt.condition(f"datum.mean > {low + 0.55 * (high - low)}", alt.value("#ffffff"), alt.value(INK))
    numbers = base.mark_text(fontSize=10).encode(text=alt.Text("mean:Q", format=".2f"), color=ink)
    return (base.mark_rect(stroke="#ffffff").encode(color=color) + numbers).properties(width=size, height=0.75 * size)


def _level_table(stage: Searched, rows: Rows) -> Any:
    """Combinations down, factors across, levels as text; one level in one shade."""
    import altair as alt

    names = [_words(factor) for factor in stage.factors]
    cells = [
        {
            "number": row["number"],
            "factor": _words(factor),
            "level": _text(row[factor]),
            "shade": _levels(stage, factor).index(_text(row[factor])),
        }
        for row in rows
        for factor in stage.factors
    ]
    base = alt.Chart(table(cells, "levels of the best")).encode(
        x=alt.X("factor:N", sort=names, title=None).axis(orient="top", labelAngle=-30, labelLimit=200, domain=False, ticks=False),
        y=alt.Y("number:N", sort=[row["number"] for row in rows], title=None).axis(domain=False, ticks=False),
    )
    shades = alt.Color("shade:O", legend=None).scale(domain=[0, 1, 2, 3], range=["#e3eef7", "#c3dced", "#a3c9e2", "#83b6d7"])
    words = base.mark_text(fontSize=11, color=INK).encode(text="level:N")
    return (base.mark_rect(stroke="#ffffff", cornerRadius=3).encode(color=shades) + words).properties(
        width=82 * len(names), height=28 * len(rows)
    )


def _dots(stage: Searched, rows: Rows) -> Any:
    """All figures of some combinations."""
    import altair as alt

    values = [{"number": row["number"], "figure": name, "value": row[column]} for row in rows for column, name in stage.figures.items()]
    names = list(stage.figures.values())
    colours, shapes = (
        [NORMAL, ANOMALY, DISTURBING, TEACHER, STUDENT, QUIET],
        ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross"],
    )
    shown = dict(domain=names, range=[colours[place % 6] for place in range(len(names))])
    shape = dict(domain=names, range=[shapes[(place + place // 6) % 6] for place in range(len(names))])
    return (
        alt.Chart(table(values, "figures of the best"))
        .mark_point(filled=True, size=75, opacity=1)
        .encode(
            x=alt.X("value:Q", title=None).scale(zero=False),
            y=alt.Y("number:N", sort=[row["number"] for row in rows], title=None).axis(grid=True),
            color=alt.Color("figure:N", title=None).scale(**shown).legend(orient="right", direction="vertical", columns=1, labelLimit=220),
            shape=alt.Shape("figure:N", title=None).scale(**shape),
        )
        .properties(width=260, height=28 * len(rows))
    )


def _distribution(stage: Searched, column: str, width: int, height: int, mark: float | None = None, name: str | None = None) -> Any:
    import altair as alt

    values = np.array([row[column] for row in stage.rows], dtype=float)
    if mark is None:
        mark = max(stage.rows, key=lambda row: row[stage.quality])[column]
    counts, edges = np.histogram(values, bins=min(24, max(6, len(values) // 3)))
    bins = [{"from": low, "to": high, "combinations": count, "none": 0} for low, high, count in zip(edges, edges[1:], counts) if count]
    bars = alt.Chart(table(bins, f"distribution of {column}")).mark_rect(color=NORMAL, opacity=0.6).encode(
        x=alt.X("from:Q", title=name or stage.figures[column]).scale(zero=False).axis(tickCount=5), x2="to:Q",
        y=alt.Y("combinations:Q", title=None).axis(tickCount=4), y2="none:Q",
    )  # fmt: skip
    line = alt.Chart(table([{"chosen": mark}], f"the chosen, {column}")).mark_rule(color=ANOMALY, strokeWidth=2).encode(x="chosen:Q")
    return (bars + line).properties(width=width, height=height)


def _by_level(stage: Searched, factor: str) -> Any:
    """A panel for each figure: dots beside a bar for each level."""
    import altair as alt

    levels = _levels(stage, factor)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(stage.rows))
    panels = []
    for column, name in stage.figures.items():
        rows = [{"level": _text(row[factor]), "value": row[column], "aside": aside} for row, aside in zip(stage.rows, jitter)]
        base = alt.Chart(table(rows, column)).encode(x=alt.X("level:N", sort=levels, title=None).axis(labelAngle=0))
        y = alt.Y("value:Q", title=None).scale(zero=False).axis(tickCount=4)
        dots = base.mark_point(filled=True, size=14, color=NORMAL, opacity=0.4).encode(
            y=y, xOffset=alt.XOffset("aside:Q").scale(domain=[-1, 1])
        )
        bars = base.mark_bar(color=NORMAL, opacity=0.22, size=34).encode(y="q1(value):Q", y2="q3(value):Q")
        ticks = base.mark_tick(color=INK, thickness=2.5, size=34).encode(y="median(value):Q")
        panels.append((bars + dots + ticks).properties(width=max(64 * len(levels), 200), height=150, title=alt.Title(name, fontSize=13)))
    return wrapped(panels, 3)


def _before_after(full: Finished, size: int) -> Any:
    import altair as alt

    stage = full.stage
    rows = [
        {
            "number": row["number"],
            "quick": row[f"quick_{stage.quality}"],
            "full": row[stage.quality],
            "who": "best" if row["number"] == full.best else "others",
        }
        for row in stage.rows
    ]
    low, high = (function(value for row in rows for value in (row["quick"], row["full"])) for function in (min, max))
    who, name = ["best", "others"], stage.figures[stage.quality]
    scale, axis = alt.Scale(domain=[low, high], zero=False, nice=True), alt.Axis(tickCount=6)
    points = alt.Chart(table(rows, "combinations")).mark_point(filled=True, opacity=0.85).encode(
        x=alt.X("quick:Q", title=f"{name}, quick stage", scale=scale, axis=axis), y=alt.Y("full:Q", title=f"{name}, full stage", scale=scale, axis=axis),
        color=alt.Color("who:N", title=None).scale(domain=who, range=[ANOMALY, NORMAL]),
        shape=alt.Shape("who:N", title=None).scale(domain=who, range=["diamond", "circle"]),
        size=alt.condition("datum.who == 'others'", alt.value(55), alt.value(190)),
    )  # fmt: skip
    same = (
        alt.Chart(table([{"x": low, "y": low}, {"x": high, "y": high}], "nothing gained"))
        .mark_line(color=QUIET, strokeDash=[2, 4])
        .encode(x="x:Q", y="y:Q")
    )
    return (same + points).properties(width=size, height=0.8 * size)


def _levels(stage: Searched, factor: str) -> list[str]:
    """The levels of a factor as text, numbers in order."""
    values = {row[factor] for row in stage.rows}
    return [_text(value) for value in sorted(values, key=lambda value: (isinstance(value, str), value))]


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value).replace("_", " ")) if isinstance(value, bool) else str(value).replace("_", " ")


def _words(name: str) -> str:
    return name.replace("_", " ")
