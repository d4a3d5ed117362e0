"""Shapley values, against the definition by orders and against the four axioms."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.metrics.shapley import coalitions, shapley

NAMES = ["text", "image", "video", "audio", "series"]


def game(players: list[str], records: int = 7, seed: int = 0) -> dict[frozenset[str], np.ndarray]:
    random = np.random.default_rng(seed)
    return {coalition: random.normal(0, 3, records) for coalition in coalitions(players)}


def by_orders(value: dict[frozenset[str], np.ndarray], players: list[str]) -> np.ndarray:
    """The definition: the mean of what each adds over all orders of joining."""
    orders = list(itertools.permutations(players))
    before = {player: [frozenset(order[: order.index(player)]) for order in orders] for player in players}
    return np.stack([np.mean([value[some | {player}] - value[some] for some in before[player]], axis=0) for player in players], axis=1)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_it_is_the_mean_over_all_orders(count):
    value = game(NAMES[:count])
    np.testing.assert_allclose(shapley(value, NAMES[:count]), by_orders(value, NAMES[:count]), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6))
def test_the_values_of_those_present_sum_to_all_less_nothing(count, seed):
    players, value = NAMES[:count], game(NAMES[:count], seed=seed)
    present = np.random.default_rng(seed).random((7, count)) < 0.6
    for coalition in value:  # a coalition that is not all there cannot be scored
        lacks = [not all(present[row, players.index(name)] for name in coalition) for row in range(7)]
        value[coalition] = np.where(lacks, np.nan, value[coalition])
    found = shapley(value, players, present)
    whole = [value[frozenset(name for name, there in zip(players, row) if there)][at] for at, row in enumerate(present)]
    np.testing.assert_allclose(found.sum(1), np.array(whole) - value[frozenset()], atol=1e-6)
    assert (found[~present] == 0).all()


def test_an_absent_modality_leaves_the_game_of_the_others():
    value, present = game(NAMES[:3]), np.array([[True, False, True]] * 7)
    others = {coalition: value[coalition] for coalition in coalitions(["text", "video"])}
    np.testing.assert_allclose(shapley(value, NAMES[:3], present)[:, [0, 2]], shapley(others, ["text", "video"]), atol=1e-12)


def test_what_adds_nothing_gets_nothing_and_equals_get_equal():
    base = game(["text", "image"])
    value = {coalition: base[coalition - {"video"}] for coalition in coalitions(NAMES[:3])}
    assert np.abs(shapley(value, NAMES[:3])[:, 2]).max() < 1e-12
    alike = {
        coalition: np.array([float(len(coalition & {"text", "image"}) ** 2 + 3 * ("video" in coalition))])
        for coalition in coalitions(NAMES[:3])
    }
    np.testing.assert_allclose(shapley(alike, NAMES[:3]), [[2, 2, 3]], atol=1e-12)


def test_it_is_linear_in_the_game():
    one, other = game(NAMES, seed=1), game(NAMES, seed=2)
    both = {coalition: one[coalition] + 2 * other[coalition] for coalition in one}
    np.testing.assert_allclose(shapley(both, NAMES), shapley(one, NAMES) + 2 * shapley(other, NAMES), atol=1e-12)


def test_one_number_for_the_empty_coalition_serves_all_records():
    value = game(NAMES[:2]) | {frozenset(): 0.25}
    np.testing.assert_allclose(shapley(value, NAMES[:2]).sum(1), value[frozenset(NAMES[:2])] - 0.25, atol=1e-12)


def test_what_cannot_be_divided_is_said():
    value = game(NAMES[:2])
    with pytest.raises(ValueError, match=r"1 of 4 coalitions.*\['image'\]"):
        shapley({coalition: one for coalition, one in value.items() if coalition != {"image"}}, NAMES[:2])
    with pytest.raises(ValueError, match="NaN"):
        shapley(value | {frozenset({"text"}): np.full(7, np.nan)}, NAMES[:2])
    with pytest.raises(ValueError, match=r"1\.\.6 players, got 7"):
        shapley({}, list("abcdefg"))
    with pytest.raises(ValueError, match=r"shape \(7, 2\).*got \(3, 2\)"):
        shapley(value, NAMES[:2], np.ones((3, 2)))
