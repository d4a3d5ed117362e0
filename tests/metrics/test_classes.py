"""Figures of classes against scikit-learn, ties of the vote by hand, areas and re-weighted precision against the plain definition."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix, f1_score, precision_recall_fscore_support
from sklearn.neighbors import KNeighborsClassifier

from stages.metrics import classes
from stages.metrics.ranking import rank


def drawn(seed: int, count: int = 200, kinds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    true = random.integers(kinds, size=count)
    return true, np.where(random.random(count) < 0.6, true, random.integers(kinds, size=count))


def test_figures_of_the_matrix_equal_scikit_learn():
    true, told = drawn(0)
    count = classes.class_counts(true, told, 5)
    assert np.array_equal(count, confusion_matrix(true, told))
    found = classes.by_class(count)
    for mine, theirs in zip(found, precision_recall_fscore_support(true, told), strict=True):
        assert mine == pytest.approx(theirs)
    assert classes.accuracy(count) == pytest.approx(accuracy_score(true, told))
    assert classes.macro_f1(count) == pytest.approx(f1_score(true, told, average="macro"))


def test_a_class_without_records_has_no_part_in_macro_f1_and_one_that_is_never_found_counts_as_zero():
    true, told = np.array([0, 0, 1, 3]), np.array([0, 2, 1, 0])
    count = classes.class_counts(true, told, 4)
    found = classes.by_class(count)
    assert np.isnan(found.f1[2]) and found.f1[3] == 0 and np.isnan(found.precision[3]) and found.precision[2] == 0
    assert classes.macro_f1(count) == pytest.approx(f1_score(true, told, average="macro", labels=[0, 1, 3]))


def test_weights_count_records_as_often_as_they_were_drawn():
    true, told = drawn(1, 60)
    weight = np.random.default_rng(2).integers(0, 4, size=(3, 60))
    found = classes.macro_f1(classes.class_counts(true, told, 5, weight))
    for row, one in zip(weight, found, strict=True):
        again = np.repeat(np.arange(60), row)
        assert one == pytest.approx(f1_score(true[again], told[again], average="macro", labels=np.unique(true[again])))


@pytest.mark.parametrize(("k", "weights"), [(1, "uniform"), (3, "uniform"), (5, "distance")])
def test_neighbours_vote_as_those_of_scikit_learn_where_nothing_is_tied(k, weights):
    random = np.random.default_rng(3)
    centres = random.normal(size=(2, 6))
    label = random.integers(2, size=80)
    bank, asked = centres[label] + random.normal(size=(80, 6)), random.normal(size=(50, 6))
    reference = KNeighborsClassifier(k, weights=weights, metric="cosine").fit(bank, label)
    assert np.array_equal(classes.nearest_class(bank, label, asked, 2, k, weights), reference.predict(asked))


def test_a_tie_goes_to_the_nearest_and_more_neighbours_than_the_bank_has_are_all_of_it():
    """Angles of 10, 20, 30 and 40 degrees from what is asked for, of classes 1, 0, 0 and 1: two votes each, and the nearest is of class 1."""
    angle = np.radians([10, 20, 30, 40])
    bank = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert classes.nearest_class(bank, [1, 0, 0, 1], [[1.0, 0.0]], 3, k=4).tolist() == [1]
    assert classes.nearest_class(bank, [1, 0, 0, 1], [[1.0, 0.0]], 3, k=99).tolist() == [1]
    assert classes.nearest_class(bank, [1, 0, 0, 2], [[1.0, 0.0]], 3, k=4).tolist() == [0]


def test_of_two_records_a_class_only_one_neighbour_or_votes_by_distance_find_the_record_itself():
    """Five neighbours of a bank with two of each class cannot all be right: the record, its twin, and three others that may be of one class."""
    bank = np.array([[1, 0.0, 0], [0.6, 0.8, 0], [0.9, 0.0, 0.436], [0.9, 0.1, 0.42], [0.9, -0.1, 0.42], [0, 0, 1]])
    label = np.array([0, 0, 1, 1, 1, 2])
    assert np.array_equal(classes.nearest_class(bank, label, bank, 3, k=1), label)
    assert np.array_equal(classes.nearest_class(bank, label, bank, 3, k=5, weights="distance"), label)
    assert not np.array_equal(classes.nearest_class(bank, label, bank, 3, k=5), label)


def test_a_record_told_by_length_alone_is_told_by_direction():
    bank = np.array([[10.0, 0.0], [0.0, 0.1]])
    assert classes.nearest_class(bank, [0, 1], [[0.01, 0.0], [0.0, 50.0]], 2, k=1).tolist() == [0, 1]


def test_impossible_votes_are_refused():
    with pytest.raises(ValueError, match="uniform, distance"):
        classes.nearest_class([[1.0]], [0], [[1.0]], 1, weights="near")
    with pytest.raises(ValueError, match="no neighbour"):
        classes.nearest_class(np.empty((0, 2)), [], [[1.0, 0.0]], 1)


def scored(seed: int = 4, count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    label = (random.random(count) < 0.7).astype(int)
    return np.round(random.normal(size=count) + 1.2 * label, 1), label


@pytest.mark.parametrize("prevalence", [0.05, 0.2])
def test_average_precision_at_a_prevalence_is_that_of_weighted_records(prevalence):
    score, label = scored()
    weight = np.where(label == 1, prevalence / (label == 1).sum(), (1 - prevalence) / (label == 0).sum())
    counted = rank(score, label)
    found = classes.average_precision_at(counted.positive, counted.negative, prevalence)
    assert found == pytest.approx(average_precision_score(label, score, sample_weight=weight))


def test_a_constant_score_has_the_prevalence_as_average_precision():
    assert classes.average_precision_at(np.array([30]), np.array([10]), 0.05) == pytest.approx(0.05)


def test_what_is_missed_falls_as_more_alarms_are_allowed():
    counted = rank(*scored())
    missed = [float(classes.missed_at(counted.positive, counted.negative, allowed)) for allowed in (0.01, 0.05, 0.1, 1.0)]
    assert missed == sorted(missed, reverse=True) and missed[-1] == 0 and missed[0] > missed[2]


def test_a_guess_is_worth_what_its_labels_are_by_scikit_learn():
    names = ["normal"] * 7 + ["porosity"] * 63 + ["overlap"] * 30
    found = classes.guess(names, "normal")
    every = ["porosity"] * 100
    assert (found["class"], found["accuracy"]) == ("porosity", accuracy_score(names, every))
    assert found["macro_f1"] == pytest.approx(f1_score(names, every, average="macro", zero_division=0))
    bad = np.array([name != "normal" for name in names])
    assert found["f1"] == pytest.approx(f1_score(bad, np.ones(100))) and found["pr_auc"] == pytest.approx(0.93)


def test_as_many_classes_as_records_are_counted_without_room_for_every_pair_of_pairs():
    true, told = np.arange(1000), np.roll(np.arange(1000), 1)
    count = classes.class_counts(true, told, 1000)
    assert count.sum() == 1000 and (count[true, told] == 1).all() and classes.accuracy(count) == 0
