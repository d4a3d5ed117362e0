"""A data set of embeddings that are stored already: a folder of `.pt` files, or a JSON list of them, a file a record.

Each file is opened once for its id, label and group; its tokens are packed by `extract_records`, modality "stored". Files that cannot be used are listed,
and past 5 % of them are an error. Labels are as the files or the list say: 0 normal, 1 anomalous, None unknown. What they mean is the data set's affair:
of pairs (a report and an image, two pictures) 1 is commonly a pair that does not belong together, which no record shows by itself.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from stages.datasets.record_adapters import STORED, RecordReading, RecordRow
from stages.datasets.record_errors import RecordError
from stages.datasets.record_intake import Grouping, Intake, grouped, warned
from stages.datasets.record_lists import PATTERN, Listing, listing
from stages.datasets.records import Record
from stages.datasets.samples import Problem
from stages.progress import progress


def read_records(source: Path, folder: Path, *, pattern: str = PATTERN, group: Grouping = "auto", as_tokens: bool = False) -> RecordReading:
    """pattern: which files of a folder. group: what must not be split where files do not say: the file, the folder it lies in, what has the same id.

    as_tokens: video (T, K, D) as T * K tokens of width D, as the encoder entry of kind stored says it.
    """
    found = _under_one_root(listing(source, pattern))
    problems: list[Problem] = []
    intake, records = Intake(found, as_tokens=as_tokens, say=lambda text: problems.append(warned(text, "Nothing, if that is meant"))), list[Record]()
    with progress("reading", len(found.items)) as advance:
        for position in range(len(found.items)):
            if (record := intake.read(position)) is not None:
                records.append(record._replace(modalities={}, step_label=None))
            advance(1)
    intake.require_most()
    problems += [Problem(one.code, "warning", one.path, f"{one.key} {one.reason}".strip(), "It is left out") for one in intake.rejected]
    paths = [intake.paths[record.record_id] for record in records]
    said = [intake.said_ids[record.record_id] for record in records]
    groups, rule = grouped(group, paths, said, [record.group for record in records], [record.label for record in records])
    rows = [
        RecordRow(record.record_id, {STORED: path}, record.label, record.fault, belongs, record.split)
        for record, path, belongs in zip(records, paths, groups, strict=True)
    ]
    about = {"labels": "as the files or the list say: 0 normal, 1 anomalous", "grouping": rule, "modalities": intake.widths}
    return RecordReading(found.root, (STORED,), rows, problems, about)


def _under_one_root(found: Listing) -> Listing:
    """The same files with paths relative to one folder, as the sample table needs them."""
    paths = [Path(os.path.abspath(found.file(item))) for item in found.items]
    try:
        root = Path(os.path.commonpath([path.parent for path in paths]))
    except ValueError as error:  # of Windows
        raise RecordError("E328", found.root, "", f"lists files of several drives ({error})", "Bring them to one drive, or list each drive by itself") from None
    items = [item._replace(path=path.relative_to(root).as_posix()) for item, path in zip(found.items, paths, strict=True)]
    given = Path(os.path.abspath(found.root))
    if root.is_relative_to(given):  # as the user wrote it, so that a project that is moved still finds it
        return Listing(found.root, [item._replace(path=PurePosixPath(path.relative_to(given)).as_posix()) for item, path in zip(items, paths)])
    return Listing(root, items)
