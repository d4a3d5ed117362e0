"""The charts of the report page for one data set of signals: plain data in, Vega-Lite specifications out.

Each is one view that takes the width of its place, from a telephone's 390 pixels up; ink and background come from the page, light or dark. A long
series is drawn as the peaks of equal stretches, so that no alarm disappears between two pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.plots.series_palette import ANOMALY, KINDS, NAMED, NORMAL, PARTS, QUIET

POINTS = 900  # of one line over time
BINS = 40
CURVE_POINTS = 20  # along each axis of a curve
EVENT_POINTS = 100  # of one variable around an event
Regions = Sequence[tuple[int, int, str]]  # start, stop (half-open), kind
OUTCOMES = ["found", "missed"]
SHAPES = ["circle", "square", "diamond", "triangle-up", "triangle-down"]
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4]]


def timeline(score: ArrayLike, regions: Regions, threshold: float | None) -> dict[str, Any]:
    """The score over the test steps, the true anomalies shaded, the deployable threshold dashed.

    score: (T,), raw. A region that reaches the threshold has a filled mark above it, one that was missed an open one. Where the highest peaks would
    flatten everything else the scale is symmetric-logarithmic, and the axis says so.
    """
    import altair as alt

    values = np.asarray(score, dtype=np.float64)
    axis = _score_axis(values, threshold)
    x = alt.X("step:Q", title="test step").axis(format="~s", tickCount=6).scale(domain=[0, len(values)], nice=False)
    y = alt.Y("score:Q", title=axis["title"], scale=axis["scale"], axis=axis["ticks"])
    line = alt.Chart(_rows(peaks(values))).mark_line(strokeWidth=1, color=NORMAL).encode(x=x, y=y)
    events = alt.Chart(_rows(outcomes(values, regions, threshold)))
    tooltip = ["kind:N", "from:Q", "to:Q", "outcome:N"]
    shades = events.mark_rect(color=ANOMALY, opacity=0.25).encode(x="from:Q", x2="to:Q", tooltip=tooltip)
    fill = alt.Fill("outcome:N", title="true anomaly").scale(domain=OUTCOMES, range=[ANOMALY, "transparent"])
    marks = events.mark_point(shape="triangle-down", size=40, stroke=ANOMALY, strokeWidth=1.2, opacity=1).encode(
        x="middle:Q", y=alt.value(-6), fill=fill.legend(orient="top", symbolStrokeColor=ANOMALY), tooltip=tooltip
    )
    layers = shades + line + marks
    return _spec(layers if threshold is None else layers + _limit(threshold), 190)


def peaks(score: ArrayLike, points: int = POINTS) -> list[dict[str, float]]:
    """The highest score of each of at most `points` equal stretches, at the step where it was reached. score: (T,)."""
    values = np.asarray(score, dtype=np.float64)
    starts = np.unique(np.linspace(0, len(values), min(points, len(values)), endpoint=False).astype(int))
    places = [start + int(np.argmax(part)) for start, part in zip(starts, np.split(values, starts[1:]))]
    return [{"step": place, "score": _short(values[place])} for place in places]


def outcomes(score: ArrayLike, regions: Regions, threshold: float | None) -> list[dict[str, Any]]:
    """Each region with its peak and whether it was found: one step at or above the threshold is enough. score: (T,)."""
    values, limit = np.asarray(score, dtype=np.float64), np.inf if threshold is None else threshold
    judged = []
    for start, stop, kind in regions:
        peak = float(values[start:stop].max())
        found = OUTCOMES[0] if peak >= limit else OUTCOMES[1]
        judged.append({"from": start, "to": stop, "middle": (start + stop) / 2, "kind": kind, "peak": _short(peak), "outcome": found})
    return judged


def intervals(rows: Sequence[Mapping[str, Any]], title: str, categories: Sequence[str]) -> dict[str, Any]:
    """One dot and one 95 % interval for each model and category; models from best to worst by their mean.

    rows: {"model", "category", "value", "low", "high", "control"}; low and high may be None; a control (random, max |z|) is drawn in grey.
    """
    import altair as alt

    models = _by_mean(rows)
    hue = (
        alt.Color("category:N", title=None)
        .scale(domain=list(categories), range=NAMED[: len(categories)])
        .legend(orient="top", symbolOpacity=1)
    )
    base = alt.Chart(_rows({**row, "control": bool(row.get("control"))} for row in rows if row["value"] is not None)).encode(
        y=alt.Y("model:N", title=None, sort=models).axis(labelLimit=150, grid=True, tickBand="extent"),
        yOffset=alt.YOffset("category:N", sort=list(categories)).scale(paddingOuter=0.35),
        color=alt.condition("datum.control", alt.value(QUIET), hue),
        tooltip=["model:N", "category:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high"))],
    )
    bars = base.mark_rule(strokeWidth=2, opacity=0.55).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    shape = alt.Shape("category:N", title=None).scale(domain=list(categories), range=SHAPES[: len(categories)])
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(x=alt.X("value:Q", title=title).scale(domainMin=0), shape=shape)
    return _spec(bars + dots, (12 * len(categories) + 8) * len(models))


def by_kind(cells: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """Share of each kind's events that each model found at its deployable threshold, in per cent, as a heat map.

    cells: {"model", "kind", "recall", "events"}; recall in 0..1 or None; models: in the order of the leaderboard. Kinds go from hardest to easiest.
    """
    import altair as alt

    known = [
        {**cell, "kind": cell["kind"].replace("_", " "), "percent": round(100 * cell["recall"])}
        for cell in cells
        if cell["recall"] is not None
    ]
    means = {kind: np.mean([cell["recall"] for cell in known if cell["kind"] == kind]) for kind in {cell["kind"] for cell in known}}
    y = alt.Y("kind:N", title=None, sort=sorted(means, key=lambda kind: (means[kind], kind))).axis(
        labelLimit=140, domain=False, ticks=False
    )
    x = alt.X("model:N", title=None, sort=list(models)).axis(orient="top", labelAngle=-90, labelLimit=150, domain=False, ticks=False)
    base = alt.Chart(_rows(known)).encode(x=x, y=y)
    color = (
        alt.Color("recall:Q", title="events found")
        .scale(domain=[0, 1], scheme="blues")
        .legend(orient="bottom", format=".0%", gradientLength=140)
    )
    boxes = base.mark_rect(cornerRadius=2).encode(
        color=color, tooltip=["model:N", "kind:N", alt.Tooltip("recall:Q", format=".1%"), "events:Q"]
    )
    ink = alt.condition("datum.recall > 0.55", alt.value("#ffffff"), alt.value("#1d2429"))
    return _spec(boxes + base.mark_text(fontSize=10).encode(text="percent:Q", color=ink), 22 * len(means))


def histogram(scores: Mapping[str, ArrayLike], threshold: float | None) -> dict[str, Any]:
    """Where normal, disturbing normal and anomalous steps score; each kind sums to its own 100 %. scores: kind of KINDS -> (n,) raw scores."""
    import altair as alt

    kinds = {kind: np.asarray(scores[kind], dtype=np.float64) for kind in KINDS if kind in scores and len(np.asarray(scores[kind]))}
    together = np.concatenate(list(kinds.values()))
    axis = _score_axis(together, threshold)
    edges = _edges(together, axis["bend"])
    bins = [
        {"kind": kind, "from": _short(low), "to": _short(high), "share": _short(count / len(values)), "steps": int(count), "none": 0}
        for kind, values in kinds.items()
        for low, high, count in zip(edges[:-1], edges[1:], np.histogram(values, edges)[0])
        if count
    ]
    color = alt.Color("kind:N", title=None).scale(domain=list(kinds), range=[KINDS[kind] for kind in kinds]).legend(orient="top")
    boxes = (
        alt.Chart(_rows(bins))
        .mark_rect(opacity=0.4)
        .encode(
            x=alt.X("from:Q", title=axis["title"], scale=axis["scale"], axis=axis["ticks"]), x2="to:Q", color=color,
            y=alt.Y("share:Q", title="share of its steps").axis(format="%", tickCount=5), y2="none:Q",
            tooltip=["kind:N", "from:Q", "to:Q", alt.Tooltip("share:Q", format=".2%"), "steps:Q"],
        )
    )  # fmt: skip
    tops = alt.Chart(_rows(bins)).mark_rule(strokeWidth=2).encode(x="from:Q", x2="to:Q", y="share:Q", color=color)
    return _spec(boxes + tops if threshold is None else boxes + tops + _limit(threshold, "x"), 200)


def curve_points(score: ArrayLike, label: ArrayLike) -> list[dict[str, Any]]:
    """ROC and precision-recall points of (T,) scores, evenly spaced along both axes; empty where a class is missing."""
    from stages.metrics.ranking import descending, tallies

    anomalous = np.asarray(label, dtype=bool)
    if anomalous.all() or not anomalous.any():
        return []
    order, first = descending(np.asarray(score, dtype=np.float64))
    found, alarms = (np.cumsum(counts) for counts in tallies(anomalous, order, first))
    recall, false_alarms = found / anomalous.sum(), alarms / (~anomalous).sum()
    kept = _along(recall, false_alarms)
    roc = [(0.0, 0.0), *zip(false_alarms[kept], recall[kept])]
    pr = list(zip(recall[kept], (found / (found + alarms))[kept]))
    return [
        {"curve": curve, "x": round(float(x), 4), "y": round(float(y), 4), "order": place}
        for curve, pairs in (("ROC", roc), ("PR", pr))
        for place, (x, y) in enumerate(pairs)
    ]


def curves(points: Sequence[Mapping[str, Any]], named: Sequence[str], curve: str, share: float) -> dict[str, Any]:
    """The "ROC" or the "PR" curves of all models. points: `curve_points` with "model"; named: those drawn in a colour, at most five, the best first.

    share: of anomalous steps, where the precision of chance lies.
    """
    import altair as alt

    widths = {model: 2.5 if model == named[0] else 1.8 for model in named}
    shown = [
        {
            **{name: point[name] for name in ("model", "x", "y", "order")},
            "row": point["model"] if point["model"] in named else "other rows",
            "width": widths.get(point["model"], 0.8),
        }
        for point in points
        if point["curve"] == curve
    ]
    across, up = ("false alarms / normal steps", "found / anomalous steps") if curve == "ROC" else ("recall of steps", "precision of steps")
    rest = 1 if any(point["row"] == "other rows" for point in shown) else 0
    rows, many = [*named, "other rows"][: len(named) + rest], len(named)
    unit = {"domain": [0, 1]}
    lines = (
        alt.Chart(_rows(shown))
        .mark_line()
        .encode(
            x=alt.X("x:Q", title=across).scale(**unit).axis(tickCount=5), y=alt.Y("y:Q", title=up).scale(**unit).axis(tickCount=5),
            color=alt.Color("row:N", title=None).scale(domain=rows, range=[*NAMED[:many], QUIET][: len(rows)]).legend(orient="top", columns=2, labelLimit=170),
            strokeWidth=alt.StrokeWidth("width:Q", scale=None, legend=None),
            strokeDash=alt.StrokeDash("row:N", title=None).scale(domain=rows, range=[*DASHES[:many], [1, 0]][: len(rows)]),
            detail="model:N", order="order:Q", tooltip=["model:N", alt.Tooltip("x:Q", format=".3f"), alt.Tooltip("y:Q", format=".3f")],
        )
    )  # fmt: skip
    chance = [{"x": 0, "y": 0}, {"x": 1, "y": 1}] if curve == "ROC" else [{"x": 0, "y": share}, {"x": 1, "y": share}]
    return _spec(alt.Chart(_rows(chance)).mark_line(color=QUIET, strokeDash=[2, 4], strokeWidth=1).encode(x="x:Q", y="y:Q") + lines, 250)


def parts(rows: Sequence[Mapping[str, Any]], title: str, categories: Sequence[str]) -> dict[str, Any]:
    """What each part of the masked autoencoder's score is worth alone and together. rows: {"category", "part" of PARTS, "value", "low", "high"}."""
    import altair as alt

    base = alt.Chart(_rows(row for row in rows if row["value"] is not None)).encode(
        y=alt.Y("category:N", title=None, sort=list(categories)), yOffset=alt.YOffset("part:N", sort=list(PARTS)),
        color=alt.Color("part:N", title=None).scale(domain=list(PARTS), range=list(PARTS.values())).legend(orient="top"),
        tooltip=["category:N", "part:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high"))],
    )  # fmt: skip
    widest = max((row["high"] or row["value"] for row in rows if row["value"] is not None), default=1.0)
    bars = base.mark_bar().encode(x=alt.X("value:Q", title=title).scale(domain=[0, 1.15 * widest], nice=False).axis(tickCount=5))
    whiskers = base.mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q", color=alt.value(QUIET))
    numbers = base.mark_text(align="left", baseline="middle", dx=4, fontSize=11).encode(
        x="reach:Q", text=alt.Text("value:Q", format=".3f"), color=alt.value(QUIET)
    )
    numbers = numbers.transform_calculate(reach="isValid(datum.high) ? max(datum.high, datum.value) : datum.value")
    return _spec(bars + whiskers + numbers, 66 * len(categories))


def telling_events(score: ArrayLike, regions: Regions, threshold: float) -> dict[str, tuple[int, int, str]]:
    """The region found with the highest peak as "found", the one missed with the lowest as "missed"; one may be absent. score: (T,)."""
    judged = outcomes(score, regions, threshold)
    sides = {side: [row for row in judged if row["outcome"] == side] for side in OUTCOMES}
    chosen = {side: (max if side == "found" else min)(rows, key=lambda row: row["peak"]) for side, rows in sides.items() if rows}
    return {side: (row["from"], row["to"], row["kind"]) for side, row in chosen.items()}


def event(
    values: ArrayLike,
    score: ArrayLike,
    attribution: ArrayLike | None,
    variables: Sequence[str],
    region: tuple[int, int],
    threshold: float,
    first: int = 0,
) -> dict[str, Any]:
    """One anomaly with what came before and after: the score on top, beneath it every variable with a strip of how much it adds to the score.

    values: (T, V), any unit: each is drawn between its own extremes. score: (T,). attribution: (T, V) >= 0, None where the model cannot say.
    region: start and stop of the true anomaly, counted like `first`, the step of the first row.
    """
    import altair as alt

    signals, scores = np.asarray(values, dtype=np.float64), np.asarray(score, dtype=np.float64)
    steps = np.unique(np.linspace(0, len(scores) - 1, min(EVENT_POINTS, len(scores))).astype(int))
    lines = [
        {"step": first + int(step), "row": row, "y": _short(row + 0.06 + 0.66 * (1 - level[step]))}
        for row, raw in enumerate([scores, *signals.T])
        for level in [_between_extremes(raw)]
        for step in steps
        if np.isfinite(raw[step])
    ]
    names = ["score", *variables]
    y = alt.Y("y:Q", title=None).scale(domain=[0, len(names)], reverse=True, nice=False)
    label = y.axis(
        values=[row + 0.4 for row in range(len(names))],
        labelExpr=f"{names}[floor(datum.value)]",
        grid=False,
        domain=False,
        ticks=False,
        labelLimit=110,
        tickCount=2 * len(names),
    )
    x = alt.X("step:Q", title="test step").scale(nice=False, zero=False).axis(tickCount=5, grid=False)
    truth = alt.Chart(_rows([{"from": region[0], "to": region[1]}])).mark_rect(color=ANOMALY, opacity=0.14).encode(x="from:Q", x2="to:Q")
    drawn = (
        alt.Chart(_rows(lines))
        .mark_line(strokeWidth=1.2, color=NORMAL)
        .encode(x=x, y=label, detail="row:N")
    )
    layers = truth + drawn
    if alarms := [row for row in lines if row["row"] == 0 and scores[row["step"] - first] > threshold]:
        layers += (
            alt.Chart(_rows(alarms))
            .mark_point(filled=True, size=14, color=ANOMALY, opacity=1)
            .encode(x="step:Q", y="y:Q")
        )
    return _spec(layers if attribution is None else layers + _strips(attribution, variables, steps, first), 34 * len(names))


def _strips(attribution: ArrayLike, variables: Sequence[str], steps: NDArray[np.intp], first: int) -> Any:
    """Each variable's share of the score, stretch by stretch, as colour below its signal."""
    import altair as alt

    weights = np.asarray(attribution, dtype=np.float64)
    bounds = steps[np.unique(np.linspace(0, len(steps) - 1, 41).astype(int))]
    cells = [
        {
            "from": first + int(low),
            "to": first + int(high),
            "top": variable + 1.78,
            "bottom": variable + 1.95,
            "name": name,
            "share": _short(share),
        }
        for low, high in itertools.pairwise(bounds)
        for total in [weights[low:high].sum()]
        for variable, name in enumerate(variables)
        for share in [weights[low:high, variable].sum() / total if total > 0 else 0.0]
    ]
    legend = alt.Legend(
        orient="top", format=".0%", values=[0.1, 0.4, 0.7, 1.0], symbolType="square", symbolFillColor=ANOMALY, symbolStrokeWidth=0
    )
    weight = alt.Opacity("share:Q", title="share of the score").scale(range=[0.05, 1], domain=[0, 1]).legend(legend)
    drawn = alt.Chart(_rows(cells)).mark_rect(color=ANOMALY)
    return drawn.encode(
        x="from:Q", x2="to:Q", y="top:Q", y2="bottom:Q", opacity=weight, tooltip=["name:N", alt.Tooltip("share:Q", format=".0%")]
    )


def _between_extremes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = np.nanmin(values), np.nanmax(values)
    return (values - low) / (high - low) if high > low else np.full_like(values, 0.5)


def _score_axis(values: NDArray[np.float64], threshold: float | None) -> dict[str, Any]:
    """Linear, or symmetric-logarithmic where the peaks are more than 15 times as far away as the bulk is wide."""
    import altair as alt

    low, middle, high, top = np.quantile(values, [0.0, 0.5, 0.95, 1.0])
    bulk = max(high, middle if threshold is None else threshold) - low
    if top - low <= 15 * bulk or bulk <= 0:
        return {"title": "score", "scale": alt.Scale(zero=False), "ticks": alt.Axis(), "bend": None}
    bend = float(_short(max(abs(middle), np.finfo(np.float32).tiny)))
    powers = 10.0 ** np.arange(np.ceil(np.log10(bend)), np.log10(max(abs(low), abs(top))) + 1e-9)
    ticks = [float(f"{sign * power:.1g}") for sign in (-1, 1) for power in powers if low <= sign * power <= top]
    axis = alt.Axis(values=sorted([0.0, *ticks]), format="~r", labelOverlap="greedy")
    return {"title": "score (log)", "scale": alt.Scale(type="symlog", constant=bend, nice=False), "ticks": axis, "bend": bend}


def _edges(values: NDArray[np.float64], bend: float | None) -> NDArray[np.float64]:
    """Of BINS bins that look equally wide on the axis of `_score_axis`."""
    low, high = float(values.min()), float(max(values.max(), values.min() + 1e-9))
    if bend is None:
        return np.linspace(low, high, BINS + 1)
    ends = np.sign([low, high]) * np.log1p(np.abs([low, high]) / bend)
    inner = np.linspace(*ends, BINS + 1)
    edges = np.sign(inner) * bend * np.expm1(np.abs(inner))
    edges[0], edges[-1] = low, high
    return edges


def _along(*axes: NDArray[np.float64]) -> NDArray[np.intp]:
    """Positions at which one of the rising quantities passes one of CURVE_POINTS equal steps, and both ends."""
    grid = np.linspace(0, 1, CURVE_POINTS)
    places = [np.minimum(np.searchsorted(axis, grid), len(axis) - 1) for axis in axes]
    return np.unique(np.concatenate([*places, [0, len(axes[0]) - 1]]))


def _by_mean(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    means = {row["model"]: [] for row in rows}
    for row in rows:
        means[row["model"]] += [row["value"]] if row["value"] is not None else []
    return sorted(means, key=lambda model: (-np.mean(means[model]) if means[model] else np.inf, model))


def _limit(threshold: float, channel: str = "y") -> Any:
    import altair as alt

    rule = alt.Chart(_rows([{"threshold": _short(threshold)}])).mark_rule(color=QUIET, strokeDash=[5, 3], strokeWidth=1.5)
    return rule.encode(**{channel: "threshold:Q"}, tooltip="threshold:Q")


def _rows(rows: Iterable[Mapping[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=list(rows))


def _short(value: float) -> float:
    """Four significant digits: what a picture can show."""
    return float(f"{value:.4g}")


def _spec(chart: Any, height: int) -> dict[str, Any]:
    """As wide as the page lets it be."""
    import altair as alt

    return chart.properties(width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")).to_dict(
        validate=False
    )
