"""One figure over folds: a mean of each fold's own, drawn by sessions."""

import numpy as np
import pytest

from stages.metrics.bootstrap import bootstrap_draws
from stages.metrics.counts import auroc_of_counts
from stages.metrics.folds import FoldScores, fold_draws, paired_classes, paired_folds
from stages.metrics.ranking import auroc


def folds(seed: int = 0, count: int = 3, records: int = 24, seeds: int = 2, strength: float = 1.0, shift: bool = False) -> list[FoldScores]:
    random, made = np.random.default_rng(seed), []
    for fold in range(count):
        label = np.arange(records) % 2
        score = random.standard_normal((seeds, records)) + strength * label + (100 * fold if shift else 0)
        session = np.array([f"{fold}-{one // 4}-{one % 2}" for one in range(records)])
        made.append(FoldScores(f"part{fold}", score, label, session))
    return made


def test_the_value_is_the_mean_of_each_folds_own_auroc_whatever_their_scales():
    made = folds(shift=True)
    by_hand = np.mean([[auroc(row, one.label) for row in one.score] for one in made])
    assert fold_draws(made, auroc_of_counts, 50).value == pytest.approx(by_hand, abs=1e-12)


def test_one_fold_is_drawn_as_the_bootstrap_of_all_other_metrics_draws_it():
    [one] = folds(count=1)
    ours, theirs = fold_draws([one], auroc_of_counts, 200), bootstrap_draws(one.score, one.label, one.session, {"": auroc_of_counts}, 200)[""]
    assert ours.value == pytest.approx(theirs.value) and np.allclose(ours.samples, theirs.samples)


def test_a_draw_that_leaves_a_fold_without_a_label_counts_the_other_folds():
    """The second fold has one normal session, which about one draw in three has not; its AUROC is 0, that of the first 1."""
    label = np.array([0, 0, 1, 1])
    first = FoldScores("a", np.array([[0.0, 0, 1, 1]]), label, np.array(["g1", "g2", "b1", "b2"]))
    second = FoldScores("b", np.array([[1.0, 1, 0, 0]]), label, np.array(["g3", "g3", "b3", "b4"]))
    samples = fold_draws([first, second], auroc_of_counts, 500).samples
    assert set(np.round(samples, 6)) <= {0.0, 0.5, 1.0} and 0.2 < (samples == 1).mean() < 0.6 and (samples == 0.5).any()


def test_too_few_sessions_leave_everything_open():
    one = FoldScores("a", np.array([[0.0, 1, 2, 3]]), np.array([0, 0, 1, 1]), np.array(["g", "g", "b", "c"]))
    assert fold_draws([one], auroc_of_counts, 100).interval == (1.0, 0.0, 1.0)


def test_a_row_is_tied_with_itself_and_above_a_worse_one():
    made, worse = folds(strength=3.0), folds(1, strength=0.0)
    assert paired_folds(made, made, auroc_of_counts, 300).interval.holds_zero
    found = paired_folds(made, worse, auroc_of_counts, 300).interval
    assert found.low > 0 and found.value == pytest.approx(fold_draws(made, auroc_of_counts).value - fold_draws(worse, auroc_of_counts).value)


def test_pairs_vary_less_than_what_they_are_made_of():
    made = folds(strength=1.0, seeds=1)
    twin = [one._replace(score=one.score + 1e-3 * np.random.default_rng(1).standard_normal(one.score.shape)) for one in made]
    assert paired_folds(made, twin, auroc_of_counts, 300).samples.std() < 0.2 * fold_draws(made, auroc_of_counts, 300).samples.std()


def test_rows_that_tested_other_records_are_no_pair():
    made = folds()
    other = [made[0]._replace(session=made[0].session[::-1]), *made[1:]]
    with pytest.raises(ValueError, match="other records in fold part0"):
        paired_folds(made, other, auroc_of_counts)
    assert paired_folds(made, made[:2], auroc_of_counts, 50).value == 0  # the folds that both have


def test_two_rows_are_compared_by_the_classes_that_they_tell_over_all_folds_together():
    from sklearn.metrics import f1_score

    made, random = folds(), np.random.default_rng(3)
    truth = np.concatenate([one.label for one in made]) * random.integers(1, 3, 72)
    right, guessed = np.tile(truth, (2, 1)), random.integers(0, 3, (2, 72))
    found = paired_classes(made, truth, right, guessed, 3, draws=200)
    assert found.value == pytest.approx(1 - np.mean([f1_score(truth, one, average="macro") for one in guessed]), abs=1e-12)
    low, high = np.quantile(found.samples, [0.025, 0.975])
    assert 0 < low < found.value < high < 1
    assert not paired_classes(made, truth, guessed, guessed, 3, draws=200).samples.any()


def test_whole_sessions_are_drawn_where_classes_are_compared():
    """The second row errs in one session alone: a draw without it finds no difference, one that has it twice a larger one."""
    made = folds(seeds=1)
    truth, session = np.concatenate([one.label for one in made]), np.concatenate([one.session for one in made])
    wrong = np.where(session == "0-0-1", 0, truth)[None]
    found = paired_classes(made, truth, truth[None], wrong, 2, draws=400)
    assert found.value > 0 and (found.samples == 0).mean() == pytest.approx(0.36, abs=0.1) and found.samples.max() > 1.5 * found.value
