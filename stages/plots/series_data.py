"""Pictures of a generated data set of signals: what a sample is, what each anomaly does, and how large it is beside what is normal.

T steps, V variables. Values are in the unit of the signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.datasets.recordings import Region
from stages.plots.series_figure import INK, Figure, figure, table, wrapped
from stages.plots.series_palette import ANOMALY, DISTURBING, KINDS, NORMAL, QUIET

GROUP = "data"
SHOWN = 1_500  # steps of an overview
AROUND = 60  # steps before and after an anomaly
WAVES = 6_000  # steps of a normal change
Array = NDArray[np.floating]


class Signals(NamedTuple):
    """What was generated, and how."""

    values: Array  # (T, V); NaN where a sensor said nothing
    normal: Array  # (T, V), the same without anomalies
    label: NDArray[np.integer]  # (T,)
    regions: Sequence[Region]
    variables: Sequence[str]
    complexity: Mapping[str, Array]  # what each normal change adds to the plain signal, (T, V)
    rules: Mapping[str, str]  # what each kind of anomaly does, in words
    blocks: Sequence[Mapping[str, Any]]  # {"stage", "block", "start", "stop", "use"}: what is done with which steps
    window: int  # steps of a sample
    last: int  # of its last steps one is anomalous in an anomalous sample


def figures(signals: Signals) -> list[Figure]:
    """Every picture of the group, in the order of the list of names."""
    drawn = (
        sample_types, feature_examples, anomaly_generation_rules, feature_correlations, normal_complexity_features, complexity_vs_anomaly,
        experiment_settings,
    )  # fmt: skip
    return [draw(signals) for draw in drawn]


def sample_types(signals: Signals) -> Figure:
    """One window of each kind, with the last steps that decide."""
    import altair as alt

    panels = []
    for kind, start in _samples(signals).items():
        rows = _lines(signals, start, start + signals.window, start)
        anomalous = [{"from": step, "to": step + 1} for step in np.flatnonzero(signals.label[start : start + signals.window])]
        x = alt.X("step:Q", title="step of the window").scale(domain=[0, signals.window], nice=False)
        asked = alt.Chart(table([{"from": signals.window - signals.last, "to": signals.window}], f"last steps, {kind}")).mark_rect(
            color=QUIET, opacity=0.25
        )
        marked = alt.Chart(table(anomalous, f"anomalous steps, {kind}")).mark_rect(color=ANOMALY, opacity=0.18)
        lines = (
            alt.Chart(table(rows, f"signal, {kind}"))
            .mark_line(strokeWidth=1.3, color=KINDS[kind])
            .encode(x=x, y=_stacked(signals), detail="variable:N")
        )
        shades = [part.encode(x="from:Q", x2="to:Q") for part in ([marked] if anomalous else []) + [asked]]
        panels.append(
            alt.layer(*shades, lines).properties(
                width=250, height=300, title=alt.Title(_MEANING[kind], fontSize=13, anchor="start", color=KINDS[kind])
            )
        )
    return figure(
        GROUP, "sample_types", wrapped(panels, len(panels)), "A sample is anomalous only if its last steps are",
        f"{signals.window} steps, each variable between its own extremes; grey: the last {signals.last} steps, which are judged; red: anomalous",
    )  # fmt: skip


_MEANING = {"normal": "pure normal", "disturbing": "disturbing normal: already over", "anomaly": "anomaly"}


def feature_examples(signals: Signals) -> Figure:
    """All variables over a stretch that holds anomalies."""
    import altair as alt

    start = _eventful(signals)
    stop = min(start + SHOWN, len(signals.values))
    inside = [region for region in signals.regions if region.start < stop and region.stop > start]
    along = alt.Scale(domain=[start, stop], nice=False, zero=False)
    places = [
        {"from": max(region.start, start), "to": min(region.stop, stop), "kind": _words(region.kind), "row": place % 2}
        for place, region in enumerate(inside)
    ]
    events = alt.Chart(table(places, "anomalies")).encode(x=alt.X("from:Q", scale=along, title="step"), x2="to:Q")
    lines = alt.Chart(table(_lines(signals, start, stop), "signals")).mark_line(strokeWidth=0.9, color=NORMAL)
    layers = events.mark_rect(color=ANOMALY, opacity=0.2) + lines.encode(
        x=alt.X("step:Q", scale=along), y=_stacked(signals), detail="variable:N"
    )
    for row in (0, 1):  # neighbours at two heights, so that their names do not meet
        names = events.transform_filter(f"datum.row == {row}").mark_text(align="left", baseline="bottom", color=ANOMALY, fontSize=11)
        layers += names.encode(text="kind:N", y=alt.value(-3 - 13 * row))
    return figure(
        GROUP, "feature_examples", layers.properties(width=900, height=46 * len(signals.variables)), "What the sensors say",
        "Each variable between its own extremes; anomalies are shaded and named",
    )  # fmt: skip


def anomaly_generation_rules(signals: Signals) -> Figure:
    """For each kind one region: the variable that it moves most, beside what it would have said."""
    import altair as alt

    panels = []
    for kind, region in _one_of_each(signals).items():
        low, high = max(region.start - AROUND, 0), min(region.stop + AROUND, len(signals.values))
        variable = _most_moved(signals, region)
        rows = [
            {"step": step - region.start, "as it is": signals.values[step, variable], "without": signals.normal[step, variable]}
            for step in range(low, high)
        ]
        x = alt.X("step:Q", title=None).scale(domain=[low - region.start, high - region.start], nice=False).axis(tickCount=4)
        y = alt.Y("as it is:Q", title=None).scale(zero=False).axis(tickCount=3)
        base = alt.Chart(table(rows, kind)).encode(x=x)
        shade = alt.Chart(table([{"from": 0, "to": region.stop - region.start}], f"{kind}, region")).mark_rect(color=ANOMALY, opacity=0.14)
        layers = (
            shade.encode(x="from:Q", x2="to:Q")
            + base.mark_line(color=NORMAL, strokeWidth=1, strokeDash=[3, 2]).encode(y="without:Q")
            + base.mark_line(color=ANOMALY, strokeWidth=1.4).encode(y=y)
        )
        moved = len(region.variables) or len(signals.variables)
        more = f", {moved - 1} more moved" if moved > 1 else ""
        words = alt.Title(
            _words(kind),
            subtitle=[*_folded(signals.rules.get(kind, "")), f"{signals.variables[variable]}{more}"],
            fontSize=13,
            subtitleFontSize=11,
            anchor="start",
            offset=4,
            subtitlePadding=2,
        )
        panels.append(layers.properties(width=205, height=95, title=words))
    return figure(
        GROUP, "anomaly_generation_rules", wrapped(panels, 4), "What each kind of anomaly does to the variable that it moves most",
        "Red: as generated; blue, dashed: the same signal without the anomaly; across: steps from its start; up: the variable's own unit",
    )  # fmt: skip


def feature_correlations(signals: Signals) -> Figure:
    """Pearson's, on normal and on anomalous steps."""
    import altair as alt

    panels = []
    for name, chosen in (("normal steps", signals.label == 0), ("anomalous steps", signals.label == 1)):
        values = signals.values[chosen]
        matrix = np.corrcoef(values[np.isfinite(values).all(1)].T)
        rows = [
            {"one": one, "other": other, "correlation": matrix[i, j]}
            for i, one in enumerate(signals.variables)
            for j, other in enumerate(signals.variables)
        ]
        order = list(signals.variables)
        base = alt.Chart(table(rows, name)).encode(
            x=alt.X("one:N", sort=order, title=None).axis(labelAngle=-90, orient="top", domain=False, ticks=False),
            y=alt.Y("other:N", sort=order, title=None).axis(domain=False, ticks=False),
        )
        color = (
            alt.Color("correlation:Q", title="correlation")
            .scale(domain=[-1, 1], scheme="redblue")
            .legend(orient="bottom", gradientLength=200)
        )
        ink = alt.condition("abs(datum.correlation) > 0.6", alt.value("#ffffff"), alt.value("#1d2429"))
        numbers = base.mark_text(fontSize=11).encode(text=alt.Text("correlation:Q", format=".2f"), color=ink)
        panels.append(
            (base.mark_rect(cornerRadius=2).encode(color=color) + numbers).properties(
                width=330, height=330, title=alt.Title(name, fontSize=13)
            )
        )
    return figure(
        GROUP,
        "feature_correlations",
        wrapped(panels, len(panels)),
        "How the sensors hang together, and how anomalies change it",
        "Pearson's correlation of each pair",
    )


def normal_complexity_features(signals: Signals) -> Figure:
    """What each normal change adds to the variable that it moves most."""
    import altair as alt

    panels = []
    for name, added in signals.complexity.items():
        peak, variable = np.unravel_index(np.argmax(np.abs(added)), added.shape)
        first, length = (0, len(added)) if name == "regimes" else (max(int(peak) - WAVES // 2, 0), min(WAVES, len(added)))
        steps = first + np.unique(np.linspace(0, min(length, len(added) - first) - 1, 700).astype(int))
        rows = [{"step": step, "added": added[step, variable]} for step in steps]
        x = alt.X("step:Q", title="step").axis(format="~s", tickCount=4).scale(nice=False, zero=False)
        line = (
            alt.Chart(table(rows, name))
            .mark_line(color=DISTURBING, strokeWidth=1)
            .encode(x=x, y=alt.Y("added:Q", title=None).axis(tickCount=4))
        )
        words = alt.Title(_words(name), subtitle=f"added to {signals.variables[variable]}", fontSize=13, subtitleFontSize=11, offset=4)
        panels.append(line.properties(width=260, height=110, title=words))
    return figure(
        GROUP, "normal_complexity_features", wrapped(panels, 3), "What makes normal hard: changes that are no anomalies",
        "What each one adds to the plain signal, in the variable's own unit, where it adds most",
    )  # fmt: skip


def complexity_vs_anomaly(signals: Signals) -> Figure:
    """Sizes of normal changes and of anomalies on one axis."""
    import altair as alt

    rows = [_size(_words(name), "normal change", np.abs(added).max(1)) for name, added in signals.complexity.items()]
    moved = np.nan_to_num(np.abs(signals.values - signals.normal)).max(1)
    for kind in dict.fromkeys(region.kind for region in signals.regions):
        of_kind = [moved[region.start : region.stop] for region in signals.regions if region.kind == kind]
        rows.append(_size(_words(kind), "anomaly", np.concatenate(of_kind)))
    order = [row["what"] for row in sorted(rows, key=lambda row: (row["side"] == "anomaly", -row["middle"]))]
    color = alt.Color("side:N", title=None).scale(domain=["normal change", "anomaly"], range=[DISTURBING, ANOMALY])
    base = alt.Chart(table(rows, "sizes")).encode(y=alt.Y("what:N", sort=order, title=None).axis(labelLimit=200, grid=True), color=color)
    title = "largest change of any variable at a step (line: 10 % to 90 % of its steps, mark: middle)"
    layers = base.mark_rule(strokeWidth=4, opacity=0.35).encode(
        x=alt.X("low:Q", title=title).axis(tickCount=8), x2="high:Q"
    ) + base.mark_point(filled=True, size=80, opacity=1).encode(
        x="middle:Q", shape=alt.Shape("side:N", title=None).scale(domain=["normal change", "anomaly"], range=["square", "circle"])
    )
    return figure(
        GROUP, "complexity_vs_anomaly", layers.properties(width=640, height=22 * len(rows)), "How large anomalies are beside what is normal",
        "Where the two overlap, size alone cannot tell them apart; an anomaly at 0 changes nothing but time",
    )  # fmt: skip


def experiment_settings(signals: Signals) -> Figure:
    """Which steps each stage learns from, chooses by and reports on."""
    import altair as alt

    blocks = [dict(block, middle=(block["start"] + block["stop"]) / 2, steps=block["stop"] - block["start"]) for block in signals.blocks]
    order = list(dict.fromkeys(block["block"] for block in blocks))
    base = alt.Chart(table(blocks, "blocks")).encode(
        y=alt.Y("stage:N", title=None, sort=None).axis(domain=False, ticks=False, labelFontSize=13)
    )
    colours = [NORMAL, QUIET, INK][: len(order)]
    bars = base.mark_bar(cornerRadius=3, height=44).encode(
        x=alt.X("start:Q", title="step of the signal").axis(format="~s").scale(nice=False), x2="stop:Q",
        color=alt.Color("block:N", title=None).scale(domain=order, range=colours), opacity=alt.value(0.8),
    )  # fmt: skip
    steps = base.mark_text(dy=-8, fontSize=12, fontWeight=600).encode(
        x="middle:Q", text=alt.Text("steps:Q", format=","), color=alt.value("#ffffff")
    )
    uses = base.mark_text(dy=9, fontSize=11).encode(x="middle:Q", text="use:N", color=alt.value("#ffffff"))
    stages = len({block["stage"] for block in blocks})
    return figure(
        GROUP, "experiment_settings", (bars + steps + uses).properties(width=820, height=64 * stages),
        "Which steps each stage learns from, chooses by and reports on",
        "In order of time; the choice between combinations never sees the last block",
    )  # fmt: skip


def _samples(signals: Signals) -> dict[str, int]:
    """The start of one window of each kind; those that do not occur are left out."""
    label = signals.label.astype(bool)
    total = np.concatenate([[0], np.cumsum(label)])
    starts = np.arange(len(label) - signals.window + 1)
    within = total[starts + signals.window] - total[starts]
    last = total[starts + signals.window] - total[starts + signals.window - signals.last]
    found = {"normal": within == 0, "disturbing": (within >= 3) & (last == 0), "anomaly": last == min(signals.last, last.max(initial=0))}
    found["anomaly"] &= last > 0
    places = {kind: np.flatnonzero(chosen) for kind, chosen in found.items()}
    return {kind: int(place[len(place) // 2]) for kind, place in places.items() if len(place)}


def _lines(signals: Signals, start: int, stop: int, origin: int = 0) -> list[dict[str, Any]]:
    """Each variable in a band of its own, between its extremes within the stretch."""
    rows = []
    for place, name in enumerate(signals.variables):
        values = signals.values[start:stop, place]
        low, high = np.nanmin(values), np.nanmax(values)
        level = (values - low) / (high - low) if high > low else np.full(len(values), 0.5)
        known = np.isfinite(values)
        rows += [
            {"variable": name, "step": start - origin + step, "value": values[step], "height": place + 0.9 - 0.8 * level[step]}
            for step in np.flatnonzero(known)
        ]
    return rows


def _stacked(signals: Signals) -> Any:
    import altair as alt

    names = list(signals.variables)
    axis = alt.Axis(
        values=[place + 0.5 for place in range(len(names))],
        tickCount=2 * len(names),
        labelExpr=f"{names}[floor(datum.value)]",
        grid=False,
        domain=False,
        ticks=False,
    )
    return alt.Y("height:Q", title=None, axis=axis).scale(domain=[0, len(names)], reverse=True, nice=False)


def _eventful(signals: Signals) -> int:
    """Where a stretch of SHOWN steps begins that holds the most different kinds."""
    starts = [max(region.start - 100, 0) for region in signals.regions] or [0]
    return max(
        starts, key=lambda start: (len({region.kind for region in signals.regions if start <= region.start < start + SHOWN - 100}), -start)
    )


def _one_of_each(signals: Signals) -> dict[str, Region]:
    """Of each kind the region that moves most, in the order of the rules."""
    moved = np.nan_to_num(np.abs(signals.values - signals.normal)).max(1)
    chosen: dict[str, Region] = {}
    for region in sorted(signals.regions, key=lambda region: -moved[region.start : region.stop].max()):
        chosen.setdefault(region.kind, region)
    return {kind: chosen[kind] for kind in [*signals.rules, *chosen] if kind in chosen}


def _most_moved(signals: Signals, region: Region) -> int:
    """The variable whose values lie farthest from the normal ones, in deviations; one that falls silent is farthest."""
    inside = slice(region.start, region.stop)
    gone = ~np.isfinite(signals.values[inside])
    change = np.where(gone, np.inf, np.abs(signals.values[inside] - signals.normal[inside]) / signals.normal.std(0))
    return int(np.argmax(np.where(change > 1e-4, change, 0).max(0)))


def _size(what: str, side: str, sizes: Array) -> dict[str, Any]:
    low, middle, high = np.quantile(sizes[sizes > 1e-9] if (sizes > 1e-9).any() else sizes, [0.1, 0.5, 0.9])
    return {"what": what, "side": side, "low": low, "middle": middle, "high": high}


def _words(name: str) -> str:
    return name.replace("_", " ")


def _folded(text: str, lines: int = 3) -> list[str]:
    """As many lines for a short text as for a long one, so that panels stay level."""
    import textwrap

    return [*textwrap.wrap(text, 42, max_lines=lines, placeholder=" ..."), *[" "] * lines][:lines]
