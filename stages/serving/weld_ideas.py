"""The table of ideas of `assay weld study`: each measured by what it is for, without and with it, from the cells of the study alone.

An idea is a pair of rows of the same folds and seeds, and a measure that fits it: AUROC under P2 or, for what shall find unseen defects, P4; or F1 of the
classes that are told worst. Those are each row's own, so that no row is judged by classes that were chosen by the other's mistakes. What clocks
cost is told as the difference to exact clocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from stages.metrics.bootstrap import Interval
from stages.metrics.classes import by_class, macro_f1
from stages.metrics.inputs import Floats
from stages.serving.record_tables import DEEP, MID
from stages.serving.weld_figures import Results, Scored, difference, of_classes, ranked, told_apart
from stages.serving.weld_rows import CLOCKS, HEADLINE, MOMENT, TASK, UNSEEN

AUROC, LOST = "AUROC", "AUROC less that with exact clocks"
WORST = 3  # classes


def lowest_f1(count: Floats, number: int) -> Floats:
    """(...): the mean F1 over the `number` classes where it is lowest, of those that have records. count: (..., C, C)."""
    return np.nanmean(np.sort(by_class(count).f1, axis=-1)[..., :number], axis=-1)  # a class without records is NaN and sorts last


OF_CLASSES: dict[str, Callable[[Floats], Floats]] = {
    "F1 of the worst class": partial(lowest_f1, number=1),
    f"F1 of the {WORST} worst classes": partial(lowest_f1, number=WORST),
    "macro F1": macro_f1,
}
ONE, THREE, ALL = OF_CLASSES


class Idea(NamedTuple):
    """without, having: names of rows. exact: of the row that both are told as differences to."""

    idea: str
    measure: str
    compared: str
    without: str
    having: str
    protocol: str = HEADLINE
    exact: str | None = None


IDEAS = (
    *(
        Idea("2 one clock", LOST, words, f"{question}: apart", f"{question}: apart, aligned", exact=f"{question}: exact clocks")
        for question, words in ((CLOCKS, "2 s apart, aligned or not"), (MOMENT, "the same where the moment tells"))
    ),
    *(
        Idea("3 hard negatives", measure, f"beta 0, {beta}", "hard negatives (beta): 0", f"hard negatives (beta): {beta}")
        for beta in ("0.5", "1")
        for measure in (THREE, ALL)
    ),
    Idea("4 pre-training", AUROC, "all labels", "pre-training without labels: off", "pre-training without labels: 5 epochs"),
    *(
        Idea(
            "4 pre-training",
            AUROC,
            f"{share} of the labels",
            f"{share} of the labels: alone",
            f"{share} of the labels: after 5 epochs without",
        )
        for share in ("a tenth", "a twentieth", "a hundredth")
    ),
    Idea("5 a second task", AUROC, "unseen defects (P4)", f"{TASK} (unseen defects): off", f"{TASK} (unseen defects): weight 0.1", UNSEEN),
    *(Idea("9 augmentation", measure, "none, all", "augmentation: none", "augmentation: all") for measure in (ONE, ALL)),
    *(Idea("10 kind of fusion", measure, f"{MID}, {DEEP}", MID, DEEP) for measure in (AUROC, ALL)),
)


def lines(results: Results) -> list[dict[str, Any]]:
    """Of the ideas whose rows are there and could be fitted, in their order."""
    found = []
    for one in IDEAS:
        without, having = (results.scored.get((name, one.protocol)) for name in (one.without, one.having))
        exact = results.scored.get((one.exact, one.protocol)) if one.exact else None
        if without is None or having is None or (one.exact and exact is None):
            continue
        if line := _measured(results, one.measure, without, having, exact):
            found.append(
                {"idea": one.idea, "measure": one.measure, "compared": one.compared} | line | {"seeds": len(having.tested[0].score)}
            )
    return found


def _measured(results: Results, measure: str, without: Scored, having: Scored, exact: Scored | None) -> dict[str, Any] | None:
    """None where a row tells no classes and is asked for them."""
    if measure in OF_CLASSES:
        metric = OF_CLASSES[measure]
        apart = told_apart(results, having, without, metric)
        if apart is None:
            return None
        return {"without": of_classes(results, without, metric), "with": of_classes(results, having, metric)} | _spread("difference", apart)
    first, second = ((difference(one, exact) if exact else ranked(one, "auroc")) for one in (without, having))
    return _spread("without", first) | _spread("with", second) | _spread("difference", difference(having, without))


def _spread(name: str, found: Interval) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
