"""Pictures of the masked autoencoder: what passes through it, what its tokens see, what is hidden, what its losses ask for.

T steps of a window, V variables, N patches of P steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.plots.series_figure import INK, SOFT, Figure, beside, figure, table, wrapped
from stages.plots.series_palette import ANOMALY, DISTURBING, HEAT, NORMAL, QUIET, STUDENT, TEACHER

GROUP = "architecture"
Array = NDArray[np.floating]
Flags = NDArray[np.bool_]


class Architecture(NamedTuple):
    """One configuration of the model, and one window that went through it."""

    sizes: Mapping[str, int]  # steps, variables, patches, width, heads, encoder_layers, teacher_layers, student_layers
    mask_before: bool  # mask tokens enter the encoder
    parameters: Mapping[str, int]  # embedding, encoder, teacher, student: learnt numbers of each part
    reach: Mapping[
        str, Array
    ]  # of each way to make patches: how strongly a token of the middle answers to each step around it, (S,), highest is 1
    masks: Mapping[str, Flags]  # strategy -> (V, N), True is hidden
    passes: Flags  # (K, N), what each pass of scoring hides
    window: Array  # (T, V), standardised
    teacher: Array  # (T, V)
    student: Array  # (T, V)
    variables: Sequence[str]
    margin: float
    dynamic: float  # mean + k deviations of the discrepancy on normal windows, as the margin `dynamic` takes them from patches
    weights: Sequence[Mapping[str, float]]  # {"epoch", "reconstruction", "distillation", "push"}: weight of each term

    @property
    def patch(self) -> int:
        return self.sizes["steps"] // self.sizes["patches"]


def figures(architecture: Architecture) -> list[Figure]:
    """Every picture of the group, in the order of the list of names."""
    drawn = (model_pipeline, patchify_modes, masking_visualization, self_distillation_concept, margin_types, loss_components)
    return [draw(architecture) for draw in drawn]


class Box(NamedTuple):
    """One part of a diagram, `x` and `y` its middle."""

    x: float
    y: float
    name: str
    note: str
    colour: str


def model_pipeline(architecture: Architecture) -> Figure:
    """From a window to its score, with shapes and numbers of parameters."""
    size, count = architecture.sizes, architecture.parameters
    tokens = f"{size['patches']} x {size['width']}"
    place = "before" if architecture.mask_before else "after"
    boxes = [
        Box(0, 0, "window", f"{size['steps']} x {size['variables']}", NORMAL),
        Box(1, 0, "patches", f"{size['patches']} of {architecture.patch} x {size['variables']}", NORMAL),
        Box(2, 0, "tokens", f"{tokens}, {_count(count['embedding'])}", QUIET),
        Box(3, 0, "encoder", f"{size['encoder_layers']} layers, {_count(count['encoder'])}", QUIET),
        Box(4, 0.6, "teacher", f"{size['teacher_layers']} layers, {_count(count['teacher'])}", TEACHER),
        Box(4, -0.6, "student", f"{size['student_layers']} layer{'s' * (size['student_layers'] > 1)}, {_count(count['student'])}", STUDENT),
        Box(5, 0.6, "reconstruction", "(window - teacher)²", TEACHER),
        Box(5, -0.6, "discrepancy", "(teacher - student)²", STUDENT),
        Box(6, 0, "score", "one a step", ANOMALY),
    ]
    arrows = [(0, 1), (1, 2), (2, 3), (3, 4), (3, 5), (4, 6), (5, 7), (6, 8), (7, 8)]
    subtitle = f"{_count(sum(count.values()))} parameters; hidden patches become mask tokens {place} the encoder"
    return figure(GROUP, "model_pipeline", _diagram(boxes, arrows, 1120, 230), "From a window to its score", subtitle)


def self_distillation_concept(architecture: Architecture) -> Figure:
    """Who learns from whom, above what the two redraw."""
    import altair as alt

    boxes = [
        Box(0, 0, "encoder", "sees the visible patches", QUIET),
        Box(1, 0.6, "teacher", "learns from the signal", TEACHER),
        Box(1, -0.6, "student", "learns from the teacher", STUDENT),
        Box(2, 0.6, "reconstruction", "far from the signal?", TEACHER),
        Box(2, -0.6, "discrepancy", "do the two disagree?", STUDENT),
    ]
    diagram = _diagram(boxes, [(0, 1), (0, 2), (1, 3), (2, 4), (1, 4)], 620, 210)
    place = int(np.argmax(architecture.window.std(0)))
    drawn = {"signal": architecture.window, "teacher": architecture.teacher, "student": architecture.student}
    rows = [{"step": step, "who": who, "value": value} for who, values in drawn.items() for step, value in enumerate(values[:, place])]
    color = alt.Color("who:N", title=None).scale(domain=list(drawn), range=[NORMAL, TEACHER, STUDENT])
    dash = alt.StrokeDash("who:N", title=None).scale(domain=list(drawn), range=[[1, 0], [6, 2], [2, 2]])
    lines = alt.Chart(table(rows, "example")).mark_line(strokeWidth=1.8).encode(
        x=alt.X("step:Q", title="step of the window"), y=alt.Y("value:Q", title=f"{architecture.variables[place]} (standard deviations)"),
        color=color, strokeDash=dash,
    )  # fmt: skip
    return figure(
        GROUP, "self_distillation_concept", beside(diagram, lines.properties(width=430, height=210)),
        "The student imitates the teacher where things are normal",
        "Gradients of the discrepancy never reach the teacher; with fewer layers, the student cannot follow it to what it has not seen",
    )  # fmt: skip


def patchify_modes(architecture: Architecture) -> Figure:
    """Which steps one token answers to, measured on the network itself."""
    import altair as alt

    patch = architecture.patch
    rows = [
        {"mode": mode, "step": step - (len(reach) // 2 - patch // 2), "strength": strength}
        for mode, reach in architecture.reach.items()
        for step, strength in enumerate(reach)
    ]
    low, high = min(row["step"] for row in rows), max(row["step"] for row in rows)
    color = alt.Color("strength:Q", title="strength of the answer").scale(range=HEAT, domain=[0, 1]).legend(gradientLength=220)
    base = alt.Chart(table(rows, "reach")).encode(
        y=alt.Y("mode:N", title=None, sort=list(architecture.reach)).axis(labelFontSize=13, domain=False, ticks=False)
    )
    x = alt.X("step:O", title="step, counted from the start of the token's patch").axis(labelAngle=0, values=list(range(low, high + 1, 2)))
    cells = base.mark_rect(stroke="#ffffff").encode(x=x, color=color, tooltip=["mode:N", "step:O", "strength:Q"])
    numbers = (
        base.transform_filter("datum.strength > 0")
        .mark_text(fontSize=10)
        .encode(
            x="step:O",
            text=alt.Text("strength:Q", format=".2f"),
            color=alt.condition("datum.strength > 0.55", alt.value("#ffffff"), alt.value(INK)),
        )
    )
    leak = [mode for mode, reach in architecture.reach.items() if _outside(reach, patch) > 0]
    subtitle = f"How strongly a token answers to a change of each step, 1 at its strongest; its own patch is steps 0 to {patch - 1}"
    title = f"{' and '.join(leak)} lets a token see beyond its patch" if leak else "No token sees beyond its patch"
    return figure(
        GROUP,
        "patchify_modes",
        (cells + numbers).properties(width=38 * (high - low + 1), height=58 * len(architecture.reach)),
        title,
        subtitle,
    )


def masking_visualization(architecture: Architecture) -> Figure:
    """What is hidden in training, and pass by pass in scoring."""
    import altair as alt

    colours = alt.Color("state:N", title=None).scale(domain=["visible", "hidden"], range=["#cfe3f1", INK])

    def cells(name: str, hidden: Flags, rows: Sequence[str], title: str) -> Any:
        values = [
            {"row": row, "patch": patch, "state": "hidden" if hidden[place, patch] else "visible"}
            for place, row in enumerate(rows)
            for patch in range(hidden.shape[1])
        ]
        x = alt.X("patch:O", title="patch").axis(labelAngle=0, labelOverlap=True, ticks=False, domain=False)
        y = alt.Y("row:N", sort=list(rows), title=None).axis(ticks=False, domain=False)
        words = alt.Title(title, fontSize=13)
        return (
            alt.Chart(table(values, name))
            .mark_rect(cornerRadius=2, stroke="#ffffff")
            .encode(x=x, y=y, color=colours)
            .properties(width=430, height=24 * len(rows), title=words)
        )

    panels = [
        cells(name, hidden, architecture.variables, f"training, {name.replace('_', ' ')}: {hidden.mean():.0%} hidden")
        for name, hidden in architecture.masks.items()
    ]
    passes = architecture.passes
    panels.append(
        cells(
            "scoring",
            passes,
            [f"pass {place + 1}" for place in range(len(passes))],
            f"scoring: each patch is hidden once in {len(passes)} passes",
        )
    )
    return figure(
        GROUP,
        "masking_visualization",
        wrapped(panels, 2),
        "What the network must redraw without seeing it",
        f"Patches of {architecture.patch} steps",
    )


def margin_types(architecture: Architecture) -> Figure:
    """The push away from the teacher over the discrepancy."""
    import altair as alt

    discrepancy = np.linspace(0, 2 * max(architecture.margin, architecture.dynamic), 81)
    pushes = {
        "hinge": np.maximum(architecture.margin - discrepancy, 0),
        "softplus": np.log1p(np.exp(architecture.margin - discrepancy)),
        "dynamic": np.maximum(architecture.dynamic - discrepancy, 0),
    }
    rows = [{"margin": name, "discrepancy": x, "push": y} for name, values in pushes.items() for x, y in zip(discrepancy, values)]
    names = list(pushes)
    lines = alt.Chart(table(rows, "push")).mark_line(strokeWidth=2.5).encode(
        x=alt.X("discrepancy:Q", title="discrepancy of a hidden, anomalous patch (squared standard deviations)"), y=alt.Y("push:Q", title="loss"),
        color=alt.Color("margin:N", title=None).scale(domain=names, range=[NORMAL, DISTURBING, ANOMALY]),
        strokeDash=alt.StrokeDash("margin:N", title=None).scale(domain=names, range=[[1, 0], [6, 2], [2, 2]]),
    )  # fmt: skip
    rules, words = [], []
    for place, (name, at) in enumerate(
        {"margin": architecture.margin, "mean + k deviations of normal windows": architecture.dynamic}.items()
    ):
        margin = alt.Chart(table([{"at": at, "name": name}], name)).encode(x="at:Q")
        rules.append(margin.mark_rule(strokeDash=[2, 4], color=QUIET))
        words.append(margin.mark_text(align="left", dx=5, y=8 + 16 * place, color=SOFT).encode(text="name:N"))
    return figure(
        GROUP, "margin_types", alt.layer(lines, *rules, *words).properties(width=640, height=290),
        "Three ways to push the student off the teacher on known anomalies",
        "Only the regime weak knows anomalies; softplus never stops pushing, the dynamic margin follows the normal patches",
    )  # fmt: skip


def loss_components(architecture: Architecture) -> Figure:
    """When each term of the loss counts."""
    import altair as alt

    terms = {"reconstruction": TEACHER, "distillation": STUDENT, "push": ANOMALY}
    rows = [{"epoch": row["epoch"], "term": term, "weight": row[term]} for row in architecture.weights for term in terms]
    lines = alt.Chart(table(rows, "weights")).mark_line(strokeWidth=2.5, point=alt.OverlayMarkDef(size=28)).encode(
        x=alt.X("epoch:Q", title="epoch"), y=alt.Y("weight:Q", title="weight in the loss").scale(domainMin=0),
        color=alt.Color("term:N", title=None).scale(domain=list(terms), range=list(terms.values())),
        strokeDash=alt.StrokeDash("term:N", title=None).scale(domain=list(terms), range=[[1, 0], [6, 2], [2, 2]]),
    )  # fmt: skip
    return figure(
        GROUP, "loss_components", lines.properties(width=640, height=260), "First the teacher alone, then the student, at last the push",
        "Weight of each term of the loss; the push is 0 wherever no labels are given",
    )  # fmt: skip


def _diagram(boxes: Sequence[Box], arrows: Sequence[tuple[int, int]], width: int, height: int) -> Any:
    """Boxes with a name and a note, and arrows from edge to edge."""
    import altair as alt

    half = 0.41
    rows = [box._asdict() | {"left": box.x - half, "right": box.x + half, "top": box.y + 0.34, "bottom": box.y - 0.34} for box in boxes]
    ends = [(boxes[start], boxes[stop]) for start, stop in arrows]
    upright = [(start.x == stop.x) for start, stop in ends]
    lines = [
        {
            "arrow": f"{start.name} to {stop.name}",
            "x": start.x + (0 if up else half),
            "y": start.y,
            "x2": stop.x - (0 if up else half + 0.02),
            "y2": stop.y,
        }
        for (start, stop), up in zip(ends, upright)
    ]
    across = alt.Scale(domain=[min(row["left"] for row in rows) - 0.02, max(row["right"] for row in rows) + 0.02], nice=False, zero=False)
    along = alt.Scale(domain=[min(row["bottom"] for row in rows) - 0.05, max(row["top"] for row in rows) + 0.05], nice=False, zero=False)
    x, y = alt.X("x:Q", scale=across, axis=None), alt.Y("y:Q", scale=along, axis=None)
    base = alt.Chart(table(rows, "boxes"))
    body = base.mark_rect(cornerRadius=8, opacity=0.16).encode(
        x=alt.X("left:Q", scale=across, axis=None),
        x2="right:Q",
        y=alt.Y("bottom:Q", scale=along, axis=None),
        y2="top:Q",
        color=alt.Color("colour:N", scale=None),
    )
    edge = base.mark_rect(cornerRadius=8, filled=False, strokeWidth=2).encode(
        x=alt.X("left:Q", scale=across, axis=None),
        x2="right:Q",
        y=alt.Y("bottom:Q", scale=along, axis=None),
        y2="top:Q",
        stroke=alt.Stroke("colour:N", scale=None),
    )
    names = base.mark_text(fontSize=14, fontWeight=600, dy=-8).encode(x=x, y=y, text="name:N")
    notes = base.mark_text(fontSize=11, dy=11, color=SOFT).encode(x=x, y=y, text="note:N")
    links = alt.Chart(table(lines, "arrows"))
    rules = links.mark_rule(color=QUIET, strokeWidth=1.8).encode(x=x, y=y, x2="x2:Q", y2="y2:Q")
    heads = links.mark_point(shape="triangle-right", filled=True, color=QUIET, size=80, opacity=1).encode(
        x=alt.X("x2:Q", scale=across, axis=None), y=alt.Y("y2:Q", scale=along, axis=None)
    )
    return (rules + heads + body + edge + names + notes).properties(width=width, height=height)


def _outside(reach: Array, patch: int) -> float:
    """The strongest answer to a step that is not the token's own."""
    start = len(reach) // 2 - patch // 2
    return float(np.concatenate([reach[:start], reach[start + patch :]]).max(initial=0))


def _count(number: int) -> str:
    return f"{number / 1000:.0f} k" if number >= 1000 else str(number)
