import pytest
import torch

from stages.detectors.memory_bank.maths import neighbours
from stages.detectors.memory_bank.maths.neighbours import build_index, distances, nearest, own_neighbours


def bank_and_queries(rows: int, width: int, offset: float = 0.0):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=generator) + offset, torch.randn(150, width, generator=generator) + offset


@pytest.mark.parametrize("search", ["flat", "torch"])
@pytest.mark.parametrize("count", [1, 5])
def test_exact_search_equals_brute_force(search, count):
    bank, queries = bank_and_queries(300, 16)
    expected = torch.cdist(queries.double(), bank.double()).topk(count, largest=False).indices
    assert torch.equal(nearest(build_index(bank, search), queries, count), expected)


def test_distances_are_true_to_float32_where_faiss_has_lost_all_digits():
    """Far from the origin |x|^2 + |m|^2 - 2xm is mostly rounding; the distance itself is not."""
    bank, _ = bank_and_queries(40, 64, offset=1000.0)
    queries = bank + 0.01
    expected = (queries.double() - bank.double()).norm(dim=1)
    torch.testing.assert_close(distances(queries, bank).double(), expected, rtol=1e-6, atol=0)


def test_distances_are_float32_whatever_came():
    """80,000 is more than half precision can say."""
    assert distances(torch.full((1, 4), 40_000.0).half(), torch.zeros(1, 4).half()).tolist() == [80_000.0]


@pytest.mark.parametrize("search", ["hnsw", "ivf"])
def test_an_approximate_index_is_the_same_every_time_and_mostly_right(search):
    bank, _ = bank_and_queries(1000, 4)
    queries = bank + 0.01
    found = nearest(build_index(bank, search), queries)
    assert torch.equal(found, nearest(build_index(bank, search), queries))
    exact = nearest(build_index(bank), queries)
    assert (found == exact).float().mean() > 0.95


@pytest.mark.parametrize("search", ["hnsw", "ivf"])
@pytest.mark.parametrize("rows", [1, 2, 50])
def test_an_approximate_index_over_few_rows_finds_rows_that_exist(search, rows):
    bank, queries = bank_and_queries(rows, 4)
    found = nearest(build_index(bank, search), queries)
    assert found.min() >= 0 and found.max() < rows


def test_where_an_approximate_index_finds_nothing_it_names_a_row_that_exists(monkeypatch):
    """All 200 rows are asked of one list, which holds only some."""
    monkeypatch.setattr(neighbours, "IVF_PROBES", 1)
    bank, queries = bank_and_queries(200, 4)
    found = nearest(build_index(bank, "ivf"), queries, 200)
    assert found.min() == 0 and (found == 0).sum() > len(queries)


def test_own_neighbours_equal_brute_force_and_begin_with_the_row_itself():
    bank, _ = bank_and_queries(200, 8)
    found = own_neighbours(bank, 5)
    assert torch.equal(found, torch.cdist(bank.double(), bank.double()).topk(5, largest=False).indices)
    assert torch.equal(found[:, 0], torch.arange(200))


def test_a_row_with_many_copies_is_still_its_own_neighbour():
    bank = torch.zeros(30, 4)
    assert all(row in found for row, found in enumerate(own_neighbours(bank, 3).tolist()))
