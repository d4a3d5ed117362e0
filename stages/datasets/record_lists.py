"""Which files are meant: a folder and a pattern, a JSON list of paths, or a versioned JSON list that also says labels, groups and splits.

    ["/data/a.pt", "b.pt"]                                                              paths absolute, or relative to the list
    {"version": 1, "root": "features", "items": [{"path": "a.pt", "label": 1, ...}]}    root relative to the list, paths to the root

What a list says of a record counts more than what its file says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from stages import io
from stages.datasets.record_errors import RecordError, some
from stages.datasets.record_files import SPLITS
from stages.datasets.records import Record

PATTERN = "**/*.pt"
TOLD = ("path", "id", "label", "group", "fault", "split")


class Item(NamedTuple):
    """One file, and what is known of its record beside it; None where the file itself is asked."""

    path: str  # POSIX, relative to the listing's root, or absolute
    id: str | None = None
    label: int | None = None
    group: str | None = None
    fault: str | None = None
    split: str | None = None

    def told(self, record: Record) -> Record:
        """The record with what the list says of it."""
        known = {"record_id": self.id, "label": self.label, "group": self.group, "fault": self.fault, "split": self.split}
        return record._replace(**{name: value for name, value in known.items() if value is not None})


class Listing(NamedTuple):
    root: Path
    items: list[Item]

    def file(self, item: Item) -> Path:
        return self.root / item.path


def listing(source: Path, pattern: str = PATTERN) -> Listing:
    """Of a folder, or of a list. Raises RecordError where there is nothing, and for all files of a list that are not there at once."""
    if source.is_dir():
        return scanned(source, pattern)
    if not source.is_file():
        raise RecordError("E328", source, "", "is neither a folder nor a list", "Give a folder of .pt files or a JSON list of their paths")
    found = read_list(source)
    if missing := [item.path for item in found.items if not found.file(item).is_file()]:
        what = f"{len(missing)} of {len(found.items)} files are not there: {some(missing)}"
        raise RecordError("E328", source, "", what, "Correct the paths, or make the list again")
    return found


def scanned(folder: Path, pattern: str = PATTERN) -> Listing:
    """The files of a folder that fit the pattern, sorted by path."""
    if not folder.is_dir():
        raise RecordError("E328", folder, "", "is no folder", "Give the folder that holds the .pt files")
    try:
        paths = sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise RecordError("E328", folder, "", f"cannot be searched for {pattern!r}: {error}", f"Give a pattern such as {PATTERN}") from None
    if not paths:
        raise RecordError("E328", folder, "", f"has no file that fits {pattern!r}", "Give another folder or another --pattern")
    return Listing(folder, [Item(path) for path in paths])


def read_list(path: Path) -> Listing:
    content = io.read_json(path)
    if isinstance(content, list):
        return Listing(path.parent, [_item(one, path, place) for place, one in enumerate(_some_items(content, path))])
    if not isinstance(content, dict) or content.get("version") != 1 or not isinstance(content.get("items"), list):
        raise RecordError("E328", path, "", 'is no list of paths and no {"version": 1, "root": ..., "items": [...]}', "Write one of the two")
    root = content.get("root", ".")
    if not isinstance(root, str):
        raise RecordError("E328", path, "root", f"is a {type(root).__name__}, expected a path", "Correct it")
    return Listing(path.parent / root, [_item(one, path, place) for place, one in enumerate(_some_items(content["items"], path))])


def write_list(path: Path, found: Listing) -> None:
    """The list of absolute paths that other programs of the field read, too."""
    io.write_json(path, [found.file(item).resolve().as_posix() for item in found.items])


def distinct_stems(items: Sequence[Item]) -> list[str]:
    """An id for each file from its name alone; from its whole path without the ending where names repeat."""
    stems = [PurePosixPath(item.path).stem for item in items]
    once: dict[str, bool] = {}
    for stem in stems:
        once[stem] = stem not in once
    return [stem if once[stem] else PurePosixPath(item.path).with_suffix("").as_posix() for stem, item in zip(stems, items, strict=True)]


def _some_items(items: list[Any], path: Path) -> list[Any]:
    if not items:
        raise RecordError("E328", path, "", "lists no file", "Make the list again, with a folder that holds .pt files")
    return items


def _item(given: Any, path: Path, place: int) -> Item:
    if isinstance(given, str) and given:
        return Item(Path(given).as_posix())
    if not isinstance(given, dict) or not isinstance(given.get("path"), str):
        raise RecordError("E328", path, f"items[{place}]", "is no path and no dict with the key path", "Correct the list")
    if unknown := [key for key in given if key not in TOLD]:
        raise RecordError("E328", path, f"items[{place}]", f"has the unknown key {unknown[0]}", f"Known: {', '.join(TOLD)}")
    item = Item(**{**given, "path": Path(given["path"]).as_posix()})
    if item.label not in (None, 0, 1) or isinstance(item.label, bool):
        raise RecordError("E326", path, f"items[{place}].label", f"is {item.label!r}", "Give 0 (normal), 1 (anomalous), or leave it out")
    for name in ("id", "group", "fault", "split"):
        if not isinstance(getattr(item, name), str | None):
            raise RecordError("E328", path, f"items[{place}].{name}", f"is a {type(getattr(item, name)).__name__}, expected text", "Correct it")
    if item.split not in (None, *SPLITS):
        raise RecordError("E327", path, f"items[{place}].split", f"is {item.split!r}", f"One of {', '.join(SPLITS)}")
    return item
