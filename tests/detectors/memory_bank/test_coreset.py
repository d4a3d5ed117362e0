import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.detectors.memory_bank.maths import coreset
from stages.detectors.memory_bank.maths.coreset import greedy_coreset, random_projection


def naive(bank: Tensor, size: int, start: int) -> list[int]:
    """The algorithm of the paper as it is written: every distance again for every pick, rows that are in are out of the question."""
    chosen = [start]
    while len(chosen) < size:
        distances = torch.cdist(bank.double(), bank[chosen].double(), compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    return chosen


def radius(bank: Tensor, chosen: list[int]) -> float:
    return torch.cdist(bank.double(), bank[chosen].double()).amin(dim=1).max().item()


def gaussian_bank(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 2, 7, 64, 10_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_picks_equal_the_naive_algorithm_for_every_block_size(block, dtype, monkeypatch):
    monkeypatch.setattr(coreset, "BLOCK", block)
    bank = gaussian_bank(300, 12, seed=block).to(dtype)
    assert greedy_coreset(bank, 120, start=5).tolist() == naive(bank, 120, start=5)


def test_picks_do_not_depend_on_how_many_rows_are_brought_up_to_date_at_once(monkeypatch):
    bank = gaussian_bank(500, 8, seed=0).double()
    expected = greedy_coreset(bank, 100)
    monkeypatch.setattr(coreset, "PRODUCT", 64)
    assert torch.equal(greedy_coreset(bank, 100), expected)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(2, 60), size=st.integers(1, 60), values=st.integers(1, 4), seed=st.integers(0, 999))
def test_with_many_duplicates_no_row_is_taken_twice_and_the_radius_is_the_naive_one(rows, size, values, seed):
    bank = torch.randint(values, (rows, 2), generator=torch.Generator().manual_seed(seed)).float()
    size = min(size, rows)
    chosen = greedy_coreset(bank, size, start=seed % rows).tolist()
    assert len(set(chosen)) == size and chosen[0] == seed % rows
    assert radius(bank, chosen) == radius(bank, naive(bank, size, seed % rows))


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(4, 9), size=st.integers(1, 4), seed=st.integers(0, 999))
def test_coreset_is_within_twice_the_best_radius(rows, size, seed):
    """Gonzalez 1985: greedy k-centre is a 2-approximation. Checked against brute force."""
    bank = gaussian_bank(rows, 2, seed)
    best = min(radius(bank, list(centres)) for centres in itertools.combinations(range(rows), size))
    assert radius(bank, greedy_coreset(bank, size).tolist()) <= 2 * best + 1e-6


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 199), seed=st.integers(0, 999))
def test_a_smaller_coreset_is_a_prefix_and_the_radius_never_grows_with_size(size, seed):
    bank = gaussian_bank(200, 6, seed).double()
    larger = greedy_coreset(bank, 200).tolist()
    assert greedy_coreset(bank, size).tolist() == larger[:size]
    assert radius(bank, larger[: size + 1]) <= radius(bank, larger[:size]) + 1e-12
    assert sorted(larger) == list(range(200))


def test_distances_far_from_the_origin_survive_rounding():
    """|x|^2 + |c|^2 - 2xc cancels here and may turn negative; the chosen rows must still cover as the naive ones do, to rounding."""
    bank = gaussian_bank(400, 16, seed=3) + 30
    chosen = greedy_coreset(bank, 80).tolist()
    assert len(set(chosen)) == 80
    assert radius(bank, chosen) == pytest.approx(radius(bank, naive(bank, 80, 0)), rel=1e-2)


def test_the_bank_is_not_changed_and_progress_counts_every_pick():
    bank = gaussian_bank(100, 4, seed=1)
    before, counts = bank.clone(), []
    greedy_coreset(bank, 40, advance=counts.append)
    assert torch.equal(bank, before) and sum(counts) == 40


@pytest.mark.parametrize("size", [0, 101])
def test_a_size_that_cannot_be_is_refused(size):
    with pytest.raises(ValueError, match=rf"coreset size must be in 1\.\.100 \(memory bank rows\), got {size}"):
        greedy_coreset(gaussian_bank(100, 2, seed=0), size)


def test_the_projection_keeps_distances_on_average_and_follows_its_generator():
    bank = gaussian_bank(200, 600, seed=2)
    matrix = random_projection(600, 128, torch.Generator().manual_seed(4))
    assert torch.equal(matrix, random_projection(600, 128, torch.Generator().manual_seed(4)))
    ratio = torch.pdist(bank @ matrix).square() / torch.pdist(bank).square()
    assert ratio.mean().item() == pytest.approx(1, abs=0.03) and ratio.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.15)
