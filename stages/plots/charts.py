"""The plots of the report as Vega-Lite specifications: plain data in, plain dicts out, drawn by the page itself.

Colours are Okabe and Ito's, which the colour-blind can tell apart; what is said by colour is said by shape, place or text as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

GOOD, BAD, HELD_OUT = "#0072B2", "#D55E00", "#7A8790"
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A8790", "#332288"]
COST_WIDTH, COST_HEIGHT, LETTER = 430, 280, 6.2  # pixels
PLACES = [  # of a name beside its point: alignment, pixels to the right and down
    ("center", 0, -13), ("center", 0, 14), ("right", -9, 0), ("left", 9, 0), ("right", -7, -12), ("right", -7, 13), ("left", 7, -12), ("left", 7, 13),
    ("center", 0, -26), ("center", 0, 27),
]  # fmt: skip
CURVE_POINTS = 80  # of one ROC or precision-recall curve; more cannot be seen


def cost_against_quality(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Image AUROC with its interval over milliseconds an image; the line joins the models that no other beats at both.

    rows: {"model", "latency_ms", "auroc", "low", "high", "tied"}.
    """
    import altair as alt

    front = [row["model"] for row in rows if not any(_beats(other, row) for other in rows)]
    places = _name_places([(row["latency_ms"], row["auroc"], len(row["model"])) for row in rows])
    data = alt.Data(values=[{**row, "front": row["model"] in front, "place": place} for row, place in zip(rows, places, strict=True)])
    x = alt.X("latency_ms:Q", title="milliseconds an image (log)").scale(type="log", nice=False, padding=35)
    base = alt.Chart(data).encode(x=x)
    quality = alt.Y("auroc:Q", title="image AUROC").scale(zero=False)
    line = base.transform_filter("datum.front").mark_line(strokeDash=[4, 3], color=HELD_OUT, interpolate="step-after").encode(y=quality)
    bars = base.mark_rule(color=HELD_OUT).encode(y=alt.Y("low:Q", title="image AUROC"), y2="high:Q")
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        y=quality,
        color=alt.Color("front:N", legend=None).scale(domain=[True, False], range=[GOOD, HELD_OUT]),
        shape=alt.Shape("front:N", legend=None).scale(domain=[True, False], range=["circle", "diamond"]),
        tooltip=["model:N", alt.Tooltip("auroc:Q", format=".3f"), alt.Tooltip("latency_ms:Q", format=".1f")],
    )
    names = base.encode(y=quality, text="model:N")
    chart = line + bars + points
    for place in sorted(set(places) - {None}):
        side, right, down = PLACES[place]
        chart += names.transform_filter(f"datum.place === {place}").mark_text(align=side, dx=right, dy=down)
    return _spec(chart, COST_HEIGHT)


def _name_places(rows: Sequence[tuple[float, float, int]]) -> list[int | None]:
    """For each model the first of PLACES where its name covers no name and no point, best models first; None where no room is
    left: pointing at the point shows it.

    rows: milliseconds, AUROC and letters of the name. Counted in pixels of a plot as narrow as the page makes it on a wide screen.
    """
    across, up = (np.asarray(values, dtype=float) for values in (np.log([row[0] for row in rows]), [row[1] for row in rows]))
    x = 35 + (COST_WIDTH - 70) * (across - across.min()) / max(float(np.ptp(across)), 1e-9)
    y = COST_HEIGHT * (up.max() - up) / max(float(np.ptp(up)), 1e-9)
    points = [(left - 5, left + 5, top - 8, top + 8) for left, top in zip(x, y, strict=True)]  # a name must not seem to be another's
    taken: list[tuple[float, ...]] = []
    found: list[int | None] = [None] * len(rows)
    for one in np.argsort(y, kind="stable"):
        wide = LETTER * rows[one][2]
        for place, (side, right, down) in enumerate(PLACES):
            left = x[one] + right - {"left": 0, "center": wide / 2, "right": wide}[side]
            box = (left, left + wide, y[one] + down - 6, y[one] + down + 6)
            others = [*taken, *points[:one], *points[one + 1 :]]
            if 0 <= box[0] and box[1] <= COST_WIDTH and not any(_overlap(box, other) for other in others):
                taken.append(box)
                found[one] = place
                break
    return found


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _beats(other: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    at_least = other["latency_ms"] <= row["latency_ms"] and other["auroc"] >= row["auroc"]
    return at_least and (other["latency_ms"] < row["latency_ms"] or other["auroc"] > row["auroc"])


def by_category(cells: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """Image AUROC of each model on each category. cells: {"model", "category", "auroc"}; models: in the order of the leaderboard."""
    import altair as alt

    base = alt.Chart(alt.Data(values=list(cells))).encode(
        x=alt.X("category:N", title=None).axis(labelAngle=-30, orient="top"), y=alt.Y("model:N", title=None, sort=list(models))
    )
    boxes = base.mark_rect(cornerRadius=3).encode(
        color=alt.Color("auroc:Q", title="image AUROC").scale(domain=[0.5, 1.0], clamp=True, scheme="blues"),
        tooltip=["model:N", "category:N", alt.Tooltip("auroc:Q", format=".3f")],
    )
    numbers = base.mark_text().encode(
        text=alt.Text("auroc:Q", format=".2f"), color=alt.condition("datum.auroc > 0.8", alt.value("#ffffff"), alt.value("#1d2429"))
    )
    return _spec(boxes + numbers, 60 + 30 * len(models))


def scores(good: Sequence[float], bad: Sequence[float], held_out: Sequence[float], thresholds: Mapping[str, float]) -> dict[str, Any]:
    """Histograms of one category's scores. The threshold of the explorer is the parameter `threshold`, a line that the page moves."""
    import altair as alt

    kinds = (("good, test", good), ("bad, test", bad), ("good, held out of training", held_out))
    everything = np.concatenate([np.asarray(values, dtype=float) for _, values in kinds])
    edges = np.linspace(everything.min(), max(everything.max(), everything.min() + 1e-9), 41)
    bins = [
        {"kind": kind, "from": float(low), "to": float(high), "share": float(count / len(values)), "none": 0}
        for kind, values in kinds
        if len(values)
        for low, high, count in zip(edges[:-1], edges[1:], np.histogram(values, edges)[0], strict=True)
        if count
    ]
    color = alt.Color("kind:N", title=None).scale(domain=[kind for kind, _ in kinds], range=[GOOD, BAD, HELD_OUT])
    histogram = (
        alt.Chart(alt.Data(values=bins))
        .mark_rect(opacity=0.6)
        .encode(
            x=alt.X("from:Q", title="image score").scale(zero=False), x2="to:Q",
            y=alt.Y("share:Q", title="share of its images").axis(format="%"), y2="none:Q",
            color=color.legend(orient="top", labelLimit=400),
        )
    )  # fmt: skip
    marks = alt.Chart(alt.Data(values=[{"at": value, "name": name} for name, value in thresholds.items()]))
    lines = marks.mark_rule(strokeDash=[3, 3], color=HELD_OUT).encode(x="at:Q", tooltip=["name:N", alt.Tooltip("at:Q", format=".4g")])
    moving = alt.param(name="threshold", value=next(iter(thresholds.values()), float(edges[20])))
    line = alt.Chart(alt.Data(values=[{}])).transform_calculate(at="threshold").mark_rule(strokeWidth=2.5, color="#CC79A7").encode(x="at:Q")
    return _spec((histogram + lines + line).add_params(moving), 220)


def curves(points: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """ROC and precision-recall curves side by side. points: {"model", "curve": "ROC" | "PR", "x", "y", "order"}."""
    import altair as alt

    def panel(curve: str, across: str, up: str) -> alt.Chart:
        return (
            alt.Chart(alt.Data(values=_columns(point for point in points if point["curve"] == curve)))
            .transform_flatten(["x", "y"])
            .mark_line(interpolate="linear")
            .encode(
                x=alt.X("x:Q", title=across).scale(domain=[0, 1]).axis(tickCount=5), y=alt.Y("y:Q", title=up).scale(domain=[0, 1]),
                order=alt.OrderValue(None),  # as the points come
                color=alt.Color("model:N", title=None, sort=list(models)).scale(range=PALETTE).legend(orient="bottom", columns=4),
                strokeDash=alt.StrokeDash("model:N", title=None, sort=list(models), legend=None),
                tooltip=["model:N", alt.Tooltip("x:Q", format=".3f"), alt.Tooltip("y:Q", format=".3f")],
            )
            .properties(width=290, height=240, title=curve)
        )  # fmt: skip

    roc, recall = panel("ROC", "false alarms / good", "found / bad"), panel("PR", "found / bad (recall)", "bad / called bad (precision)")
    return alt.hconcat(roc, recall).to_dict(validate=False)


def _columns(points: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each model with all of its x and all of its y: a quarter of the bytes that a row for each point takes on the page."""
    columns: dict[str, dict[str, Any]] = {}
    for point in points:
        own = columns.setdefault(point["model"], {"model": point["model"], "x": [], "y": []})
        own["x"].append(point["x"]), own["y"].append(point["y"])
    return list(columns.values())


def _spec(chart: Any, height: Any) -> dict[str, Any]:
    """As wide as the page lets it be."""
    import altair as alt

    return chart.properties(width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")).to_dict(
        validate=False
    )


def curve_points(score: np.ndarray, label: np.ndarray) -> list[dict[str, Any]]:
    """ROC and precision-recall points of (N,) scores, thinned to CURVE_POINTS; empty where a class is missing."""
    from stages.metrics.ranking import descending, tallies

    anomalous = np.asarray(label, dtype=bool)
    if anomalous.all() or not anomalous.any():
        return []
    order, first = descending(np.asarray(score, dtype=np.float64))
    found, alarms = (np.cumsum(counts) for counts in tallies(anomalous, order, first))
    recall, false_alarms = found / anomalous.sum(), alarms / (~anomalous).sum()
    precision = found / (found + alarms)
    kept = np.unique(np.linspace(0, len(found) - 1, CURVE_POINTS).astype(int))
    roc = [(0.0, 0.0), *zip(false_alarms[kept], recall[kept], strict=True)]
    pairs = {"ROC": roc, "PR": list(zip(recall[kept], precision[kept], strict=True))}
    return [
        {"curve": curve, "x": round(float(x), 4), "y": round(float(y), 4), "order": place}
        for curve, both in pairs.items()
        for place, (x, y) in enumerate(both)
    ]
