"""The charts of the report page for one data set of records: plain data in, Vega-Lite specifications out.

Each is one view that takes the width of its place, from a telephone's 390 pixels up; ink and background come from the page, light or dark. Colours are
those of the other tasks: blue is what speaks for normal, red what speaks for an anomaly, grey is a control or a reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stages.plots.series_palette import ANOMALY, NAMED, NORMAL, QUIET

FEW_FAULTS = 9  # whose names have room to slant
SHAPES = ["circle", "square", "diamond", "triangle-up", "triangle-down"]
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4]]
KINDS = {"supervised": NORMAL, "unsupervised": NAMED[3], "control": QUIET}
KIND_SHAPES = ["circle", "square", "diamond"]
QUANTILES = {"least": 0.05, "low": 0.25, "middle": 0.5, "high": 0.75, "most": 0.95}
MOST_BINS = 8
BESIDE = 0.13  # modalities, between the dots of two rows at the same number of modalities


def ranking(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One dot and one 95 % interval for each model, best first. rows: {"model", "value", "low", "high", "kind" of KINDS}, ranked."""
    import altair as alt

    known = [row for row in rows if row["value"] is not None]
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in known)]
    hue = {"domain": kinds, "range": [KINDS[kind] for kind in kinds]}
    base = alt.Chart(values_of(known)).encode(
        y=alt.Y("model:N", title=None, sort=[row["model"] for row in known]).axis(labelLimit=150, grid=True, tickBand="extent"),
        color=alt.Color("kind:N", title=None).scale(**hue).legend(orient="top", columns=2),
        tooltip=["model:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("value", "low", "high"))],
    )
    scale = alt.Scale(domain=[_floor(row["low"] for row in known), 1], nice=False)
    x = {"title": "ROC AUC", "scale": scale, "axis": alt.Axis(tickCount=5)}
    half = alt.Chart(values_of([{"half": 0.5}])).mark_rule(color=QUIET, strokeDash=[2, 4]).encode(x=alt.X("half:Q", **x))
    bars = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2, opacity=0.55).encode(x=alt.X("low:Q", **x), x2="high:Q")
    shape = alt.Shape("kind:N", title=None).scale(domain=kinds, range=KIND_SHAPES[: len(kinds)])
    return specification(
        half + bars + base.mark_point(filled=True, size=60, opacity=1).encode(x=alt.X("value:Q", **x), shape=shape), 24 * len(known)
    )


def missing(rows: Sequence[Mapping[str, Any]], named: Sequence[str]) -> dict[str, Any]:
    """AUROC against how many modalities are there: a dot for each subset of them, a line through their means for each model.

    rows: {"model", "modalities" ("image+text"), "present", "roc_auc"}; named: the models drawn, at most five, in the order of the legend.
    """
    import altair as alt

    known = [row for row in rows if row["model"] in named and row["roc_auc"] is not None]
    spread = {model: BESIDE * (place - (len(named) - 1) / 2) for place, model in enumerate(named)}
    dots = [
        {
            "model": row["model"],
            "modalities": row["modalities"],
            "roc_auc": short(row["roc_auc"]),
            "at": round(row["present"] + spread[row["model"]], 3),
        }
        for row in known
    ]
    at_each: dict[tuple[str, int], list[float]] = {}
    for row in known:
        at_each.setdefault((row["model"], row["present"]), []).append(row["roc_auc"])
    means = [{"model": model, "at": round(present + spread[model], 3), "mean": mean_of(areas)} for (model, present), areas in at_each.items()]
    most = max((row["present"] for row in known), default=1)
    x = (
        alt.X("at:Q", title="modalities present")
        .scale(domain=[0.5, most + 0.5], nice=False)
        .axis(values=list(range(1, most + 1)), format="d", grid=False)
    )
    y = {"scale": alt.Scale(domain=[_floor(row["roc_auc"] for row in known), 1], nice=False)}
    color = alt.Color("model:N", title=None).scale(domain=list(named), range=NAMED[: len(named)])
    legend = color.legend(orient="top", columns=2, labelLimit=170)
    shape = alt.Shape("model:N", title=None).scale(domain=list(named), range=SHAPES[: len(named)])
    tooltip = ["model:N", "modalities:N", alt.Tooltip("roc_auc:Q", format=".3f")]
    points = alt.Chart(values_of(dots)).mark_point(filled=True, size=26, opacity=0.45).encode(
        x=x, y=alt.Y("roc_auc:Q", title="ROC AUC", **y), color=legend, shape=shape, tooltip=tooltip
    )  # fmt: skip
    dash = alt.StrokeDash("model:N", title=None).scale(domain=list(named), range=DASHES[: len(named)])
    lines = (
        alt.Chart(values_of(means))
        .mark_line(strokeWidth=2.4)
        .encode(x=x, y=alt.Y("mean:Q", title="ROC AUC", **y), color=legend, strokeDash=dash)
    )
    return specification(points + lines, 300)


def subsets(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> dict[str, Any]:
    """Every subset of the modalities with the AUROC of one model on it, best first: above, the AUROC with its interval; below, filled what was given.

    rows: {"modalities" ("image+text"), "roc_auc", "low", "high"}; modalities: all, in their order.
    """
    import altair as alt

    ranked = sorted((row for row in rows if row["roc_auc"] is not None), key=lambda row: -row["roc_auc"])
    floor = _floor(row["low"] if row.get("low") is not None else row["roc_auc"] for row in ranked)
    step = (1 - floor) / (1.4 * len(modalities))  # the dots below take about the height of the intervals above
    low = {name: floor - step * (place + 1) for place, name in enumerate(modalities)}
    given = [
        {"place": place, "y": round(low[name], 4), "given": name in row["modalities"].split("+")}
        for place, row in enumerate(ranked)
        for name in modalities
    ]
    figures = ("roc_auc", "low", "high")
    bars = [
        {"place": place, "modalities": row["modalities"], **{name: None if row[name] is None else short(row[name]) for name in figures}}
        for place, row in enumerate(ranked)
    ]
    ticks = [value / 10 for value in range(10) if value / 10 >= floor] + [1.0]
    label = (
        f"datum.value < {floor - step / 2} ? {list(modalities)}[round(({floor} - datum.value) / {step}) - 1] : format(datum.value, '.1f')"
    )
    axis = alt.Axis(values=[*low.values(), *ticks], labelExpr=label, grid=False, domain=False, ticks=False, labelLimit=70)
    y = {"title": None, "axis": axis, "scale": alt.Scale(domain=[floor - step * (len(modalities) + 0.7), 1.005], nice=False)}
    x = alt.X("place:Q", axis=None).scale(domain=[-0.7, len(ranked) - 0.3], nice=False)
    tooltip = ["modalities:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in figures)]
    above = alt.Chart(values_of(bars)).encode(x=x, tooltip=tooltip)
    rules = above.mark_rule(strokeWidth=2, opacity=0.5, color=NORMAL).encode(y=alt.Y("low:Q", **y), y2="high:Q")
    points = above.mark_point(filled=True, size=34, opacity=1, color=NORMAL).encode(y=alt.Y("roc_auc:Q", **y))
    fill = alt.condition("datum.given", alt.value(NORMAL), alt.value("transparent"))
    dots = alt.Chart(values_of(given)).mark_point(size=32, strokeWidth=1, stroke=QUIET, opacity=0.9)
    below = dots.encode(x=x, y=alt.Y("y:Q", **y), fill=fill)
    grid = alt.Chart(values_of([{"at": value} for value in ticks])).mark_rule(color=QUIET, opacity=0.25).encode(y=alt.Y("at:Q", **y))
    return specification(grid + rules + points + below, 330)


def by_fault(cells: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """AUROC of each model for each fault against all normal records, in hundredths, as a heat map; the hardest fault first.

    cells: {"model", "fault", "roc_auc" or None, "records"}; models: in the order of the leaderboard.
    """
    import altair as alt

    known = [
        {
            "model": cell["model"],
            "fault": words(cell["fault"]),
            "roc_auc": short(cell["roc_auc"]),
            "percent": round(100 * cell["roc_auc"]),
            "records": int(cell["records"]),
        }
        for cell in cells
        if cell["roc_auc"] is not None
    ]
    means = {fault: mean_of(cell["roc_auc"] for cell in known if cell["fault"] == fault) for fault in {cell["fault"] for cell in known}}
    hardest = sorted(means, key=lambda fault: (means[fault], fault))
    label = {"labelAngle": -90, "labelLimit": 230} if len(hardest) > FEW_FAULTS else {"labelAngle": -45, "labelLimit": 110}  # slanting, the last would be cut
    x = alt.X("fault:N", title=None, sort=hardest).axis(orient="top", domain=False, ticks=False, **label)
    y = alt.Y("model:N", title=None, sort=list(models)).axis(labelLimit=150, domain=False, ticks=False)
    base = alt.Chart(values_of(known)).encode(x=x, y=y)
    color = alt.Color("roc_auc:Q", title="ROC AUC").scale(domain=[0.5, 1], clamp=True, scheme="blues")
    color = color.legend(orient="bottom", format=".1f", gradientLength=140, tickCount=3)
    boxes = base.mark_rect(cornerRadius=2).encode(
        color=color, tooltip=["model:N", "fault:N", alt.Tooltip("roc_auc:Q", format=".3f"), "records:Q"]
    )
    ink = alt.condition("datum.roc_auc > 0.78", alt.value("#ffffff"), alt.value("#1d2429"))
    return specification(boxes + base.mark_text(fontSize=10).encode(text="percent:Q", color=ink), 22 * len(models))


def reliability(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of anomalous records against the probability that was given, before and after the temperature; on the diagonal both agree.

    before, after: bins {"predicted", "observed", "records"}.
    """
    import altair as alt

    names = ["as learnt", "with temperature"]
    before, after = _merged(before), _merged(after)
    rows = [{"which": which, **bin} for which, bins in zip(names, (before, after), strict=True) for bin in bins]
    unit = {"domain": [0, 1]}
    diagonal = (
        alt.Chart(values_of([{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
        .mark_line(color=QUIET, strokeDash=[2, 4], strokeWidth=1)
        .encode(x="x:Q", y="y:Q")
    )
    hue = alt.Color("which:N", title=None).scale(domain=names, range=[QUIET, NORMAL]).legend(orient="top")
    shape = alt.Shape("which:N", title=None).scale(domain=names, range=["diamond", "circle"])
    base = alt.Chart(values_of(rows)).encode(
        x=alt.X("predicted:Q", title="probability given").scale(**unit).axis(tickCount=5),
        y=alt.Y("observed:Q", title="share anomalous").scale(**unit).axis(tickCount=5),
        color=hue, tooltip=["which:N", alt.Tooltip("predicted:Q", format=".2f"), alt.Tooltip("observed:Q", format=".2f"), "records:Q"],
    )  # fmt: skip
    dash = alt.StrokeDash("which:N", title=None).scale(domain=names, range=[[3, 3], [1, 0]])
    lines = base.mark_line(strokeWidth=1.6).encode(strokeDash=dash, order="predicted:Q")
    sizes = alt.Size("records:Q", legend=None).scale(range=[30, 180])
    return specification(diagonal + lines + base.mark_point(filled=True, opacity=0.9).encode(shape=shape, size=sizes), 260)


def contribution(values: Mapping[str, float | None]) -> dict[str, Any]:
    """What each modality of one record adds to its logit: red speaks for an anomaly, blue for normal; None where the record lacks it."""
    import altair as alt

    widest = max((abs(value) for value in values.values() if value is not None), default=0.0) or 1.0
    rows = [
        {
            "modality": name,
            "value": short(value or 0.0),
            "none": 0,
            "side": "normal" if (value or 0.0) < 0 else "anomalous",
            "said": "missing" if value is None else f"{value:+.2f}",
        }
        for name, value in values.items()
    ]
    base = alt.Chart(values_of(rows)).encode(
        y=alt.Y("modality:N", title=None, sort=list(values)).axis(domain=False, ticks=False, labelLimit=80)
    )
    x = alt.X("value:Q", title="added to the logit").scale(domain=[-1.45 * widest, 1.45 * widest], nice=False).axis(tickCount=5, grid=False)
    color = alt.Color("side:N", legend=None).scale(domain=["normal", "anomalous"], range=[NORMAL, ANOMALY])
    bars = base.mark_bar(height=13, cornerRadius=2).encode(x=x, x2="none:Q", color=color)
    zero = alt.Chart(values_of([{"at": 0}])).mark_rule(color=QUIET).encode(x="at:Q")
    right = base.transform_filter("datum.value >= 0").mark_text(align="left", dx=5, fontSize=11, color=QUIET)
    left = base.transform_filter("datum.value < 0").mark_text(align="right", dx=-5, fontSize=11, color=QUIET)
    return specification(bars + zero + right.encode(x=x, text="said:N") + left.encode(x=x, text="said:N"), 24 * len(rows))


def spreads(values: Mapping[str, np.ndarray], anomalous: np.ndarray) -> dict[str, Any]:
    """What each modality adds to the logit over many records: median, middle half and middle nine tenths, for normal and anomalous ones.

    values: by modality (N,), NaN where a record lacks it. anomalous: (N,) bool.
    """
    import altair as alt

    kinds = {"normal": (NORMAL, ~anomalous), "anomalous": (ANOMALY, anomalous)}
    rows = []
    for name, of in values.items():
        for kind, (_, chosen) in kinds.items():
            own = of[chosen & np.isfinite(of)]
            if len(own):
                found = dict(zip(QUANTILES, map(short, np.quantile(own, list(QUANTILES.values())))))
                rows.append({"modality": name, "kind": kind, **found, "records": len(own)})
    hue = alt.Color("kind:N", title=None).scale(domain=list(kinds), range=[color for color, _ in kinds.values()]).legend(orient="top")
    tooltip = ["modality:N", "kind:N", *(alt.Tooltip(f"{name}:Q", format="+.2f") for name in QUANTILES), "records:Q"]
    base = alt.Chart(values_of(rows)).encode(
        y=alt.Y("modality:N", title=None, sort=list(values)).axis(labelLimit=80, grid=True, tickBand="extent", domain=False, ticks=False),
        yOffset=alt.YOffset("kind:N", sort=list(kinds)).scale(paddingOuter=0.4), color=hue, tooltip=tooltip,
    )  # fmt: skip
    x = alt.X("least:Q", title="added to the logit").axis(tickCount=5)
    zero = alt.Chart(values_of([{"at": 0}])).mark_rule(color=QUIET, strokeDash=[2, 4]).encode(x="at:Q")
    shape = alt.Shape("kind:N", title=None).scale(domain=list(kinds), range=["circle", "diamond"])
    thin = base.mark_rule(strokeWidth=1.2, opacity=0.7).encode(x=x, x2="most:Q")
    thick = base.mark_rule(strokeWidth=6, opacity=0.35).encode(x="low:Q", x2="high:Q")
    return specification(zero + thin + thick + base.mark_point(filled=True, size=48, opacity=1).encode(x="middle:Q", shape=shape), 38 * len(values))


def experts(usage: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Share of the latents that each expert of each layer is given. usage: (layers, E), each row sums to 1; an even share is 1 / E."""
    import altair as alt

    even = 1 / len(usage[0])
    rows = [
        {"layer": f"layer {layer + 1}", "expert": str(number + 1), "share": short(share), "percent": round(100 * share)}
        for layer, shares in enumerate(usage) for number, share in enumerate(shares)
    ]  # fmt: skip
    base = alt.Chart(values_of(rows)).encode(
        x=alt.X("expert:N", title="expert").axis(labelAngle=0, domain=False, ticks=False),
        y=alt.Y("layer:N", title=None).axis(domain=False, ticks=False),
    )
    color = (
        alt.Color("share:Q", title=None).scale(domain=[0, even, 2 * even], range=["#F2F4F5", "#9FC5D8", NORMAL], clamp=True).legend(None)
    )
    boxes = base.mark_rect(cornerRadius=3).encode(color=color, tooltip=["layer:N", "expert:N", alt.Tooltip("share:Q", format=".1%")])
    ink = alt.condition(f"datum.share > {1.6 * even}", alt.value("#ffffff"), alt.value("#1d2429"))
    return specification(
        boxes + base.transform_calculate(said="datum.percent + ' %'").mark_text(fontSize=11).encode(text="said:N", color=ink),
        40 * len(usage) + 20,
    )


def _merged(bins: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Neighbours put together until there are at most MOST_BINS: fewer records than that a bin say nothing that could be seen."""
    parts = np.array_split(np.arange(len(bins)), min(MOST_BINS, len(bins))) if bins else []
    found = []
    for part in parts:
        records = [bins[place]["records"] for place in part]
        means = {name: short(np.average([bins[place][name] for place in part], weights=records)) for name in ("predicted", "observed")}
        found.append(means | {"records": int(sum(records))})
    return found


def _floor(values: Iterable[float | None]) -> float:
    """The tenth below the lowest of some AUROCs, at most one half: where an axis begins."""
    return min(0.5, int(10 * min((value for value in values if value is not None), default=0.5)) / 10)


def mean_of(values: Iterable[float]) -> float:
    return short(float(np.mean(list(values))))


def words(name: str) -> str:
    return name.replace("_", " ")


def short(value: float) -> float:
    """Four significant digits: what a picture can show."""
    return float(f"{value:.4g}")


def values_of(rows: Iterable[Mapping[str, Any]]) -> Any:
    import altair as alt

    return alt.Data(values=list(rows))


def specification(chart: Any, height: int) -> dict[str, Any]:
    """As wide as the page lets it be."""
    import altair as alt

    return chart.properties(width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")).to_dict(
        validate=False
    )
