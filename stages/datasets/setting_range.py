"""Which settings a model of records has seen, and whether a new one lies outside: the least and greatest of each number, the set of each word.

Settings are the facts that the controls of a data set name (extracts of kind `facts`): setpoints, material, duration. A fact that merely names the group
(a session) is no setting. A range is no promise: between two values that were seen there may be none, and every pair of settings within may be new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import io
from stages.datasets.record_store import ABOUT
from stages.datasets.records import FACT

Range = dict[str, Any]  # {"least": number, "most": number} or {"levels": [text, ...]}; as config.json holds it
Facts = Mapping[str, str | float | None]


class Outside(NamedTuple):
    """One fact that lies outside what was seen."""

    fact: str
    value: str | float
    seen: Range


def seen(dataset: str, record_ids: Sequence[str], project: Path = Path()) -> dict[str, Range]:
    """By setting its range over these records; {} where the data set has no facts, or no control that names them."""
    names, facts = setting_names(dataset, project), facts_of(dataset, project)
    rows = [facts[record] for record in record_ids if record in facts]
    return ranges({name: [row[name] for row in rows if row.get(name) is not None] for name in names})


def ranges(values: Mapping[str, Sequence[str | float]]) -> dict[str, Range]:
    """Of each setting that has any value."""
    return {name: _range(found) for name, found in values.items() if found}


def _range(values: Sequence[str | float]) -> Range:
    if any(isinstance(value, str) for value in values):
        return {"levels": sorted({str(value) for value in values})}
    return {"least": min(map(float, values)), "most": max(map(float, values))}


def outside(known: Mapping[str, Range], facts: Facts) -> list[Outside]:
    """Those facts that the range does not hold; what is not told, and what the range does not know, is none of them."""
    told = {name: facts[name] for name in known if facts.get(name) is not None}
    return [Outside(name, value, known[name]) for name, value in told.items() if value is not None and not _holds(known[name], value)]


def _holds(one: Range, value: str | float) -> bool:
    if "levels" in one:
        return str(value) in one["levels"]
    return not isinstance(value, str) and one["least"] <= value <= one["most"]


def as_text(one: Range) -> str:
    """190 to 230, or one of Butt, Lap."""
    if "levels" in one:
        return one["levels"][0] if len(one["levels"]) == 1 else f"one of {', '.join(one['levels'])}"
    return f"{one['least']:g}" if one["least"] == one["most"] else f"{one['least']:g} to {one['most']:g}"


def shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def counted(known: Mapping[str, Range], facts: Sequence[Facts]) -> list[dict[str, Any]]:
    """For each setting that any record has outside the range: how many of how many, and which values. JSON."""
    found: dict[str, list[str | float]] = {}
    for one in facts:
        for name, value, _ in outside(known, one):
            found.setdefault(name, []).append(value)
    told = {name: sum(one.get(name) is not None for one in facts) for name in found}
    return [
        {"fact": name, "records": len(values), "of": told[name], "values": _range(values), "seen": known[name]}
        for name, values in sorted(found.items(), key=lambda one: (-len(one[1]), one[0]))
    ]


def warnings(counts: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a fact."""
    return [
        f"{one['fact']} is {as_text(one['values'])} in {one['records']} of {one['of']} records; in training it was {as_text(one['seen'])}"
        for one in counts
    ]


def facts_of(dataset: str, project: Path = Path()) -> dict[str, dict[str, str | float | None]]:
    """By record what the sample table says of it beside its media; {} where it says nothing."""
    path = project / "data" / dataset / "samples.parquet"
    rows = io.read_table(path) if path.is_file() else []
    names = [name for name in (rows[0] if rows else ()) if name.startswith(FACT)]
    return {row["record_id"]: {name.removeprefix(FACT): row[name] for name in names} for row in rows} if names else {}


def setting_names(dataset: str, project: Path = Path()) -> list[str]:
    """The facts that any control names, but those that are the record's group in the manifest."""
    abouts = [io.read_json(path) for path in sorted((project / "features" / dataset).glob(f"*/{ABOUT}"))]
    entries = [one["entry"] for one in abouts if one.get("entry", {}).get("kind") == "facts"]
    named = dict.fromkeys(name for entry in entries for part in ("nominal", "levels", "hashed") for name in entry.get(part) or ())
    facts = facts_of(dataset, project)
    rows = (
        [row for row in io.read_json(project / "data" / dataset / "manifest.json")["samples"] if row["record_id"] in facts] if named else []
    )
    return [name for name in named if any(facts[row["record_id"]].get(name) not in (None, row["group"]) for row in rows)]
