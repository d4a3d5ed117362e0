"""Files in, records out, one after another: what must agree over all of them is held here, and what is wrong with one is kept, never raised.

The first file that has a modality decides its width. Ids are unique: where one comes again, the later file is called by its path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Literal

from stages.datasets.record_errors import RecordError, Rejected, some
from stages.datasets.record_files import read_record
from stages.datasets.record_lists import Listing, distinct_stems
from stages.datasets.records import UNKNOWN, Record
from stages.datasets.samples import Problem

Grouping = Literal["auto", "file", "folder", "id"]
GROUPINGS = ("auto", "file", "folder", "id")
FOLDERS = 7  # of each label; with fewer of them no 15 % of the folders can be held out
RECOMMENDED_WIDTH = 256
MOST_REJECTED = 0.05


class Intake:
    """Reads the files of a listing in order. widths, rejected, unknown, said_ids and paths may be set, to go on after a stop."""

    def __init__(self, found: Listing, *, as_tokens: bool = False, labelled: bool = False, say: Callable[[str], None] = print) -> None:
        """labelled: a record without a label is rejected. say: is told of each unknown key and each narrow modality once."""
        self.found, self.as_tokens, self.labelled, self._say = found, as_tokens, labelled, say
        self._names = distinct_stems(found.items)
        self.widths: dict[str, int] = {}
        self.rejected: list[Rejected] = []
        self.unknown: dict[str, int] = {}  # key -> files that have it
        self.said_ids: dict[str, str] = {}  # record id -> what its file or the list called it
        self.paths: dict[str, str] = {}  # record id -> path
        self.facts: dict[str, dict[str, str | float]] = {}  # record id -> what its file says of it beside its media

    def read(self, position: int) -> Record | None:
        """The record of one file; None where it is rejected."""
        item = self.found.items[position]
        try:
            read = read_record(self.found.file(item), name=item.path, as_tokens=self.as_tokens)
            record = item.told(read.record if read.named else read.record._replace(record_id=self._names[position]))
            self._agree(record, item.path)
        except RecordError as error:
            self.rejected.append(Rejected.of(error, item.path))
            return None
        for key in read.unknown:
            self._note_unknown(key, item.path)
        said = record.record_id
        if said in self.paths:
            record = record._replace(record_id=_apart(PurePosixPath(item.path).with_suffix("").as_posix(), self.paths))
        self.said_ids[record.record_id], self.paths[record.record_id], self.facts[record.record_id] = said, item.path, read.facts
        return record

    def require_most(self) -> None:
        """Raises RecordError where too many files were rejected."""
        if len(self.rejected) > MOST_REJECTED * len(self.found.items):
            first = some([f"{one.path} ({one.code} {f'{one.key} {one.reason}'.strip()})" for one in self.rejected], 3)
            what = f"{len(self.rejected)} of {len(self.found.items)} files cannot be used, more than {MOST_REJECTED:.0%}: {first}"
            raise RecordError("E329", self.found.root, "", what, "Mend or remove them; `assay records check` lists them all")

    def _agree(self, record: Record, path: str) -> None:
        if self.labelled and record.label == UNKNOWN:
            raise RecordError("E303", path, "labels", "has no label, and training needs one", "Give it 0 or 1, in the file or in the list")
        for name, tokens in record.modalities.items():
            width = tokens.values.shape[1]
            if self.widths.get(name, width) != width:
                fix = "Use one encoder for all files of a modality"
                raise RecordError("E324", path, name, f"has width {width}, in the files before it {self.widths[name]}", fix)
        for name, tokens in record.modalities.items():
            width = tokens.values.shape[1]
            if name not in self.widths and width < RECOMMENDED_WIDTH:
                self._say(f"W302 {path}: {name} has width {width}; {RECOMMENDED_WIDTH} or more is recommended")
            self.widths.setdefault(name, width)

    def _note_unknown(self, key: str, path: str) -> None:
        if key not in self.unknown:
            self._say(f"W321 {path}: the key {key} means nothing here and is ignored, in this file and in others")
        self.unknown[key] = self.unknown.get(key, 0) + 1


def warned(text: str, fix: str = "") -> Problem:
    """What an intake says ("W302 path: what") as a problem of the data set."""
    code, rest = text.split(" ", 1)
    return Problem(code, "warning", rest.split(": ", 1)[0], rest.split(": ", 1)[-1], fix)


def grouped(rule: Grouping, paths: Sequence[str], said_ids: Sequence[str], groups: Sequence[str], labels: Sequence[int]) -> tuple[list[str], str]:
    """A group for each record ("" for the record itself), and which rule gave it: said, id, folder or file.

    auto: what files or list say of groups; else the ids, where any comes again; else the folders, where each label lies in seven or more of them, so
    that folders are patients or sessions and not classes; else each file by itself.
    """
    if rule == "auto":
        rule = "id" if max(Counter(said_ids).values(), default=1) > 1 else "folder" if _folders_are_groups(paths, labels) else "file"
        if any(groups):
            return list(groups), "said"
    if rule == "id":
        return list(said_ids), rule
    return [PurePosixPath(path).parent.as_posix() if rule == "folder" else "" for path in paths], rule


def _folders_are_groups(paths: Sequence[str], labels: Sequence[int]) -> bool:
    held: dict[int, set[str]] = {}
    for path, label in zip(paths, labels, strict=True):
        held.setdefault(label, set()).add(PurePosixPath(path).parent.as_posix())
    return min(map(len, held.values()), default=0) >= FOLDERS


def _apart(name: str, taken: dict[str, str]) -> str:
    number, found = 2, name
    while found in taken:
        number, found = number + 1, f"{name}-{number}"
    return found
