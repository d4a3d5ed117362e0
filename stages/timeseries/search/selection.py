"""Which combinations of the quick stage are trained in full.

`diverse` is the union of three lists: the best n of every level of every factor, the best 10 of what is left, and of what is left then the best 5 at
telling anomalies from windows that merely had one earlier. n grows from 5 until the union holds as many as are wanted. `top-k` is the best ones.
Both see the validation block alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]  # a line of the quick table: number, the levels of the factors, the figures

QUALITY, DISTURBING = "val_roc_auc", "val_disturbing_auc"
RULES = ("diverse", "top-k")
PER_LEVEL, OVERALL, AMONG_DISTURBING = 5, 10, 5


class Selection(NamedTuple):
    """criterion: of each chosen number, all that speaks for it, in the order of the rule. per_level: the n that it took; None for top-k."""

    rule: str
    criterion: dict[int, str]
    per_level: int | None
    trimmed: bool = False  # the union had more than the most that are wanted, and the best of it were kept


def select(rows: Sequence[Row], factors: Sequence[str], rule: str = "diverse", keep: tuple[int, int] = (50, 70)) -> Selection:
    """The combinations for the full stage. keep: the fewest and the most; all of them where there are no more than the fewest.

    rows: with figures, in any order; equals are taken by number. Raises ValueError for bounds or rules that cannot be.
    """
    fewest, most = keep
    if not 1 <= fewest <= most:
        raise ValueError(f"keep must be the fewest and the most, 1 <= fewest <= most, got {fewest} and {most}")
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r}; known: {', '.join(RULES)}")
    if rule == "top-k":
        return Selection(rule, dict.fromkeys(_best(rows, (fewest + most) // 2), "overall"), None)
    per_level, wanted = PER_LEVEL, min(fewest, len(rows))
    while len(chosen := union(rows, factors, per_level)) < wanted:
        per_level += 1
    kept = set(_best([row for row in rows if row["number"] in chosen], most))
    return Selection(rule, {number: why for number, why in chosen.items() if number in kept}, per_level, len(kept) < len(chosen))


def union(rows: Sequence[Row], factors: Sequence[str], per_level: int) -> dict[int, str]:
    """Number to criterion, in the order chosen: the best `per_level` of each level, whether or not another level has them already, and so on."""
    chosen: dict[int, list[str]] = {}
    for factor in factors:
        for level in sorted({row[factor] for row in rows}, key=str):
            for number in _best((row for row in rows if row[factor] == level), per_level):
                chosen.setdefault(number, []).append(f"{factor}={level}")
    for name, figure, count in (("overall", QUALITY, OVERALL), ("disturbing", DISTURBING, AMONG_DISTURBING)):
        for number in _best([row for row in rows if row["number"] not in chosen], count, figure):
            chosen[number] = [name]
    return {number: "; ".join(names) for number, names in chosen.items()}


def _best(rows: Iterable[Row], count: int, figure: str = QUALITY) -> list[int]:
    return [row["number"] for row in sorted(rows, key=lambda row: (-row[figure], row["number"]))[:count]]
