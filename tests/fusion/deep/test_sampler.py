"""Every batch is balanced, everything comes equally often, and the order is the generator's alone."""

from collections import Counter

import pytest
import torch

from stages.fusion.deep.maths.sampler import balanced

UNEVEN = torch.tensor([0] * 60 + [1] * 20 + [2] * 9 + [3] * 5 + [4] * 2)


def drawn(classes, classes_per_batch=3, per_class=4, seed=0):
    return balanced(classes, classes_per_batch, per_class)(torch.Generator().manual_seed(seed))


def test_every_full_batch_has_as_many_classes_and_as_many_records_of_each_as_asked():
    order = drawn(UNEVEN)
    assert len(order) == len(UNEVEN)
    for start in range(0, len(order) - 11, 12):
        found = Counter(UNEVEN[order[start : start + 12]].tolist())
        assert sorted(found.values()) == [4, 4, 4]


def test_classes_come_equally_often_and_the_records_of_a_class_too():
    order = drawn(UNEVEN.repeat(10))
    classes = Counter(UNEVEN.repeat(10)[order].tolist())
    assert max(classes.values()) - min(classes.values()) <= 4
    for kind in range(5):
        members = (UNEVEN.repeat(10) == kind).nonzero()[:, 0].tolist()
        counts = Counter(order)
        assert max(counts[one] for one in members) - min(counts[one] for one in members) <= 1


def test_a_class_is_not_drawn_twice_in_a_batch_while_it_has_others():
    order = drawn(UNEVEN)
    for start in range(0, len(order) - 11, 12):
        batch = order[start : start + 12]
        many = [one for one in batch if UNEVEN[one] <= 2]
        assert len(set(many)) >= len(many) - 2  # at most where a pack of nine ends


def test_a_batch_that_is_cut_short_is_even_too():
    found = Counter(UNEVEN[:94][drawn(UNEVEN[:94])[84:]].tolist())
    assert sum(found.values()) == 10 and sorted(found.values()) == [3, 3, 4]


@pytest.mark.parametrize("classes, expected", [([0] * 9, [6]), ([0] * 8 + [1], [3, 3])])
def test_few_classes_fill_a_batch_and_tiny_ones_repeat(classes, expected):
    order = drawn(torch.tensor(classes), 3, 2)
    assert len(order) == 9
    assert sorted(Counter(torch.tensor(classes)[order[:6]].tolist()).values()) == expected


def test_one_record_is_an_epoch_of_one():
    assert drawn(torch.tensor([0])) == [0]


def test_the_order_is_that_of_the_generator():
    assert drawn(UNEVEN, seed=3) == drawn(UNEVEN, seed=3) != drawn(UNEVEN, seed=4)


def test_records_without_a_class_are_an_error():
    with pytest.raises(ValueError, match="needs a class"):
        drawn(torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="per_class"):
        drawn(UNEVEN, per_class=0)
