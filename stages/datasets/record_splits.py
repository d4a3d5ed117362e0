"""Who is learnt from, who sets thresholds, who is judged: train, val and test of records, disjoint by record, by group and by content.

A shift, a patient or a session is drawn as a whole. Records that share a file are bound as a group is, but for notes: two inspectors may well write
the same words. Where a data set fixes a split it is kept, and what train shares with the judged is taken out of train. What is left is drawn: of
several seeded draws the one whose lists have the most even share of normal and of anomalous records. Where all anomalous records of a group have one kind
of fault and none is normal, as in sessions that were welded wrong on purpose, each kind is shared out by itself. Records without a label are in no list.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.datasets.duplicates import clusters
from stages.datasets.record_checks import SPLITS
from stages.datasets.records import UNKNOWN
from stages.datasets.samples import DataError
from stages.seed import numpy_generator

UNLABELLED = "unlabelled"  # the split of records that nobody judged: they can be scored, and nothing is learnt from them
DRAWS = 64  # that the most even one is taken of
NOTES = "text"
SUFFIX = "_hash"  # columns of the sample table: what a file holds
LABELS = {0: "normal", 1: "anomalous", UNKNOWN: "unknown"}

Row = Mapping[str, Any]  # a row of samples.parquet


class Rule(NamedTuple):
    """The fractions are of the groups."""

    split_seed: int
    val_fraction: float
    test_fraction: float


class Split(NamedTuple):
    samples: list[dict[str, Any]]  # record_id, split, label, group, fault; in the order of the table
    leaks: list[dict[str, str]]  # what was taken out: record_id, removed_from, because of which split


def split(dataset: str, rows: Sequence[Row], rule: Rule) -> Split:
    """Draw the lists. Raises DataError where a label that the data set has cannot be in all of them."""
    group = clusters(len(rows), _links(rows))
    place = _fixed(rows, group)
    leaks = [
        {"record_id": row["record_id"], "removed_from": row["split"], "shares_with": place[group[at]]}
        for at, row in enumerate(rows)
        if row["split"] and row["label"] != UNKNOWN and row["split"] != place[group[at]]
    ]
    _draw(dataset, rows, group, place, rule)
    gone = {leak["record_id"] for leak in leaks}
    samples = [
        {
            "record_id": row["record_id"],
            "split": UNLABELLED if row["label"] == UNKNOWN else place[group[at]],
            "label": row["label"],
            "group": rows[group[at]]["group"],
            "fault": row["fault"],
        }
        for at, row in enumerate(rows)
        if row["record_id"] not in gone
    ]
    return Split(samples, leaks)


def _links(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Everything that must stay on one side, as linked positions: neighbours in a group, and records with a file in common."""
    columns = [name for name in (rows[0] if rows else ()) if name.endswith(SUFFIX)]
    bind = [name for name in columns if name != NOTES + SUFFIX] or columns
    first: dict[tuple[str, str], int] = {}
    links = []
    for at, row in enumerate(rows):
        for name in ("group", *bind):
            if row[name] is not None and (before := first.setdefault((name, row[name]), at)) != at:
                links.append((before, at))
    return links


def _fixed(rows: Sequence[Row], group: Sequence[int]) -> dict[int, str]:
    """Group -> the split that the data set fixes for it; where it fixes several, the one that is judged last wins."""
    place: dict[int, str] = {}
    for at, row in enumerate(rows):
        if row["split"] and row["label"] != UNKNOWN:
            place[group[at]] = max(place.get(group[at], SPLITS[0]), row["split"], key=SPLITS.index)
    return place


def _draw(dataset: str, rows: Sequence[Row], group: Sequence[int], place: dict[int, str], rule: Rule) -> None:
    """Fill `place` for the groups that are not fixed, and take val out of a fixed train where there is no other val."""
    count: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(2, np.int64))  # group -> normal and anomalous records
    faults: dict[int, set[str]] = defaultdict(set)
    for at, row in enumerate(rows):
        if row["label"] != UNKNOWN:
            count[group[at]][row["label"]] += 1
            if row["label"]:
                faults[group[at]].add(row["fault"] or "")
    kind = {name: _kind(number, faults[name]) for name, number in count.items()}
    judged = set(place.values())
    free = [name for name in count if name not in place]
    wanted = {"test": rule.test_fraction if "test" not in judged else 0, "val": rule.val_fraction if "val" not in judged else 0}
    pool = free + ([name for name in place if place[name] == "train"] if wanted["val"] and not wanted["test"] else [])
    fixed = {
        part: sum((count[name] for name in place if place[name] == part and name not in pool), np.zeros(2, np.int64)) for part in SPLITS
    }
    drawn = _most_even(pool, count, kind, wanted, fixed, numpy_generator(rule.split_seed, "records", dataset))
    place.update(dict.fromkeys(free, "train") | drawn)
    _refuse_empty(dataset, count, place, bool(judged))


def _kind(number: np.ndarray, faults: set[str]) -> tuple[int, str]:
    """What a group is shared out with: those that have normal records alone, that have both, or anomalous ones alone, of the same fault if it has one."""
    normal, anomalous = (number > 0).tolist()
    return normal + 2 * anomalous, next(iter(faults)) if anomalous and not normal and len(faults) == 1 else ""


def _most_even(pool: Sequence[int], count: Mapping[int, np.ndarray], kinds: Mapping[int, tuple[int, str]], wanted: Mapping[str, float],
               fixed: Mapping[str, np.ndarray], draw: np.random.Generator) -> dict[int, str]:  # fmt: skip
    """Group -> test or val, for those of the pool that leave train."""
    if not pool:
        return {}
    number = np.stack([count[name] for name in pool])  # (groups, 2)
    order = {one: place for place, one in enumerate(sorted({kinds[name] for name in pool}))}
    kind = np.array([order[kinds[name]] for name in pool])
    total = number.sum(0)
    best, least = np.zeros(len(pool), np.int64), np.inf
    for _ in range(DRAWS):
        part = _by_strata(kind, wanted, draw)
        cost = 0.0
        for name, code in (("train", 0), ("val", 1), ("test", 2)):
            have = number[part == code].sum(0)
            share = wanted.get(name, 1 - sum(wanted.values()))
            asked = (total > 0) & (share > 0)
            cost += float((((have - share * total) / np.maximum(total, 1))[asked] ** 2).sum())
        if cost < least:
            best, least = part, cost
    _complete(best, number, wanted, fixed)
    return {pool[at]: SPLITS[best[at]] for at in np.flatnonzero(best)}


def _complete(part: np.ndarray, number: np.ndarray, wanted: Mapping[str, float], fixed: Mapping[str, np.ndarray]) -> None:
    """Where a drawn list has none of a label, give it the smallest group of train that has some, as long as train keeps another; in place."""
    for name, fraction in wanted.items():
        for label in (0, 1):
            learnt = np.flatnonzero((part == 0) & (number[:, label] > 0))
            if fraction and not number[part == SPLITS.index(name), label].any() and len(learnt) > (not fixed["train"][label]):
                part[learnt[number[learnt].sum(1).argmin()]] = SPLITS.index(name)


def _by_strata(kind: np.ndarray, wanted: Mapping[str, float], draw: np.random.Generator) -> np.ndarray:
    """(groups,) 0 train, 1 val, 2 test. kind: (groups,) those of one kind are shared out by themselves.

    Whole groups only: what rounding leaves over in one kind of group is carried to the next.
    """
    part, carry = np.zeros(len(kind), np.int64), dict.fromkeys(wanted, 0.0)
    for one in draw.permutation(np.unique(kind)):
        members, start = draw.permutation(np.flatnonzero(kind == one)), 0
        for name, fraction in wanted.items():
            exact = fraction * len(members) + carry[name]
            size = min(max(round(exact), 0), len(members) - start)
            if fraction and not size and len(members) >= 3:  # enough to give one to each list
                size = 1
            carry[name] = exact - size
            part[members[start : start + size]] = SPLITS.index(name)
            start += size
    return part


def _refuse_empty(dataset: str, count: Mapping[int, np.ndarray], place: Mapping[int, str], fixed: bool) -> None:
    """Each list needs each label; where the data set fixes the split, or has one label only, what it has is enough."""
    sums = {part: sum((count[name] for name in count if place[name] == part), np.zeros(2, np.int64)) for part in SPLITS}
    if fixed:
        if empty := [part for part in SPLITS if not sums[part].sum()]:
            raise DataError(
                f"E425 {dataset}: {' and '.join(empty)} would get no labelled record. Give the table some for it, or leave its column `split` out"
            )
        return
    for label, name in ((0, "normal"), (1, "anomalous")):
        groups = sum(bool(one[label]) for one in count.values())
        absent = [part for part in SPLITS if not sums[part][label]]
        if absent and groups:
            raise DataError(
                f"E425 {dataset} has {name} records in {groups} groups, and {' and '.join(absent)} would get none of them; "
                "each list needs one group at least. Make groups smaller, give more records, or fix the split in the table"
            )


def counts(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """split -> groups, normal, anomalous, unknown."""
    table: dict[str, dict[str, int]] = {}
    for name in (*SPLITS, UNLABELLED):
        of = [sample for sample in samples if sample["split"] == name]
        if of or name != UNLABELLED:
            number = {word: sum(sample["label"] == label for sample in of) for label, word in LABELS.items()}
            table[name] = {"groups": len({sample["group"] for sample in of})} | number
    return table
