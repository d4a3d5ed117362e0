"""Experiments side by side: one panel for each metric, one bar for each experiment. Plain data in, a Vega-Lite specification or a picture out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def bars(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> dict[str, Any]:
    """rows: {"dataset", "experiment", <metric>: number or None}, in the order of the table. titles: of the metrics, by name."""
    import altair as alt

    values = [
        {"dataset": row["dataset"], "experiment": row["experiment"], "metric": title, "value": row[name]}
        for row in rows
        for name, title in titles.items()
        if row[name] is not None
    ]
    names = list(dict.fromkeys(row["experiment"] for row in rows))
    y = alt.Y("experiment:N", title=None, sort=names).axis(labelLimit=400)
    base = alt.Chart(alt.Data(values=values)).encode(y=y, x=alt.X("value:Q", title=None).scale(domain=[0, 1]))
    drawn = base.mark_bar(color="#0072B2", height=12) + base.mark_text(align="left", dx=3).encode(text=alt.Text("value:Q", format=".3f"))
    panels = drawn.properties(width=170, height=alt.Step(20)).facet(
        column=alt.Column("metric:N", title=None, sort=list(titles.values())), row=alt.Row("dataset:N", title=None)
    )
    return panels.resolve_scale(y="independent").to_dict(validate=False)


def picture(specification: dict[str, Any]) -> bytes:
    """A PNG, drawn offline."""
    import vl_convert

    return vl_convert.vegalite_to_png(specification, scale=2)
