"""The charts of the report page for a data set of records with kinds of fault: what is taken for what, F1 of each class, and how a network learnt.

Made as those of `record_charts`, whose colours and sizes they share.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from stages.plots.record_charts import DASHES, SHAPES, mean_of, short, specification, values_of, words
from stages.plots.series_palette import NAMED

MOST_MODELS = 5  # whose learning is drawn
MOST_POINTS = 120  # of one curve
WIDTH = 340  # pixels of one panel of a picture
LABEL = 230  # pixels of a class's name above a column; beside a row a telephone has less room
PARTS = ["training", "validation"]


def confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """How many records of each class (a row) were said to be of each (a column); coloured by their share of the row. counts: (D, D)."""
    import altair as alt

    rows = [
        {"is": words(true), "told": words(told), "records": int(count), "share": short(count / max(sum(own), 1)), "right": true == told}
        for true, own in zip(names, counts, strict=True)
        for told, count in zip(names, own, strict=True)
    ]
    order = [words(name) for name in names]
    x = alt.X("told:N", title="told", sort=order).axis(orient="top", labelAngle=-90, labelLimit=LABEL, domain=False, ticks=False)
    y = alt.Y("is:N", title="is", sort=order).axis(labelLimit=130, domain=False, ticks=False)
    base = alt.Chart(values_of(rows)).encode(x=x, y=y)
    color = alt.Color("share:Q", title="share of the class").scale(domain=[0, 1], scheme="blues")
    color = color.legend(orient="bottom", format=".0%", gradientLength=140, tickCount=3)
    boxes = base.mark_rect(cornerRadius=2).encode(color=color, tooltip=["is:N", "told:N", "records:Q", alt.Tooltip("share:Q", format=".0%")])
    ink = alt.condition("datum.share > 0.55", alt.value("#ffffff"), alt.value("#1d2429"))
    text = base.transform_filter("datum.records > 0").mark_text(fontSize=10).encode(text="records:Q", color=ink)
    return specification(boxes + text, 24 * len(names))


def by_class(cells: Sequence[Mapping[str, Any]], models: Sequence[str]) -> dict[str, Any]:
    """F1 of each model for each class, in hundredths; the hardest class first. cells: {"model", "class", "f1" or None, "records"}."""
    import altair as alt

    known = [
        {"model": cell["model"], "class": words(cell["class"]), "f1": short(cell["f1"]), "percent": round(100 * cell["f1"]), "records": int(cell["records"])}
        for cell in cells
        if cell["f1"] is not None
    ]
    means = {name: mean_of(cell["f1"] for cell in known if cell["class"] == name) for name in {cell["class"] for cell in known}}
    hardest = sorted(means, key=lambda name: (means[name], name))
    x = alt.X("class:N", title=None, sort=hardest).axis(orient="top", labelAngle=-90, labelLimit=LABEL, domain=False, ticks=False)
    y = alt.Y("model:N", title=None, sort=list(models)).axis(labelLimit=150, domain=False, ticks=False)
    base = alt.Chart(values_of(known)).encode(x=x, y=y)
    color = alt.Color("f1:Q", title="F1").scale(domain=[0, 1], scheme="blues")
    color = color.legend(orient="bottom", format=".1f", gradientLength=140, tickCount=3)
    boxes = base.mark_rect(cornerRadius=2).encode(
        color=color, tooltip=["model:N", "class:N", alt.Tooltip("f1:Q", format=".3f"), "records:Q"]
    )
    ink = alt.condition("datum.f1 > 0.55", alt.value("#ffffff"), alt.value("#1d2429"))
    return specification(boxes + base.mark_text(fontSize=10).encode(text="percent:Q", color=ink), 22 * len(models))


def learning(rows: Sequence[Mapping[str, Any]], what: str) -> dict[str, Any]:
    """One quantity of training (a dashed line) and of validation (a full one) against the epoch, for each model; a mark where the kept state was reached.

    rows: {"model", "epoch", "train" or None, "val" or None, "kept" bool}; what: the name of the quantity.
    """
    import altair as alt

    models = list(dict.fromkeys(row["model"] for row in rows))[:MOST_MODELS]
    points = [
        {"model": model, "part": part, "epoch": row["epoch"], "value": short(row[key])}
        for model in models
        for row in _thin([row for row in rows if row["model"] == model])
        for part, key in zip(PARTS, ("train", "val"), strict=True)
        if row[key] is not None
    ]
    kept = [
        {"model": row["model"], "epoch": row["epoch"], "value": short(row["val"])}
        for row in rows
        if row["kept"] and row["val"] is not None and row["model"] in models
    ]
    color = alt.Color("model:N", title=None).scale(domain=models, range=NAMED[: len(models)]).legend(orient="top", columns=2, labelLimit=170)
    dash = alt.StrokeDash("part:N", title=None).scale(domain=PARTS, range=[DASHES[2], DASHES[0]]).legend(orient="bottom")
    x, y = alt.X("epoch:Q", title="epoch").axis(tickMinStep=1, format="d"), alt.Y("value:Q", title=what)
    tooltip = ["model:N", "part:N", "epoch:Q", alt.Tooltip("value:Q", format=".3f")]
    lines = alt.Chart(values_of(points)).mark_line(strokeWidth=1.8).encode(x=x, y=y, color=color, strokeDash=dash, tooltip=tooltip)
    shape = alt.Shape("model:N", title=None).scale(domain=models, range=SHAPES[: len(models)])
    marks = alt.Chart(values_of(kept)).mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=color, shape=shape, tooltip=tooltip[0::2])
    return specification(lines + marks if kept else lines, 260)


def picture(panels: Mapping[str, Sequence[Mapping[str, Any]]], said: str) -> bytes:
    """The SVG of `learning` of several quantities beside each other, for a page of text. panels: by quantity its rows; said: what it shows, in words."""
    import vl_convert

    each = [{key: value for key, value in learning(rows, what).items() if key not in ("autosize", "$schema", "config")} for what, rows in panels.items()]
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "#ffffff",
        "config": {"view": {"stroke": None}, "axis": {"gridColor": "#dde3e7"}},
        "hconcat": [one | {"width": WIDTH, "title": {"text": what, "anchor": "start"}} for what, one in zip(panels, each, strict=True)],
    }
    drawn = vl_convert.vegalite_to_svg(spec)
    head, rest = drawn.split(">", 1)
    return f'{head} role="img"><title>{html.escape(said)}</title>{rest}\n'.encode()


def _thin(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most MOST_POINTS of them, the first and the last among them."""
    if len(rows) <= MOST_POINTS:
        return list(rows)
    step = (len(rows) - 1) / (MOST_POINTS - 1)
    return [rows[round(place * step)] for place in range(MOST_POINTS)]
