"""How the labels of a data set are spread: records and sessions of each class, in each split; and what follows for who can be learnt from and judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import io
from stages.datasets.records import NORMAL, UNKNOWN
from stages.datasets.weld_protocols import class_of_row

NONE = "no split"


def of_folder(directory: Path) -> list[dict[str, Any]]:
    """The records of a folder in the layout of the welding release, with its own split. Nothing but lists is read."""
    from stages.datasets import intel_welding

    reading = intel_welding.read_layout(directory, split="official", open_media=False)
    return [{"record_id": row.record_id, "label": row.label, "fault": row.fault, "group": row.group, "split": row.split} for row in reading.rows]


def of_dataset(dataset: str) -> list[dict[str, Any]]:
    """The records of a prepared data set, with the split of its manifest."""
    return io.read_json(Path("data", dataset, "manifest.json"))["samples"]


def counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """classes: a row each, normal first, with records and sessions in all and records by split. warnings: what is wrong with it, in words."""
    known = [row for row in rows if row["label"] != UNKNOWN]
    splits = [name for name in ("train", "val", "test", NONE) if any((row["split"] or NONE) == name for row in known)]
    names = sorted({class_of_row(row) for row in known}, key=lambda name: (name != NORMAL, name))
    classes = []
    for name in names:
        own = [row for row in known if class_of_row(row) == name]
        by_split = Counter(row["split"] or NONE for row in own)
        classes.append({"class": name, "records": len(own), "sessions": len({_session(row) for row in own})} | {split: by_split[split] for split in splits})
    return {"records": len(rows), "unlabelled": len(rows) - len(known), "classes": classes, "warnings": _warnings(known, classes, splits)}


def _warnings(rows: Sequence[Mapping[str, Any]], classes: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> list[str]:
    found = [f"no {split} record is of class {one['class']}" for one in classes for split in splits if split != NONE and not one[split]]
    found += [f"class {one['class']} has one session, so it cannot be learnt and judged" for one in classes if one["sessions"] == 1]
    sides = {session: {row["split"] for row in rows if _session(row) == session} - {None} for session in {_session(row) for row in rows}}
    if crossing := sum(len(one) > 1 for one in sides.values()):
        found.append(f"{crossing} of {len(sides)} sessions are in more than one split: who knows the session knows the answer")
    kinds = Counter(_session(row) for row in {(_session(row), class_of_row(row)): row for row in rows}.values())
    if len(kinds) > 1 and all(count == 1 for count in kinds.values()):
        found.append("every session has records of one class only, so what tells sessions apart tells classes apart: see the row session-only")
    return found


def _session(row: Mapping[str, Any]) -> str:
    return row["group"] or row["record_id"]


def render(found: Mapping[str, Any]) -> str:
    columns = [name for name in found["classes"][0] if name != "class"] if found["classes"] else []
    wide = max((len(one["class"]) for one in found["classes"]), default=5)
    lines = [f"{'class':<{wide}}" + "".join(f"{name:>10}" for name in columns)]
    lines += [f"{one['class']:<{wide}}" + "".join(f"{one[name]:>10}" for name in columns) for one in found["classes"]]
    lines.append(f"{found['records']} records" + (f", {found['unlabelled']} of them without a label" if found["unlabelled"] else ""))
    return "\n".join([*lines, *(f"warning: {one}" for one in found["warnings"])])
