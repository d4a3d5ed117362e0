"""What each modality adds to one score: the exact Shapley values of the game whose players are the modalities that a record has.

The value of a coalition is the score of the record with these modalities alone. A player's Shapley value is what it adds, averaged over all orders in
which the players can join; it is the only division that adds up to the whole, treats equals equally, gives nothing to what adds nothing, and is linear
in the game (Shapley, "A Value for n-Person Games", 1953). All 2^M coalitions are scored: nothing is sampled. A modality that a record lacks is no
player: it adds nothing and changes nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.inputs import Flags, Floats, check_finite

MOST_PLAYERS = 6  # 64 coalitions, each of which is one pass of the model over all records


def coalitions(players: Sequence[str]) -> Iterator[frozenset[str]]:
    """All 2^M of them, the empty one first, then by size."""
    for size in range(len(players) + 1):
        yield from map(frozenset, itertools.combinations(players, size))


def shapley(value: Mapping[frozenset[str], ArrayLike], players: Sequence[str], present: ArrayLike | None = None) -> Floats:
    """(B, M) float64, columns as `players`; the sum of a row is the value of all players that are present less that of none.

    value: for each coalition its score, (B,) or one number for all records; read only where all its members are present, and anything, also NaN,
    elsewhere. present: (B, M) bool, all by default.
    """
    if not 1 <= len(players) <= MOST_PLAYERS:
        raise ValueError(f"expected 1..{MOST_PLAYERS} players, got {len(players)}: every coalition of them must be scored")
    if lacking := [coalition for coalition in coalitions(players) if coalition not in value]:
        first = sorted(lacking[0]) or "the empty one"
        raise ValueError(f"{len(lacking)} of {2 ** len(players)} coalitions have no value, the first is {first}")
    table, there = _table(value, players), _presence(present, value, players)
    own = there @ (1 << np.arange(len(players)))  # (B,) the bits of those that are present
    row = np.arange(len(own))
    joined = np.stack([table[coalition & own, row] for coalition in range(len(table))])  # (2^M, B)
    check_finite(joined, "values of coalitions")
    return np.stack([_share(joined, player, len(players)) for player in range(len(players))], axis=1)


def _share(joined: Floats, player: int, players: int) -> Floats:
    """(B,): what one player adds to the coalitions without it. Coalition number c holds player p where bit p of c is set."""
    total = np.zeros(joined.shape[1])
    for coalition in range(1 << players):
        if not coalition >> player & 1:
            weight = 1 / (players * math.comb(players - 1, coalition.bit_count()))
            total += weight * (joined[coalition | 1 << player] - joined[coalition])
    return total


def _table(value: Mapping[frozenset[str], ArrayLike], players: Sequence[str]) -> Floats:
    """(2^M, B)."""
    numbers = [frozenset(name for place, name in enumerate(players) if number >> place & 1) for number in range(1 << len(players))]
    return np.stack(np.broadcast_arrays(*(np.atleast_1d(np.asarray(value[coalition], dtype=np.float64)) for coalition in numbers)))


def _presence(present: ArrayLike | None, value: Mapping[frozenset[str], ArrayLike], players: Sequence[str]) -> Flags:
    records = max(np.size(value[coalition]) for coalition in coalitions(players))
    there = np.ones((records, len(players)), dtype=bool) if present is None else np.asarray(present, dtype=bool)
    if there.shape != (records, len(players)):
        raise ValueError(f"present must have shape ({records}, {len(players)}), a row for each record, got {there.shape}")
    return there
