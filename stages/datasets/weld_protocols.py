"""Who is learnt from and who is judged, four ways, for records that come in sessions.

P1 is the split that the data set itself fixes, for comparison with what others published, sessions that cross it included; the release's train holds
good welds alone, so that there a fifth of its and validation's sessions stay validation and the others are learnt from. P2 parts the sessions into
five, each tested once (StratifiedGroupKFold of scikit-learn, stratified by class): the headline. P3 leaves out one value of a setting, a steel or a
thickness, and P4 one kind of fault: its records and held-out normal ones are the test, so that what is judged is whether a fault that nobody has seen
is found. In all of them but P1 no session, and no file that two records share, is on two sides; validation is a part of the training sessions. A fold
without both labels where they are needed is not made, and `Folds.skipped` says why.

A class is "normal" or a kind of fault. Records without a label are in no fold.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.datasets.duplicates import clusters
from stages.datasets.record_splits import NOTES, SUFFIX
from stages.datasets.records import FACT, NORMAL, UNKNOWN
from stages.datasets.samples import DataError
from stages.seed import derive

PROTOCOLS = {
    "P1": "the split of the data set",
    "P2": "five parts by session",
    "P3": "one setting left out",
    "P4": "one kind of fault left out",
}
UNNAMED = "not named"  # the class of anomalous records of which nobody said what is wrong with them
PARTS, GOOD_PARTS = 5, 4  # of P2, and of the normal sessions of P4, of which each fault is judged against one
OFFICIAL = f"{FACT}official_split"  # the split of a release, where its sessions are drawn anew all the same
VAL_FRACTION = 0.2  # of the training sessions
LEFT_OUT = ("steel_type", "thickness_mm")  # facts that P3 leaves out a value of

Row = Mapping[str, Any]  # of samples.parquet


class Fold(NamedTuple):
    """Record ids, each list in the order of the table."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


class Folds(NamedTuple):
    protocol: str
    folds: list[Fold]
    skipped: dict[str, str]  # a fold that cannot be, and why


class _Table(NamedTuple):
    """N labelled records."""

    rows: list[Row]
    ids: np.ndarray  # (N,) of str
    label: np.ndarray  # (N,) 0 or 1
    kind: np.ndarray  # (N,) the class, str
    session: np.ndarray  # (N,) int, what must stay on one side


def folds(protocol: str, rows: Sequence[Row], seed: int = 0, facts: Sequence[str] = LEFT_OUT) -> Folds:
    """All folds of one protocol. rows: the sample table; with the same seed every row order gives the same sessions to a fold.

    Raises DataError where the table cannot be parted so at all.
    """
    table = _labelled(rows)
    if protocol == "P1":
        return _fixed(table)
    if protocol == "P2":
        return _grouped(table, seed)
    if protocol == "P3":
        return _settings_left_out(table, seed, facts)
    if protocol == "P4":
        return _faults_left_out(table, seed)
    raise DataError(f"there is no protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")


def class_of_row(row: Row) -> str:
    return NORMAL if row["label"] == 0 else row["fault"] or UNNAMED


def described(fold: Fold, rows: Sequence[Row]) -> dict[str, Any]:
    """Counts by list and class, sessions by list, what the test shares with the rest, and classes that the test alone has."""
    by_id = {row["record_id"]: row for row in rows}
    own = {name: [by_id[one] for one in ids] for name, ids in zip(("train", "val", "test"), fold[1:], strict=True)}
    sessions = {name: {row["group"] or row["record_id"] for row in part} for name, part in own.items()}
    classes = {name: Counter(map(class_of_row, part)) for name, part in own.items()}
    return {
        "fold": fold.name,
        "records": {name: len(part) for name, part in own.items()},
        "sessions": {name: len(part) for name, part in sessions.items()},
        "sessions_in_test_and_train": len(sessions["test"] & sessions["train"]),
        "classes": {name: dict(sorted(part.items())) for name, part in classes.items()},
        "unseen_classes": sorted(set(classes["test"]) - set(classes["train"])),
    }


def _labelled(rows: Sequence[Row]) -> _Table:
    kept = sorted((row for row in rows if row["label"] != UNKNOWN), key=lambda row: row["record_id"])
    if len({row["label"] for row in kept}) < 2:
        raise DataError("a protocol needs normal and anomalous records; this table has one label. Give the others theirs")
    session = np.asarray(clusters(len(kept), _links(kept)))
    kind = np.array([class_of_row(row) for row in kept])
    return _Table(kept, np.array([row["record_id"] for row in kept]), np.array([row["label"] for row in kept]), kind, session)


def _links(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """Positions of neighbours in a session, and of records with a file in common; two notes may well say the same."""
    columns = [name for name in rows[0] if name.endswith(SUFFIX) and name != NOTES + SUFFIX]
    first: dict[tuple[str, str], int] = {}
    links = []
    for at, row in enumerate(rows):
        for name in ("group", *columns):
            if row[name] and (before := first.setdefault((name, row[name]), at)) != at:
                links.append((before, at))
    return links


def _fixed(table: _Table) -> Folds:
    split = np.array([row["split"] or row.get(OFFICIAL) or "" for row in table.rows])
    parts = {name: split == name for name in ("train", "val", "test")}
    if not parts["train"].any() or not parts["test"].any():
        return Folds("P1", [], {"official": "the data set fixes no split"})
    return _made("P1", [("official", lambda: _fold(table, "official", **_with_faults(table, parts)))])


def _with_faults(table: _Table, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Where there is no val, or no fault to learn from in train as in the release, val is drawn anew from the sessions of both."""
    if parts["val"].any() and (table.label[parts["train"]] == 1).any():
        return parts
    both = parts["train"] | parts["val"]
    val = _held_out(table, both, 0)
    return {"train": both & ~val, "val": val, "test": parts["test"]}


def _grouped(table: _Table, seed: int) -> Folds:
    test = _parts(table, np.ones(len(table.rows), bool), PARTS, derive(seed, "P2") % 2**32)
    return _made("P2", [(f"part{number}", lambda number=number: _learnt(table, f"part{number}", test == number, seed)) for number in range(PARTS)])


def _settings_left_out(table: _Table, seed: int, facts: Sequence[str]) -> Folds:
    absent = [fact for fact in facts if f"{FACT}{fact}" not in table.rows[0]]
    made: list[tuple[str, Callable[[], Fold]]] = []
    for fact in (fact for fact in facts if fact not in absent):
        value = np.array([_spelt(row[f"{FACT}{fact}"]) for row in table.rows])
        for one in sorted(set(value) - {""}):
            name = f"{fact}={one}"
            made.append((name, lambda name=name, test=value == one: _learnt(table, name, test, seed)))
    return _with(_made("P3", made), {fact: f"the data set has no fact {fact!r}" for fact in absent})


def _faults_left_out(table: _Table, seed: int) -> Folds:
    good = table.label == 0
    part = _parts(table, good, GOOD_PARTS, derive(seed, "P4") % 2**32)
    made: list[tuple[str, Callable[[], Fold]]] = []
    for number, fault in enumerate(sorted(set(table.kind[~good]))):
        test = (table.kind == fault) | (part == number % GOOD_PARTS)
        made.append((fault, lambda fault=fault, test=test: _learnt(table, fault, test, seed)))
    return _made("P4", made)


def _learnt(table: _Table, name: str, test: np.ndarray, seed: int) -> Fold:
    """What shares no session with the test is learnt from, but for a part of its sessions that is validation."""
    rest = ~np.isin(table.session, table.session[test])
    val = _held_out(table, rest, derive(seed, "validation", name) % 2**32)
    return _fold(table, name, rest & ~val, val, test)


def _held_out(table: _Table, rest: np.ndarray, seed: int) -> np.ndarray:
    """(N,) bool: of several parts of the sessions of `rest` the one that has both labels and costs train the fewest classes, then has the most."""
    count = len(set(table.session[rest]))
    if count < 3:
        raise DataError(f"only {count} sessions are left to learn from, which is too few to hold one out for validation")
    part = _parts(table, rest, min(round(1 / VAL_FRACTION), count), seed)
    best = min(range(part.max() + 1), key=lambda number: _cost(table, rest, part == number))
    lost = set(table.kind[rest]) - set(table.kind[rest & (part != best)])
    back = table.session[(part == best) & np.isin(table.kind, list(lost))]  # their sessions are needed to learn the class at all
    return (part == best) & ~np.isin(table.session, back)


def _cost(table: _Table, rest: np.ndarray, held: np.ndarray) -> tuple[int, int, int]:
    lost = len(set(table.kind[rest])) - len(set(table.kind[rest & ~held]))
    return 2 - len(set(table.label[held])), lost, -len(set(table.kind[held]))


def _parts(table: _Table, among: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(N,) int: which part a record is in, whole sessions, classes as even as they can be; -1 where it is not `among` them."""
    from sklearn.model_selection import StratifiedGroupKFold

    place = np.flatnonzero(among)
    sessions = len(set(table.session[place]))
    if sessions < count:
        raise DataError(f"{sessions} sessions cannot be parted into {count}; give records more groups (a session, a shift each)")
    kind = table.kind[place]
    if max(Counter(kind).values()) < count:
        kind = table.label[place]
    part = np.full(len(among), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class has fewer records than there are parts
        drawn = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(place, kind, table.session[place])
        for number, (_, test) in enumerate(drawn):
            part[place[test]] = number
    return part


def _fold(table: _Table, name: str, train: np.ndarray, val: np.ndarray, test: np.ndarray) -> Fold:
    """Raises DataError where a list lacks a label that it needs."""
    for part, flags in (("train", train), ("test", test)):
        for label, word in ((0, "normal"), (1, "anomalous")):
            if not (table.label[flags] == label).any():
                raise DataError(f"{part} would have no {word} record")
    return Fold(name, *(tuple(table.ids[flags].tolist()) for flags in (train, val, test)))


def _made(protocol: str, asked: Iterable[tuple[str, Callable[[], Fold]]]) -> Folds:
    found, skipped = [], {}
    for name, make in asked:
        try:
            found.append(make())
        except DataError as reason:
            skipped[name] = str(reason)
    return Folds(protocol, found, skipped)


def _with(made: Folds, skipped: dict[str, str]) -> Folds:
    return made._replace(skipped=made.skipped | skipped)


def _spelt(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
