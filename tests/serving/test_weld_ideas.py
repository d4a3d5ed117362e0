"""The table of ideas, by hand from made-up cells."""

from __future__ import annotations

import numpy as np
import pytest

from stages.metrics.folds import FoldScores
from stages.serving import weld_ideas, weld_tables
from stages.serving.weld_figures import Results, Scored
from stages.serving.weld_rows import ABLATIONS, CLOCKS, TASK

KIND = {"a": "crack", "b": "crack", "c": "good", "d": "good", "e": "pore", "f": "pore"}
LABEL = {name: int(kind != "good") for name, kind in KIND.items()}
RIGHT, ONE_WRONG = ["crack", "crack", "good", "good", "pore", "pore"], ["crack", "good", "good", "good", "pore", "pore"]
BEST, WORST = [2.0, 2.0, 0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0, 0.0, 0.0]
HALF = [2.0, 2.0, 1.0, 1.0, 0.0, 0.0]  # 4 of 8 pairs are in order


def row(scores: list[float], told: list[str] | None = None) -> Scored:
    """One fold of six records, one seed; a session each."""
    fold = FoldScores("one", np.array([scores]), np.array(list(LABEL.values())), np.array(list(KIND)))
    cell = {"test": scores, "supervised": True} | ({"predicted": told} if told else {})
    return Scored([fold], {"one": [cell]}, {"one": tuple(KIND)}, {"one": ()})


def results(rows: dict[tuple[str, str], Scored]) -> Results:
    return Results(rows, {}, KIND, LABEL)


def test_an_idea_for_the_worst_classes_is_measured_by_them():
    """crack: 2 of 2 right, F1 1; with one of them told as good, 2 * 1 / (2 + 1) = 2/3, and good 2 * 2 / (2 + 3) = 4/5."""
    found = weld_ideas.lines(
        results({("augmentation: none", "P2"): row(BEST, ONE_WRONG), ("augmentation: all", "P2"): row(BEST, RIGHT)}),
    )
    by_measure = {line["measure"]: line for line in found}
    assert list(by_measure) == ["F1 of the worst class", "macro F1"] and {line["idea"] for line in found} == {"9 augmentation"}
    worst, every = by_measure.values()
    assert worst["without"] == pytest.approx(2 / 3) and worst["with"] == 1 and worst["difference"] == pytest.approx(1 / 3)
    assert every["without"] == pytest.approx((2 / 3 + 4 / 5 + 1) / 3) and every["difference"] == pytest.approx(1 - every["without"])
    assert worst["difference_low"] <= worst["difference"] <= worst["difference_high"]


def test_the_worst_classes_are_those_that_have_records():
    count = np.array([[2, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]])  # F1: 4/5, 2/3, none, 1
    assert weld_ideas.lowest_f1(count, 1) == pytest.approx(2 / 3)
    assert weld_ideas.lowest_f1(count, 2) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert weld_ideas.lowest_f1(count, 4) == pytest.approx((4 / 5 + 2 / 3 + 1) / 3)
    assert weld_ideas.lowest_f1(np.stack([count, count]), 1).shape == (2,)


def test_what_clocks_cost_is_told_as_the_difference_to_exact_clocks():
    names = {"exact clocks": BEST, "apart": WORST, "apart, aligned": HALF}
    [line] = weld_ideas.lines(results({(f"{CLOCKS}: {name}", "P2"): row(scores) for name, scores in names.items()}))
    assert line["idea"] == "2 one clock" and line["measure"] == "AUROC less that with exact clocks"
    assert (line["without"], line["with"], line["difference"]) == (-1.0, -0.5, 0.5)
    assert "| -1.000 [" in weld_tables.ideas_text([line]) and "| +.500 [" in weld_tables.ideas_text([line])


def test_a_second_task_is_measured_on_unseen_defects_and_what_is_not_there_has_no_line():
    unseen = {(f"{TASK} (unseen defects): {name}", "P4"): row(scores) for name, scores in (("off", HALF), ("weight 0.1", BEST))}
    known = {(name, "P2"): row(scores) for name, scores in (("mid-fusion", HALF), ("cross-attention", BEST))}
    found = weld_ideas.lines(results(unseen | known))
    assert [line["idea"] for line in found] == ["5 a second task", "10 kind of fusion"]  # neither tells classes, so AUROC alone
    assert all((line["without"], line["with"], line["seeds"]) == (0.5, 1.0, 1) for line in found)
    text = weld_tables.ideas_text(found)
    assert text.splitlines()[0] == "| idea | measure | compared | without | with | difference [interval] |"
    assert "| 5 a second task | AUROC | unseen defects (P4) | .500 [" in text and weld_tables.ideas_text([]) == ""


def test_every_idea_is_of_rows_that_the_study_fits():
    names = {one.name for one in ABLATIONS} | {"cross-attention", "mid-fusion"}
    protocol = {one.name: one.protocol for one in ABLATIONS}
    for idea in weld_ideas.IDEAS:
        asked = {idea.without, idea.having} | ({idea.exact} if idea.exact else set())
        assert asked <= names and {protocol.get(one, idea.protocol) for one in asked} == {idea.protocol}, idea
