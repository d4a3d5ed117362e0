"""Pictures of the best model's verdicts on test windows: how well it ranks, what its two errors say, what it finds and what it misses.

W windows of L steps, V variables. A window's errors and score are those of its last patch, which is what a stream would see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.metrics.confusion import Confusion
from stages.metrics.ranking import auroc, average_precision
from stages.plots.series_charts import curve_points
from stages.plots.series_figure import INK, Figure, beneath, beside, figure, table, wrapped
from stages.plots.series_palette import ANOMALY, KINDS, NORMAL, PARTS, QUIET, TEACHER

GROUP = "best_model"
BINS = 40
DOTS = 900  # of a scatter plot, of each kind
Array = NDArray[np.floating]


class Scored(NamedTuple):
    """The test windows and all that the model makes of them."""

    kind: NDArray[np.str_]  # (W,) of KINDS: an anomaly has anomalous steps among its last ones
    cause: NDArray[np.str_]  # (W,) what is anomalous in it; "" where nothing is
    score: Array  # (W,)
    reconstruction: Array  # (W,) the teacher's error
    discrepancy: Array  # (W,) teacher against student
    threshold: float  # an alarm from here on
    window: Array  # (W, L, V), standardised
    teacher: Array  # (W, L, V), each patch redrawn while it was hidden
    student: Array  # (W, L, V)
    label: NDArray[np.integer]  # (W, L)
    moved: NDArray[np.bool_]  # (W, V), the variables that the anomaly is said to move
    variables: Sequence[str]
    last: int  # steps that are judged
    policy: str  # where the threshold comes from, in words

    @property
    def anomalous(self) -> NDArray[np.bool_]:
        return self.kind == "anomaly"

    @property
    def flagged(self) -> NDArray[np.bool_]:
        return self.score >= self.threshold

    def part(self, name: str) -> Array:
        """The score by a name of PARTS."""
        return {"reconstruction": self.reconstruction, "discrepancy": self.discrepancy, "combined": self.score}[name]

    @property
    def causes(self) -> list[str]:
        """What is anomalous in the anomalies, in order of name."""
        return sorted(set(self.cause[self.anomalous]) - {""})


def figures(scored: Scored) -> list[Figure]:
    """The pictures of all windows together; those by kind are in series_causes, single windows in series_cases."""
    drawn = (
        roc_curve, pr_curve, score_distribution, confusion_matrix, score_components, teacher_student_comparison, pure_vs_disturbing_normal,
        discrepancy_trend, hypothesis_verification, summary,
    )  # fmt: skip
    return [draw(scored) for draw in drawn]


def roc_curve(scored: Scored) -> Figure:
    values = {name: auroc(scored.part(name), scored.anomalous) for name in PARTS}
    said = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    return figure(GROUP, "roc_curve", _curve(scored, "ROC"), f"ROC AUC {values['combined']:.3f}", f"Of windows: {said}; dotted: chance")


def pr_curve(scored: Scored) -> Figure:
    values = {name: average_precision(scored.part(name), scored.anomalous) for name in PARTS}
    said = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    return figure(GROUP, "pr_curve", _curve(scored, "PR"), f"PR AUC {values['combined']:.3f}", f"Of windows: {said}; dotted: chance")


def score_distribution(scored: Scored) -> Figure:
    return figure(
        GROUP, "score_distribution", _histogram(scored, kinds_of(scored), 640, 280), "Where normal and anomalous windows score",
        f"Each kind adds up to 100 %; dashed: the threshold ({scored.policy})",
    )  # fmt: skip


def confusion_matrix(scored: Scored) -> Figure:
    """Counts at the threshold, and what follows from them."""
    import altair as alt

    counts = confusion(scored)
    rows = [
        {"truth": truth, "verdict": verdict, "windows": count, "share": count / max(1, total)}
        for truth, pair in (("anomaly", (counts.tp, counts.fn)), ("normal", (counts.fp, counts.tn)))
        for total in [sum(pair)]
        for verdict, count in zip(("alarm", "no alarm"), pair)
    ]
    base = alt.Chart(table(rows, "counts")).encode(
        x=alt.X("verdict:N", title="verdict", sort=["alarm", "no alarm"]).axis(orient="top", labelAngle=0, domain=False, ticks=False),
        y=alt.Y("truth:N", title="truth", sort=["anomaly", "normal"]).axis(domain=False, ticks=False),
    )
    right = "(datum.truth == 'anomaly') == (datum.verdict == 'alarm')"
    boxes = base.mark_rect(cornerRadius=4, stroke="#ffffff", strokeWidth=3).encode(
        color=alt.condition(right, alt.value(NORMAL), alt.value(ANOMALY)),
        opacity=alt.Opacity("share:Q", legend=None).scale(domain=[0, 1], range=[0.12, 0.9]),
    )
    ink = alt.condition("datum.share > 0.5", alt.value("#ffffff"), alt.value(INK))
    large = base.mark_text(fontSize=24, fontWeight=600, dy=-8).encode(text=alt.Text("windows:Q", format=","), color=ink)
    small = base.mark_text(fontSize=13, dy=16).encode(text=alt.Text("share:Q", format=".1%"), color=ink)
    return figure(
        GROUP,
        "confusion_matrix",
        (boxes + large + small).properties(width=340, height=240),
        f"{_share(counts.recall)} of anomalies found, {_share(counts.precision)} of alarms right",
        f"Windows at the threshold ({scored.policy}); shares of each row",
    )


def score_components(scored: Scored) -> Figure:
    """The two errors against each other."""
    return figure(
        GROUP, "score_components", scatter(scored, thinned(scored), 560, 420), "What each error says about the same window",
        f"Each mark is a window; filled: an alarm at the threshold ({scored.policy})",
    )  # fmt: skip


def teacher_student_comparison(scored: Scored) -> Figure:
    """How far the teacher, the student, and the two from each other are, by kind."""
    import altair as alt

    last = slice(-scored.last, None)
    errors = {
        "teacher's error": (scored.teacher - scored.window)[:, last],
        "student's error": (scored.student - scored.window)[:, last],
        "teacher against student": (scored.teacher - scored.student)[:, last],
    }
    rows = [
        {"error": name, "kind": kind, **quartiles(np.square(values[scored.kind == kind]).mean((1, 2)))}
        for name, values in errors.items()
        for kind in kinds_of(scored)
    ]
    base = alt.Chart(table(rows, "errors")).encode(
        y=alt.Y("error:N", title=None, sort=list(errors)), yOffset=alt.YOffset("kind:N", sort=list(KINDS)), color=kind_colour(scored)
    )
    bars = base.mark_rule(strokeWidth=7, opacity=0.35).encode(
        x=alt.X("low:Q", title="mean squared error of the last steps (squared deviations, log)").scale(type="log"), x2="high:Q"
    )
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(x="middle:Q")
    return figure(
        GROUP, "teacher_student_comparison", (bars + dots).properties(width=600, height=230), "Where the teacher, the student and the signal part",
        "Mark: the median window; bar: the middle half",
    )  # fmt: skip


def pure_vs_disturbing_normal(scored: Scored) -> Figure:
    """What an anomaly that is over does to the score, and to the false alarms."""
    normal = [kind for kind in kinds_of(scored) if kind != "anomaly"]
    rates = ", ".join(f"{kind} {scored.flagged[scored.kind == kind].mean():.1%}" for kind in normal)
    return figure(
        GROUP, "pure_vs_disturbing_normal", _histogram(scored, normal, 640, 260), "Does an anomaly that is over still raise the score?",
        f"False alarms: {rates}; dashed: the threshold",
    )  # fmt: skip


def discrepancy_trend(scored: Scored) -> Figure:
    """Both errors along the window."""
    import altair as alt

    errors = {"teacher's error": (scored.teacher - scored.window), "teacher against student": (scored.teacher - scored.student)}
    rows = [
        {"error": name, "kind": kind, "step": step, "value": value}
        for name, values in errors.items()
        for kind in kinds_of(scored)
        for step, value in enumerate(np.square(values[scored.kind == kind]).mean((0, 2)))
    ]
    panels = [
        alt.Chart(table([row for row in rows if row["error"] == name], name)).mark_line(strokeWidth=2).encode(
            x=alt.X("step:Q", title="step of the window"), y=alt.Y("value:Q", title="mean squared error"), color=kind_colour(scored)
        ).properties(width=360, height=230, title=alt.Title(name, fontSize=13))
        for name in errors
    ]  # fmt: skip
    return figure(
        GROUP, "discrepancy_trend", wrapped(panels, len(panels)), "Where in a window the errors rise",
        f"Mean over all windows of a kind, all variables; the last {scored.last} steps are judged",
    )  # fmt: skip


def hypothesis_verification(scored: Scored) -> Figure:
    """What the method rests on, measured: each claim is an AUC that should be above one half."""
    import altair as alt

    normal, pure = ~scored.anomalous, scored.kind == "normal"
    disturbing = scored.kind == "disturbing"
    claims = [
        ("anomalies are redrawn worse than normal", scored.reconstruction, scored.anomalous, normal),
        ("teacher and student disagree more on anomalies", scored.discrepancy, scored.anomalous, normal),
        ("the score ranks anomalies above pure normal", scored.score, scored.anomalous, pure),
        ("the score ranks anomalies above disturbing normal", scored.score, scored.anomalous, disturbing),
        ("disturbing normal scores above pure normal", scored.score, disturbing, pure),
    ]
    rows = [{"claim": claim, **_auc(values, high, low)} for claim, values, high, low in claims if high.any() and low.any()]
    order = [row["claim"] for row in rows]
    base = alt.Chart(table(rows, "claims")).encode(y=alt.Y("claim:N", title=None, sort=order).axis(labelLimit=340, grid=True))
    verdict = alt.Color("verdict:N", title=None).scale(domain=["holds", "open", "does not hold"], range=[TEACHER, QUIET, ANOMALY])
    bars = base.mark_rule(strokeWidth=5, opacity=0.4).encode(
        x=alt.X("low:Q", title="AUC, 95 % interval").scale(zero=False).axis(tickCount=8), x2="high:Q", color=verdict
    )
    shape = alt.Shape("verdict:N", title=None).scale(domain=["holds", "open", "does not hold"], range=["circle", "square", "cross"])
    dots = base.mark_point(filled=True, size=110, opacity=1).encode(x="auc:Q", color=verdict, shape=shape)
    chance = alt.Chart(table([{"chance": 0.5}], "chance")).mark_rule(strokeDash=[2, 4], color=QUIET).encode(x="chance:Q")
    holding = sum(row["verdict"] == "holds" for row in rows)
    return figure(
        GROUP, "hypothesis_verification", (chance + bars + dots).properties(width=480, height=38 * len(rows)), f"{holding} of {len(rows)} claims hold",
        ["It holds where the whole interval lies above one half (dotted), and does not where all of it lies below.",
         "Windows count as independent, although some show one event: the intervals are somewhat too narrow."],
    )  # fmt: skip


def summary(scored: Scored) -> Figure:
    """The model on one page."""
    import altair as alt

    counts = confusion(scored)
    disturbing = scored.flagged[scored.kind == "disturbing"]
    tiles = [
        ("ROC AUC", f"{auroc(scored.score, scored.anomalous):.3f}"), ("PR AUC", f"{average_precision(scored.score, scored.anomalous):.3f}"),
        ("found", _share(counts.recall)), ("alarms that are right", _share(counts.precision)),
        ("false alarms, all normal", _share(None if counts.specificity is None else 1 - counts.specificity)),
        ("false alarms, disturbing", _share(disturbing.mean() if len(disturbing) else None)),
    ]  # fmt: skip
    base = alt.Chart(
        table([{"place": place, "figure": name, "value": value} for place, (name, value) in enumerate(tiles)], "figures")
    ).encode(x=alt.X("place:O", axis=None))
    head = base.mark_text(fontSize=26, fontWeight=600, dy=-12).encode(text="value:N") + base.mark_text(fontSize=12, dy=16).encode(
        text="figure:N", color=alt.value("#55626a")
    )
    rows = by_cause(scored)
    bars = (
        alt.Chart(table(rows, "causes"))
        .mark_bar(color=NORMAL, opacity=0.75, size=16)
        .encode(
            y=alt.Y("cause:N", title=None, sort=[row["cause"] for row in rows]).axis(labelLimit=180),
            x=alt.X("recall:Q", title="found").axis(format="%", tickCount=5).scale(domain=[0, 1]),
        )
    )
    under = beside(_histogram(scored, kinds_of(scored), 420, 260), bars.properties(width=300, height=260))
    return figure(
        GROUP,
        "summary",
        beneath(head.properties(width=900, height=70), under),
        f"The best model on {len(scored.score):,} test windows",
        f"Threshold: {scored.policy}",
    )


def confusion(scored: Scored) -> Confusion:
    """Windows at the threshold."""
    tp, fn = (int((scored.anomalous & side).sum()) for side in (scored.flagged, ~scored.flagged))
    fp, tn = (int((~scored.anomalous & side).sum()) for side in (scored.flagged, ~scored.flagged))
    return Confusion(tp, fn, tn, fp)


def by_cause(scored: Scored) -> list[dict[str, Any]]:
    """Of each cause: windows, how many were found, and the AUC against all normal windows; the easiest first."""
    rows = []
    for cause in scored.causes:
        chosen = scored.anomalous & (scored.cause == cause)
        used = chosen | ~scored.anomalous
        found = int(scored.flagged[chosen].sum())
        rows.append({
            "cause": words(cause), "windows": int(chosen.sum()), "found": found, "recall": found / chosen.sum(), "said": f"{found} of {chosen.sum()}",
            "auc": auroc(scored.score[used], chosen[used]),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (-row["recall"], -row["auc"]))


def _curve(scored: Scored, curve: str) -> Any:
    import altair as alt

    points = [
        {"part": name, "x": point["x"], "y": point["y"], "order": point["order"]}
        for name in PARTS
        for point in curve_points(scored.part(name), scored.anomalous)
        if point["curve"] == curve
    ]
    across, up = ("false alarms / normal windows", "found / anomalous windows") if curve == "ROC" else ("recall", "precision")
    names = list(PARTS)
    lines = alt.Chart(table(points, "curves")).mark_line(strokeWidth=2).encode(
        x=alt.X("x:Q", title=across).scale(domain=[0, 1]), y=alt.Y("y:Q", title=up).scale(domain=[0, 1]), order="order:Q",
        color=alt.Color("part:N", title=None).scale(domain=names, range=list(PARTS.values())),
        strokeDash=alt.StrokeDash("part:N", title=None).scale(domain=names, range=[[6, 2], [2, 2], [1, 0]]),
    )  # fmt: skip
    share = float(scored.anomalous.mean())
    ends = [{"x": 0, "y": 0}, {"x": 1, "y": 1}] if curve == "ROC" else [{"x": 0, "y": share}, {"x": 1, "y": share}]
    chance = alt.Chart(table(ends, "chance")).mark_line(color=QUIET, strokeDash=[2, 4], strokeWidth=1).encode(x="x:Q", y="y:Q")
    counts = confusion(scored)
    at = {"ROC": (1 - (counts.specificity or 0), counts.recall), "PR": (counts.recall, counts.precision)}[curve]
    if None in at:
        return (chance + lines).properties(width=440, height=400)
    point = alt.Chart(table([{"x": at[0], "y": at[1], "name": "at the threshold"}], "threshold"))
    here = point.mark_point(filled=True, size=110, color=INK, opacity=1).encode(x="x:Q", y="y:Q")
    word = point.mark_text(align="left", dx=9, dy=9).encode(x="x:Q", y="y:Q", text="name:N")
    return (chance + lines + here + word).properties(width=440, height=400)


def _histogram(scored: Scored, kinds: Sequence[str], width: int, height: int) -> Any:
    import altair as alt

    scale, edges = _bins(scored.score)
    rows = [
        {"kind": kind, "from": low, "to": high, "share": count / len(values), "windows": count, "none": 0}
        for kind in kinds
        for values in [scored.score[scored.kind == kind]]
        if len(values)
        for low, high, count in zip(edges, edges[1:], np.histogram(values, edges)[0])
        if count
    ]
    colours = alt.Color("kind:N", title=None).scale(domain=list(kinds), range=[KINDS[kind] for kind in kinds])
    base = alt.Chart(table(rows, "scores")).encode(color=colours)
    x = alt.X("from:Q", title="score" if scale.type is alt.Undefined else "score (log)", scale=scale).axis(tickCount=6)
    boxes = base.mark_rect(opacity=0.4).encode(
        x=x, x2="to:Q", y=alt.Y("share:Q", title="share of its windows").axis(format="%", tickCount=5), y2="none:Q"
    )
    tops = base.mark_rule(strokeWidth=2).encode(x="from:Q", x2="to:Q", y="share:Q")
    line = (
        alt.Chart(table([{"threshold": scored.threshold}], "threshold"))
        .mark_rule(strokeDash=[5, 3], strokeWidth=1.5, color=INK)
        .encode(x="threshold:Q")
    )
    return (boxes + tops + line).properties(width=width, height=height)


def _bins(values: Array) -> tuple[Any, Array]:
    """Linear, or logarithmic where all is above 0 and the highest far above the middle."""
    import altair as alt

    low, middle, high = float(values.min()), float(np.median(values)), float(values.max())
    if low > 0 and high > 10 * middle:
        edges = np.geomspace(low, high, BINS + 1)
        edges[0], edges[-1] = low, high
        return alt.Scale(type="log", nice=False), edges
    return alt.Scale(zero=False), np.linspace(low, max(high, low + 1e-9), BINS + 1)


def scatter(scored: Scored, places: NDArray[np.intp], width: int, height: int, name: str = "windows") -> Any:
    import altair as alt

    rows = [
        {
            "kind": scored.kind[place],
            "reconstruction": scored.reconstruction[place],
            "discrepancy": scored.discrepancy[place],
            "alarm": bool(scored.flagged[place]),
        }
        for place in places
    ]
    kinds = [kind for kind in KINDS if kind in {row["kind"] for row in rows}]
    scale = dict(type="log", nice=False) if min(scored.reconstruction.min(), scored.discrepancy.min()) > 0 else dict(zero=False)
    base = alt.Chart(table(rows, name)).encode(
        x=alt.X("reconstruction:Q", title="reconstruction error (log)" if "type" in scale else "reconstruction error")
        .scale(**scale)
        .axis(tickCount=4, format="~g"),
        y=alt.Y("discrepancy:Q", title="discrepancy (log)" if "type" in scale else "discrepancy")
        .scale(**scale)
        .axis(tickCount=4, format="~g"),
        color=alt.Color("kind:N", title=None).scale(domain=kinds, range=[KINDS[kind] for kind in kinds]),
        shape=alt.Shape("kind:N", title=None).scale(
            domain=kinds, range=[{"normal": "circle", "disturbing": "diamond", "anomaly": "triangle-up"}[kind] for kind in kinds]
        ),
    )
    open_marks = base.transform_filter("!datum.alarm").mark_point(filled=False, size=30, opacity=0.5, strokeWidth=1)
    filled = base.transform_filter("datum.alarm").mark_point(filled=True, size=42, opacity=0.75)
    heading = {} if name == "windows" else {"title": alt.Title(name, fontSize=13)}
    return (open_marks + filled).properties(width=width, height=height, **heading)


def thinned(scored: Scored, most: int = DOTS) -> NDArray[np.intp]:
    """An even sample of each kind, normal first so that anomalies lie on top."""
    parts = [np.flatnonzero(scored.kind == kind) for kind in KINDS]
    return np.concatenate([part[:: max(1, -(-len(part) // most))] for part in parts])


def _auc(values: Array, high: NDArray[np.bool_], low: NDArray[np.bool_]) -> dict[str, Any]:
    """AUC of `high` against `low`, its 95 % interval by Hanley and McNeil's standard error, and what that says about one half."""
    used = high | low
    value = auroc(values[used], high[used])
    above, below = value / (2 - value), 2 * value * value / (1 + value)
    variance = value * (1 - value) + (high.sum() - 1) * (above - value * value) + (low.sum() - 1) * (below - value * value)
    half = 1.96 * float(np.sqrt(max(variance, 0) / (high.sum() * low.sum())))
    verdict = "holds" if value - half > 0.5 else "does not hold" if value + half < 0.5 else "open"
    return {"auc": value, "low": max(value - half, 0), "high": min(value + half, 1), "verdict": verdict}


def quartiles(values: Array) -> dict[str, float]:
    low, middle, high = np.quantile(np.maximum(values, 1e-9), [0.25, 0.5, 0.75])
    return {"low": low, "middle": middle, "high": high}


def kinds_of(scored: Scored) -> list[str]:
    return [kind for kind in KINDS if (scored.kind == kind).any()]


def kind_colour(scored: Scored, legend: Any = True) -> Any:
    import altair as alt

    kinds = kinds_of(scored)
    color = alt.Color("kind:N", title=None).scale(domain=kinds, range=[KINDS[kind] for kind in kinds])
    return color if legend else color.legend(None)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.1%}"


def words(name: str) -> str:
    return name.replace("_", " ")
