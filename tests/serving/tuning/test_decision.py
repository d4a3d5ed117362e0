"""The best of many is called better only where luck would not do."""

import numpy as np
import pytest

from stages.metrics.ranking import auroc
from stages.serving.tuning.decision import FEWEST, decide
from stages.serving.tuning.task import Task
from stages.serving.tuning.trials import Trial, best_of, margin, ranked

N = 40


def task_of(images: int = N) -> Task:
    rows = [{"category": "a", "label": label, "group": f"g{number}"} for label in (0, 1) for number in range(images)]
    return Task(None, ["a"], [], rows[:images], rows[images:], None)


def trial(number: int, scores: np.ndarray, changes: int = 1) -> Trial:
    label = np.repeat([0, 1], len(scores) // 2)
    options = {f"o{place}": number for place in range(changes)}
    return Trial(number, options, 1.0, None, auroc(scores, label), margin(scores, label), {"a": scores.tolist()})


def noise(rng: np.random.Generator, lift: float, images: int = N) -> np.ndarray:
    return rng.normal(size=2 * images) + np.repeat([0.0, lift], images)


def test_the_luckiest_of_thirty_equals_is_seldom_called_better():
    """Without widening, the best of thirty would be: its difference is the largest of thirty."""
    rng = np.random.default_rng(0)
    found, naive = 0, 0
    for _ in range(20):
        trials = [trial(number, noise(rng, 1.0), changes=min(number, 1)) for number in range(31)]
        decision = decide(task_of(), trials, 400, 0)
        found += decision.better
        alone = decide(task_of(), [trials[0], decision.best], 400, 0) if decision.best.number else decision
        naive += alone.better
    assert found <= 3 and naive >= 6


def test_what_is_clearly_better_is_called_so_however_many_were_tried():
    rng = np.random.default_rng(1)
    trials = [trial(number, noise(rng, 0.5), changes=min(number, 1)) for number in range(30)] + [trial(30, noise(rng, 3.0))]
    decision = decide(task_of(), trials, 400, 0)
    assert decision.better and decision.best.number == 30 and decision.compared == 30
    assert decision.difference.low <= decision.difference.value <= decision.difference.high


def test_a_few_images_decide_nothing():
    rng = np.random.default_rng(2)
    few = FEWEST - 1
    trials = [trial(0, noise(rng, 0.0, few), changes=0), trial(1, noise(rng, 9.0, few))]
    decision = decide(task_of(few), trials, 400, 0)
    assert not decision.enough and not decision.better and decision.difference.low > 0


def test_the_same_scores_are_no_difference():
    scores = noise(np.random.default_rng(3), 1.0)
    decision = decide(task_of(), [trial(0, scores, changes=0), trial(1, scores)], 400, 0)
    assert decision.best.number == 0 and decision.difference == (0, 0, 0) and not decision.better


def test_auroc_ranks_then_the_margin_then_the_fewer_changes_then_who_came_first():
    def one(number: int, auroc: float, margin: float, changes: int = 1) -> Trial:
        return Trial(number, {str(place): 0 for place in range(changes)}, 1.0, None, auroc, margin)

    trials = [
        one(0, 0.9, 9.0),
        one(1, 1.0, 1.0),
        one(2, 1.0, 2.0, 3),
        one(3, 1.0, 2.0, 2),
        one(4, 1.0, 2.0, 2),
        Trial(5, {}, 1.0, "broken"),
    ]
    assert [trial.number for trial in ranked(trials)] == [3, 4, 2, 1, 0] and best_of(trials).number == 3
    assert best_of([Trial(0, {}, 1.0, "broken"), one(1, 0.0, -99.0)]).number == 1


def test_the_margin_by_hand():
    score, label = np.array([0.0, 2.0, 4.0, 8.0]), np.array([0, 0, 1, 1])
    assert margin(score, label) == pytest.approx((6 - 1) / np.sqrt((1 + 4) / 2))
    assert margin(np.ones(4), label) == 0.0
