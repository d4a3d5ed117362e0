"""Which classes a set of welds holds, and in which sessions and lists they lie: what has to be known before any of them is learnt.

E450 a class in too few sessions for three lists, E451 a list without a class, E452 a session with several classes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import io
from stages.datasets.intel_welding import CLASSES, GOOD, find_manifest, read_manifest
from stages.datasets.record_errors import some
from stages.datasets.records import UNKNOWN
from stages.datasets.samples import Problem

LISTS = ("train", "val", "test")
NO_LIST = "none"


class Place(NamedTuple):
    """What counts of one weld."""

    kind: str  # its class
    session: str
    split: str  # the list it is in; NO_LIST where it is in none


class Labels(NamedTuple):
    welds: int
    classes: dict[str, dict[str, int]]  # class -> list -> welds, all lists that there are; Good first
    sessions: dict[str, int]  # class -> sessions that have it
    session_count: int  # of all; a session of several classes is one
    mixed: list[str]  # sessions with several classes
    problems: list[Problem]

    @property
    def ok(self) -> bool:
        return not any(problem.severity == "error" for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **self._asdict(), "problems": [problem._asdict() for problem in self.problems]}


def of_folder(folder: Path) -> Labels:
    """Of a folder in the layout of the release, with its official split. Raises DataError (E440)."""
    welds, _ = read_manifest(find_manifest(folder))
    return counted((Place(weld.kind, weld.session, weld.split or NO_LIST) for weld in welds), official=True)


def of_prepared(dataset: str, project: Path = Path()) -> Labels:
    """Of a data set that `manifest_records` has split. Raises Missing where it has not."""
    samples = io.read_json(io.require(project / "data" / dataset / "manifest.json"))["samples"]
    judged = [row for row in samples if row["label"] != UNKNOWN]  # the others are of no class, and in no list
    return counted(Place(row["fault"] or (GOOD if row["label"] == 0 else "unnamed"), row["group"], row["split"]) for row in judged)


def counted(places: Iterable[Place], official: bool = False) -> Labels:
    """official: whether lists are those of the release, of which train has Good alone, so that a class that is missing there is no error."""
    found = list(places)
    splits = [name for name in (*LISTS, NO_LIST) if any(place.split == name for place in found)]
    splits += sorted({place.split for place in found} - set(splits))
    number = Counter((place.kind, place.split) for place in found)
    sessions, kinds = defaultdict(set), defaultdict(set)
    for place in found:
        sessions[place.kind].add(place.session)
        kinds[place.session].add(place.kind)
    order = sorted(sessions, key=lambda kind: (CLASSES.index(kind) if kind in CLASSES else len(CLASSES), kind))
    classes = {kind: {split: number[kind, split] for split in splits} for kind in order}
    mixed = sorted(session for session, own in kinds.items() if len(own) > 1)
    whole = {kind: len(sessions[kind]) for kind in order}
    return Labels(len(found), classes, whole, len(kinds), mixed, _problems(classes, whole, mixed, official))


def render(found: Labels) -> str:
    """A table with a row a class, then what is wrong."""
    splits = list(next(iter(found.classes.values()), {}))
    width = max(map(len, (*found.classes, "class")))
    lines = [f"{found.welds} welds of {len(found.classes)} classes", f"{'class':<{width}} {'welds':>6} {'sessions':>8}" + _cells(splits)]
    for kind, counts in found.classes.items():
        lines.append(f"{kind:<{width}} {sum(counts.values()):>6} {found.sessions[kind]:>8}" + _cells(list(counts.values())))
    total = [sum(counts[split] for counts in found.classes.values()) for split in splits]
    lines.append(f"{'all':<{width}} {found.welds:>6} {found.session_count:>8}" + _cells(total))
    good = found.classes.get(GOOD, {})
    shares = [f"{split} {1 - good.get(split, 0) / count:.0%}" for split, count in zip(splits, total, strict=True) if count]
    lines.append(f"share of defects: {', '.join(shares)}")
    return "\n".join([*lines, *(f"{problem.severity} {problem.code}: {problem.what}. {problem.fix}" for problem in found.problems)])


def _cells(values: Sequence[object]) -> str:
    return "".join(f" {value!s:>6}" for value in values)


def _problems(classes: dict[str, dict[str, int]], sessions: dict[str, int], mixed: list[str], official: bool) -> list[Problem]:
    found = []
    if few := [f"{kind} {count}" for kind, count in sessions.items() if count < len(LISTS)]:
        what = f"classes that lie in fewer than {len(LISTS)} sessions, so that no split by session has them everywhere: {some(few)}"
        found.append(Problem("E450", "warning", "", what, "Record more sessions of them"))
    lists = [name for name in LISTS if any(counts.get(name) for counts in classes.values())]
    for name in lists:
        if absent := [kind for kind, counts in classes.items() if not counts[name]]:
            learnt = name == "train" and not official
            what = f"{name} has no weld of {some(absent)}"
            fix = "A class that is not learnt cannot be told; split again" if learnt else "It says nothing of these classes"
            found.append(Problem("E451", "error" if learnt else "warning", "", what, fix))
    if mixed:
        what = f"{len(mixed)} sessions hold several classes: {some(mixed, 3)}"
        found.append(Problem("E452", "warning", "", what, "In the release a session has one; look whether CATEGORY or DIRECTORY is wrong"))
    return found
