"""Convex weights by hand."""

import math

import pytest
import torch

from stages.fusion.deep.maths.simplex import MOST, best, grid, shares, weighted


@pytest.mark.parametrize(("members", "count"), [(1, 1), (2, 21), (3, 231), (4, 1771), (5, 10626)])
def test_the_grid_is_all_multiples_of_a_twentieth_that_sum_to_1(members, count):
    found = grid(members)
    assert found.shape == (count, members) and (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(count, dtype=torch.float64))
    torch.testing.assert_close(found * 20, (found * 20).round())
    assert len(found.unique(dim=0)) == count


def test_with_many_members_the_steps_are_coarser_so_that_the_grid_stays_small():
    found = grid(8)
    assert len(found) <= MOST < math.comb(20 + 7, 7) and found.max() == 1


def test_what_is_absent_leaves_its_weight_to_the_rest():
    present = torch.tensor([[True, True], [True, False], [False, True]])
    weight = torch.tensor([1.0, 0.0])
    assert shares(present, weight).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert weighted(torch.tensor([[2.0, 8.0]] * 3), present, torch.tensor([0.25, 0.75])).tolist() == [6.5, 2.0, 8.0]


def test_the_best_weights_are_those_of_the_one_that_knows():
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    knows, guesses = torch.tensor([-3.0, -2, -1, 1, 2, 3]), torch.tensor([50.0, -50, 9, -9, 0, 1])
    found = best(torch.stack([guesses, knows], 1), torch.ones(6, 2, dtype=torch.bool), label)
    assert found.tolist() == [0, 1]


def test_of_equal_auroc_the_likelier_weights_are_taken():
    """Both rank without error; one is so unsure that its share costs likelihood."""
    label = torch.tensor([0, 1])
    found = best(torch.tensor([[-0.01, -9.0], [0.01, 9.0]]), torch.ones(2, 2, dtype=torch.bool), label)
    assert found.tolist() == [0, 1]
