"""MIMIC-CXR as pairs of a chest radiograph and a report: 1 where the report is another patient's, 0 where the two belong together.

Johnson et al., Scientific Data 6 (2019), doi:10.1038/s41597-019-0322-0; on PhysioNet, for credentialed users only. It may not be passed on: what is read
stays where it is. The label is that of a pair mismatch, made here, and says nothing of a finding: no pair is anomalous in a medical sense. Reports
are exchanged within a split and between patients, each report is used once, and a patient is in one split only.

    files/p10/p10000032/s50414267.txt                 the report of a study
    files/p10/p10000032/s50414267/<dicom_id>.jpg      its pictures, as in MIMIC-CXR-JPG; the first by name is taken
    mimic-cxr-2.0.0-split.csv(.gz)                    the official split, where it is there; else patients are drawn
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from stages.datasets.mismatched_pairs import partners
from stages.datasets.record_adapters import RecordReading, RecordRow
from stages.datasets.samples import DataError, Problem
from stages.seed import numpy_generator

PLACE = re.compile(r"p(\d+)/s(\d+)(?:\.txt|/[^/]+\.(?:jpg|jpeg|png))$", re.IGNORECASE)
MOST_BYTES = 2**28  # of the table of splits; that of version 2.0.0 has a tenth of it
OFFICIAL = {"train": "train", "validate": "val", "test": "test"}
ABOUT = {
    "name": "mimic_cxr",
    "citation": "Johnson et al., MIMIC-CXR, Scientific Data 6 (2019), doi:10.1038/s41597-019-0322-0",
    "licence": "PhysioNet Credentialed Health Data License 1.5.0: not to be passed on",
    "label": "1 where the report is of another patient than the picture (a pair mismatch), 0 where both are of one study; no medical finding",
}


class _Study(NamedTuple):
    study: str
    patient: str
    image: str
    text: str


def read_records(
    source: Path,
    folder: Path,
    *,
    mismatched: Annotated[float, Field(ge=0, le=1)] = 0.5,
    seed: int = 0,
    val_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.15,
    test_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.15,
) -> RecordReading:
    """mismatched: share of the pairs of a split that get another patient's report. val_fraction, test_fraction: of the patients, without an official split."""
    del folder
    studies, problems = _studies(source)
    place = _official(source)
    if place and (without := sorted({one.patient for one in studies} - set(place))):
        what = f"{len(without)} patients have no row in the table of splits ({', '.join(without[:3])}{', ...' if without[3:] else ''}); they are in train"
        problems.append(Problem("E438", "warning", source.as_posix(), what, "Take the table of the same version as the pictures"))
    place = place or _drawn([one.patient for one in studies], seed, val_fraction, test_fraction)
    rows = []
    for split in ("train", "val", "test"):
        members = [one for one in studies if place.get(one.patient, "train") == split]
        texts = partners([one.patient for one in members], mismatched, numpy_generator(seed, "mimic_cxr", split))
        for at, (one, text) in enumerate(zip(members, texts, strict=True)):
            parted = text != at
            paths = {"text": members[text].text, "image": one.image}
            rows.append(RecordRow(f"s{one.study}", paths, int(parted), "mismatch" if parted else "", f"p{one.patient}", split))
    return RecordReading(source, ("text", "image"), rows, problems, ABOUT)


def _studies(source: Path) -> tuple[list[_Study], list[Problem]]:
    """Every study with a report and a picture, in order of their numbers; how many lack one."""
    reports: dict[tuple[str, str], str] = {}
    pictures: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in sorted(source.rglob("*")):
        shown = path.relative_to(source).as_posix()
        if (match := PLACE.search(shown)) and path.is_file():
            key = (match[1], match[2])
            if shown.lower().endswith(".txt"):
                reports[key] = shown
            else:
                pictures[key].append(shown)
    both = sorted(set(reports) & set(pictures))
    if not both:
        raise DataError(
            f"E438 {source} has no study with a report and a picture ({len(reports)} reports, {len(pictures)} studies with pictures). Expected "
            "p10/p10000032/s50414267.txt and p10/p10000032/s50414267/<name>.jpg below it; MIMIC-CXR-JPG and the reports go into one folder"
        )
    alone = len(set(reports) ^ set(pictures))
    what = f"{alone} studies have a report or a picture but not both; they are left out"
    problems = [Problem("E438", "warning", source.as_posix(), what, "Bring the other half, if they are wanted")] if alone else []
    return [_Study(study, patient, pictures[patient, study][0], reports[patient, study]) for patient, study in both], problems


def _official(source: Path) -> Mapping[str, str]:
    """Patient -> split, from the data set's own table; empty where it is not there."""
    found = sorted([*source.rglob("mimic-cxr-2.0.0-split.csv"), *source.rglob("mimic-cxr-2.0.0-split.csv.gz")])
    if not found:
        return {}
    columns, rows = _table(found[0])
    if missing := {"subject_id", "split"} - set(columns):
        raise DataError(f"E438 {found[0]} has no column {sorted(missing)[0]}. Take the file as PhysioNet gives it")
    if unknown := sorted({str(row["split"]) for row in rows} - set(OFFICIAL)):
        raise DataError(f"E438 {found[0]} has the split {unknown[0]!r}, expected {', '.join(OFFICIAL)}. Take the file as PhysioNet gives it")
    return {row["subject_id"]: OFFICIAL[row["split"]] for row in rows}


def _table(path: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    """The columns and the rows of a CSV file, packed or not. Raises DataError for one that is cut off, no text, or larger than any table of splits."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise DataError(f"E438 {path} holds more than {MOST_BYTES} bytes, more than the table of all splits. Take the file as PhysioNet gives it")
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
        return rows.fieldnames or (), list(rows)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"E438 {path} cannot be read as a table: {error}. Take the file as PhysioNet gives it") from error


def _drawn(patients: list[str], seed: int, val_fraction: float, test_fraction: float) -> Mapping[str, str]:
    names = sorted(set(patients))
    order = numpy_generator(seed, "mimic_cxr", "patients").permutation(names).tolist()
    test, val = round(test_fraction * len(order)), round(val_fraction * len(order))
    return {name: "test" if at < test else "val" if at < test + val else "train" for at, name in enumerate(order)}
