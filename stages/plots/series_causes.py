"""Pictures of what the best model makes of each kind of window and of each kind of anomaly: found or missed, and by which of its two errors."""

from __future__ import annotations

import numpy as np

from stages.plots.series_figure import INK, Figure, beside, figure, table, wrapped
from stages.plots.series_model import GROUP, Scored, by_cause, kind_colour, kinds_of, quartiles, scatter, thinned, words
from stages.plots.series_palette import ANOMALY, NORMAL, QUIET, STUDENT, TEACHER


def figures(scored: Scored) -> list[Figure]:
    """The pictures that compare kinds of windows and of anomalies."""
    drawn = (sample_type_analysis, loss_by_anomaly_type, performance_by_anomaly_type, loss_scatter_by_anomaly_type, feature_contribution)
    return [draw(scored) for draw in drawn]


def sample_type_analysis(scored: Scored) -> Figure:
    """Alarms and median errors of each kind of window."""
    import altair as alt

    kinds = kinds_of(scored)
    alarms = [
        {"kind": kind, "alarms": scored.flagged[scored.kind == kind].mean(), "windows": int((scored.kind == kind).sum())} for kind in kinds
    ]
    base = alt.Chart(table(alarms, "alarms")).encode(y=alt.Y("kind:N", title=None, sort=kinds))
    bars = base.mark_bar().encode(
        x=alt.X("alarms:Q", title="windows with an alarm").axis(format="%", tickCount=5).scale(domain=[0, 1.12], nice=False),
        color=kind_colour(scored, None),
    )
    said = (
        base.transform_calculate(said="format(datum.alarms, '.1%') + ' of ' + format(datum.windows, ',')")
        .mark_text(align="left", dx=4)
        .encode(x="alarms:Q", text="said:N")
    )
    rows = [
        {
            "kind": kind,
            "part": name,
            "times": np.median(scored.part(name)[scored.kind == kind]) / max(np.median(scored.part(name)[scored.kind == kinds[0]]), 1e-12),
        }
        for kind in kinds
        for name in ("reconstruction", "discrepancy")
    ]
    parts = alt.Scale(domain=["reconstruction", "discrepancy"], range=[TEACHER, STUDENT])
    times = alt.Chart(table(rows, "errors")).mark_bar().encode(
        x=alt.X("times:Q", title=f"median error, times that of {kinds[0]} windows").axis(tickCount=6), y=alt.Y("kind:N", title=None, sort=kinds),
        yOffset="part:N",
        color=alt.Color("part:N", title=None, scale=parts),
    )  # fmt: skip
    return figure(
        GROUP, "sample_type_analysis", beside((bars + said).properties(width=360, height=150), times.properties(width=360, height=150)),
        "What each kind of window does to the model", f"Alarms at the threshold ({scored.policy}), and how far both errors rise",
    )  # fmt: skip


def loss_by_anomaly_type(scored: Scored) -> Figure:
    """Both errors of the anomalies, by cause, beside normal ones."""
    import altair as alt

    panels = []
    for name, part in (("reconstruction", TEACHER), ("discrepancy", STUDENT)):
        values = scored.part(name)
        groups = {cause: values[scored.anomalous & (scored.cause == cause)] for cause in scored.causes} | {
            "normal": values[~scored.anomalous]
        }
        rows = [{"cause": words(cause), "windows": len(chosen), **quartiles(chosen)} for cause, chosen in groups.items()]
        order = [row["cause"] for row in sorted(rows, key=lambda row: -row["middle"])]
        base = alt.Chart(table(rows, name)).encode(
            y=alt.Y("cause:N", title=None, sort=order).axis(labelLimit=180, grid=True),
            color=alt.condition("datum.cause == 'normal'", alt.value(NORMAL), alt.value(part)),
        )
        bars = base.mark_rule(strokeWidth=8, opacity=0.35).encode(
            x=alt.X("low:Q", title=f"{name} error (log)").scale(type="log"), x2="high:Q"
        )
        panels.append(
            (bars + base.mark_point(filled=True, size=80, opacity=1).encode(x="middle:Q")).properties(width=340, height=24 * len(rows))
        )
    return figure(
        GROUP, "loss_by_anomaly_type", beside(*panels), "How each kind of anomaly shows in the two errors",
        "Mark: the median window; bar: the middle half; blue: normal windows",
    )  # fmt: skip


def performance_by_anomaly_type(scored: Scored) -> Figure:
    """Recall at the threshold and AUC against normal windows, by cause."""
    import altair as alt

    rows = by_cause(scored)
    order = [row["cause"] for row in rows]
    base = alt.Chart(table(rows, "causes")).encode(y=alt.Y("cause:N", title=None, sort=order).axis(labelLimit=180))
    found = base.mark_bar(color=NORMAL, opacity=0.75).encode(
        x=alt.X("recall:Q", title="found at the threshold").axis(format="%", tickCount=5).scale(domain=[0, 1])
    )
    counts = base.mark_text(align="left", dx=4, fontSize=11).encode(x="recall:Q", text="said:N")
    left = (found + counts).properties(width=360, height=26 * len(rows))
    dots = base.mark_point(filled=True, size=90, color=ANOMALY, opacity=1).encode(
        x=alt.X("auc:Q", title="AUC against all normal windows").scale(zero=False),
        y=alt.Y("cause:N", title=None, sort=order).axis(labels=False, grid=True),
    )
    chance = alt.Chart(table([{"chance": 0.5}], "chance")).mark_rule(strokeDash=[2, 4], color=QUIET).encode(x="chance:Q")
    right = (chance + dots).properties(width=260, height=26 * len(rows))
    worst = rows[-1]
    return figure(
        GROUP, "performance_by_anomaly_type", beside(left, right), f"Hardest to find: {worst['cause']}",
        f"Share of windows of each kind with an alarm ({scored.policy}), and how well the score ranks them; dotted: chance",
    )  # fmt: skip


def loss_scatter_by_anomaly_type(scored: Scored) -> Figure:
    """The two errors, a panel for each cause."""
    panels = []
    rest = thinned(scored, 250)
    rest = rest[~scored.anomalous[rest]]
    for cause in scored.causes:
        places = np.concatenate([rest, np.flatnonzero(scored.anomalous & (scored.cause == cause))])
        panels.append(scatter(scored, places, 210, 150, words(cause)))
    return figure(
        GROUP, "loss_scatter_by_anomaly_type", wrapped(panels, 4), "Which error gives which kind of anomaly away",
        "Each mark is a window: anomalies of one kind before a sample of normal windows; filled: an alarm",
    )  # fmt: skip


def feature_contribution(scored: Scored) -> Figure:
    """Whose error it is, by cause; where an anomaly is said to move a variable, the square is framed."""
    import altair as alt

    error = np.square(scored.teacher - scored.window)[:, -scored.last :].mean(1)
    share = error / np.maximum(error.sum(1, keepdims=True), 1e-12)
    groups = {"normal": ~scored.anomalous} | {cause: scored.anomalous & (scored.cause == cause) for cause in scored.causes}
    rows = [
        {"cause": words(cause), "variable": name, "share": share[chosen, place].mean(), "moved": scored.moved[chosen, place].mean()}
        for cause, chosen in groups.items()
        for place, name in enumerate(scored.variables)
    ]
    base = alt.Chart(table(rows, "shares")).encode(
        x=alt.X("variable:N", title=None, sort=list(scored.variables)).axis(orient="top", labelAngle=-30, domain=False, ticks=False),
        y=alt.Y("cause:N", title=None, sort=[words(cause) for cause in groups]).axis(labelLimit=180, domain=False, ticks=False),
    )
    color = (
        alt.Color("share:Q", title="share of the teacher's error")
        .scale(scheme="oranges", domainMin=0)
        .legend(format=".0%", orient="bottom", gradientLength=220)
    )
    frame = base.transform_filter("datum.moved > 0.5").mark_rect(filled=False, stroke=INK, strokeWidth=2)
    ink = alt.condition("datum.share > 0.4", alt.value("#ffffff"), alt.value(INK))
    numbers = base.mark_text(fontSize=11).encode(text=alt.Text("share:Q", format=".0%"), color=ink)
    hits = share[scored.anomalous].argmax(1)
    hit = scored.moved[scored.anomalous][np.arange(len(hits)), hits].mean() if len(hits) else 0.0
    chart = (base.mark_rect(stroke="#ffffff").encode(color=color) + frame + numbers).properties(
        width=64 * len(scored.variables), height=28 * len(groups)
    )
    return figure(
        GROUP, "feature_contribution", chart, f"The variable with the largest error is a moved one in {hit:.0%} of anomalies",
        "Mean share of the error in the last steps; framed: variables that this kind of anomaly moves more often than not",
    )  # fmt: skip
