"""What a set of stored tokens holds, before anything is learnt from it: counts by modality, label and group, lengths, widths and every problem.

E303 records without a label, E304 a modality that no record has, E305 one label only, E321 to E329 as record_errors.py has them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from stages.datasets.record_errors import RecordError, some
from stages.datasets.record_intake import Grouping, Intake, grouped, warned
from stages.datasets.record_lists import Listing
from stages.datasets.record_store import RecordStore
from stages.datasets.records import UNKNOWN
from stages.datasets.samples import Problem
from stages.progress import progress

LABELS = {0: "normal", 1: "anomalous", UNKNOWN: "unlabelled"}


class Lengths(NamedTuple):
    """Of one modality: how many records have it, their width, and how many tokens they have."""

    records: int
    width: int
    shortest: int
    median: float
    longest: int


class Examined(NamedTuple):
    records: int
    modalities: dict[str, Lengths]
    subsets: dict[str, int]  # "image+text" -> records that have just these
    labels: dict[str, int]
    groups: int
    grouping: str  # which rule gave the groups
    largest_group: int
    splits: dict[str, int]
    problems: list[Problem]

    @property
    def ok(self) -> bool:
        """Whether a model can be trained on it."""
        return not any(problem.severity == "error" for problem in self.problems)


class _Row(NamedTuple):
    record_id: str
    label: int
    group: str
    split: str | None
    lengths: dict[str, int]


def examined(found: Listing, *, as_tokens: bool = False, group: Grouping = "auto", quiet: bool = False) -> Examined:
    """Reads every file, and changes nothing."""
    problems: list[Problem] = []
    intake, rows = Intake(found, as_tokens=as_tokens, say=lambda text: problems.append(warned(text))), list[_Row]()
    with progress("reading", len(found.items), quiet=quiet) as advance:
        for position in range(len(found.items)):
            if (record := intake.read(position)) is not None:
                lengths = {name: len(one.values) for name, one in record.modalities.items()}
                rows.append(_Row(record.record_id, record.label, record.group, record.split, lengths))
            advance(1)
    problems += [Problem(one.code, "warning", one.path, f"{one.key} {one.reason}".strip(), "") for one in intake.rejected]
    try:
        intake.require_most()
    except RecordError as error:
        problems.append(Problem(error.code, "error", error.path, error.what, error.fix))
    ids = [row.record_id for row in rows]
    groups, rule = grouped(
        group, [intake.paths[one] for one in ids], [intake.said_ids[one] for one in ids], [row.group for row in rows], [row.label for row in rows]
    )
    rows = [row._replace(group=given or row.record_id) for row, given in zip(rows, groups, strict=True)]
    return _summed(rows, intake.widths, rule, problems)


def examined_store(store: RecordStore) -> Examined:
    """No token is read."""
    lengths = {name: one.tolist() for name, one in store.lengths().items()} if store.rows else {}
    rows = [
        _Row(row["record_id"], row["label"], row["group"], row["split"], {name: of[at] for name, of in lengths.items() if of[at]})
        for at, row in enumerate(store.rows)
    ]
    return _summed(rows, store.widths, store.about.get("grouping", "said"), [])


def as_json(found: Examined) -> dict[str, Any]:
    lengths = {name: one._asdict() for name, one in found.modalities.items()}
    return {"ok": found.ok, **found._asdict(), "modalities": lengths, "problems": [one._asdict() for one in found.problems]}


def _summed(rows: list[_Row], widths: dict[str, int], rule: str, problems: list[Problem]) -> Examined:
    of = {name: [row.lengths[name] for row in rows if name in row.lengths] for name in widths}
    labels, groups = Counter(LABELS[row.label] for row in rows), Counter(row.group for row in rows)
    return Examined(
        records=len(rows),
        modalities={name: Lengths(len(n), widths[name], min(n, default=0), statistics.median(n or [0]), max(n, default=0)) for name, n in of.items()},
        subsets=dict(Counter("+".join(name for name in widths if name in row.lengths) for row in rows).most_common()),
        labels={name: labels[name] for name in LABELS.values()},
        groups=len(groups),
        grouping=rule,
        largest_group=max(groups.values(), default=0),
        splits=dict(Counter(row.split for row in rows if row.split)),
        problems=[*problems, *_untrainable(rows, of)],
    )


def _untrainable(rows: list[_Row], of: dict[str, list[int]]) -> Iterable[Problem]:
    unlabelled = [row.record_id for row in rows if row.label == UNKNOWN]
    if unlabelled:
        what = f"{len(unlabelled)} of {len(rows)} records have no label: {some(unlabelled)}"
        yield Problem("E303", "error", "", what, "Give each 0 or 1, or leave them out of training")
    labels = {row.label for row in rows} - {UNKNOWN}
    if len(labels) < 2:
        only = f"all that have a label are {LABELS[labels.pop()]}" if labels else "no record has a label"
        yield Problem("E305", "error", "", only, "Training needs normal and anomalous records")
    for name, lengths in of.items():
        if not lengths:
            yield Problem("E304", "warning", "", f"no record has the modality {name}", "Pack again without it")
    whole = {row.label: len({one.group for one in rows if one.label == row.label}) for row in rows if row.label != UNKNOWN}
    if len(labels) == 2 and not any(row.split for row in rows) and min(whole.values()) < 3:
        rare = min(whole, key=whole.__getitem__)
        what = f"the {LABELS[rare]} records lie in {whole[rare]} groups; train, val and test need one each"
        yield Problem("E306", "error", "", what, "Add records, or choose --group file where files do not belong together")
