"""Pictures of single windows: what the model saw, what its teacher and its student redrew, and how it judged.

Of each window one variable is drawn, the one that the teacher redraws worst in the last steps, which are the ones judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from stages.plots.series_figure import Figure, figure, table, wrapped
from stages.plots.series_model import GROUP, Scored
from stages.plots.series_palette import ANOMALY, NORMAL, QUIET, STUDENT, TEACHER

OUTCOMES = {"found": (True, True), "missed": (True, False), "false alarm": (False, True), "passed": (False, False)}  # anomalous, flagged
WHO = {"signal": NORMAL, "teacher": TEACHER, "student": STUDENT}
READ = "Blue: the signal; green: teacher; purple: student; red: anomalous steps; grey: the steps that are judged; standard deviations"


def figures(scored: Scored) -> list[Figure]:
    """The pictures that draw windows."""
    drawn = (reconstruction, detection_examples, case_study_gallery, anomaly_type_case_studies, hardest_samples)
    return [draw(scored) for draw in drawn]


def reconstruction(scored: Scored) -> Figure:
    """All variables of the surest find."""
    place = (_order(scored, "found") or _order(scored, "missed") or [0])[0]
    panels = [_panel(scored, place, variable, name) for variable, name in enumerate(scored.variables)]
    return figure(GROUP, "reconstruction", wrapped(panels, 4), f"One window, redrawn: {_cause(scored, place)}", READ)


def detection_examples(scored: Scored) -> Figure:
    """Two windows of each outcome, the surest first."""
    chosen = [(outcome, place) for outcome in OUTCOMES for place in _order(scored, outcome)[:2]]
    return figure(
        GROUP,
        "detection_examples",
        wrapped([_case(scored, place, outcome) for outcome, place in chosen], 2),
        "Found, missed, false alarm, passed",
        READ,
    )


def case_study_gallery(scored: Scored) -> Figure:
    """Windows from the lowest to the highest score, evenly spaced in rank."""
    ranked = np.argsort(scored.score, kind="stable")
    places = ranked[np.unique(np.linspace(0, len(ranked) - 1, 12).astype(int))]
    panels = [_case(scored, int(place), _outcome(scored, int(place))) for place in places]
    return figure(GROUP, "case_study_gallery", wrapped(panels, 3), "From the lowest to the highest score", READ)


def anomaly_type_case_studies(scored: Scored) -> Figure:
    """Of each kind of anomaly the window with the middle score."""
    panels = []
    for cause in scored.causes:
        places = np.flatnonzero(scored.anomalous & (scored.cause == cause))
        middle = places[np.argsort(scored.score[places], kind="stable")[len(places) // 2]]
        panels.append(_case(scored, int(middle), _outcome(scored, int(middle))))
    return figure(GROUP, "anomaly_type_case_studies", wrapped(panels, 3), "The typical window of each kind of anomaly", READ)


def hardest_samples(scored: Scored) -> Figure:
    """The anomalies that score lowest and the normal windows that score highest."""
    anomalies, normal = (np.flatnonzero(side) for side in (scored.anomalous, ~scored.anomalous))
    low = anomalies[np.argsort(scored.score[anomalies], kind="stable")[:6]]
    high = normal[np.argsort(-scored.score[normal], kind="stable")[:6]]
    panels = [_case(scored, int(place), _outcome(scored, int(place))) for place in [*low, *high]]
    return figure(GROUP, "hardest_samples", wrapped(panels, 3), "Anomalies that score lowest, then normal windows that score highest", READ)


def _case(scored: Scored, place: int, outcome: str) -> Any:
    error = np.square(scored.teacher[place] - scored.window[place])[-scored.last :].mean(0)
    return _panel(
        scored,
        place,
        int(np.argmax(error)),
        f"{outcome}: {_cause(scored, place)}",
        (f"{scored.variables[int(np.argmax(error))]}, score {scored.score[place]:.3g}",),
        270,
    )


def _panel(scored: Scored, place: int, variable: int, title: str, subtitle: Sequence[str] = (), width: int = 215) -> Any:
    """One variable of one window as three lines."""
    import altair as alt

    drawn = zip(WHO, (scored.window, scored.teacher, scored.student))
    rows = [{"who": who, "step": step, "value": value} for who, values in drawn for step, value in enumerate(values[place, :, variable])]
    steps = scored.window.shape[1]
    x = alt.X("step:Q", title=None).scale(domain=[0, steps], nice=False).axis(tickCount=4)
    color = alt.Color("who:N", title=None).scale(domain=list(WHO), range=list(WHO.values()))
    dash = alt.StrokeDash("who:N", title=None).scale(domain=list(WHO), range=[[1, 0], [6, 2], [2, 2]])
    key = f"window {place}, {scored.variables[variable]}"
    lines = (
        alt.Chart(table(rows, key))
        .mark_line(strokeWidth=1.4)
        .encode(x=x, y=alt.Y("value:Q", title=None).axis(tickCount=3), color=color, strokeDash=dash)
    )
    judged = alt.Chart(table([{"from": steps - scored.last, "to": steps}], f"{key}, judged")).mark_rect(color=QUIET, opacity=0.25)
    shades = [judged.encode(x="from:Q", x2="to:Q")]
    spans = list(_spans(scored.label[place]))
    if spans:
        shades.append(alt.Chart(table(spans, f"{key}, anomalous")).mark_rect(color=ANOMALY, opacity=0.16).encode(x="from:Q", x2="to:Q"))
    words = alt.Title(title, subtitle=list(subtitle) or alt.Undefined, fontSize=13, subtitleFontSize=11, offset=4, subtitlePadding=2)
    return alt.layer(*shades, lines).properties(width=width, height=95, title=words)


def _spans(label: Iterable[int]) -> Iterable[dict[str, int]]:
    """Unbroken stretches of anomalous steps, half-open."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(label, dtype=int), [0]])))
    return ({"from": int(start), "to": int(stop)} for start, stop in zip(edges[::2], edges[1::2]))


def _order(scored: Scored, outcome: str) -> list[int]:
    """Windows with this outcome, the surest first."""
    anomalous, flagged = OUTCOMES[outcome]
    places = np.flatnonzero((scored.anomalous == anomalous) & (scored.flagged == flagged))
    sign = -1 if flagged else 1
    return [int(place) for place in places[np.argsort(sign * scored.score[places], kind="stable")]]


def _outcome(scored: Scored, place: int) -> str:
    return next(name for name, sides in OUTCOMES.items() if sides == (scored.anomalous[place], scored.flagged[place]))


def _cause(scored: Scored, place: int) -> str:
    kind, cause = str(scored.kind[place]), str(scored.cause[place]).replace("_", " ")
    return {"normal": "pure normal", "disturbing": f"after {cause}" if cause else "disturbing normal"}.get(kind, cause or kind)
