"""Intel's robotic welding data set: a weld as sensors, film, sound and photographs, good or with one of eleven defects.

Stemmer et al., arXiv:2409.02290; gated, for research only: it is read where it lies and nothing of it is passed on.

    manifest.csv                                     a row for each weld: CATEGORY, seven setpoints, DIRECTORY (its session), SUBDIRS, SPLIT
    <session>/<part_no>/<part_no>.{csv,avi,flac}     SUBDIRS names the folder and begins with DIRECTORY already
    <session>/<part_no>/images/*.jpg                 the weld afterwards, from five angles

Label: 0 for Good, 1 for anything else, as the manifest says; defects were provoked on purpose and not verified. Group: the session. The last two digits of
a part number tell the class, so that records are called by a hash of their place. Setpoints are facts, which no model sees unless it asks for
them. What is known to be wrong or treacherous is looked for and named: stages/datasets/intel_welding_checks.py.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from stages import io
from stages.datasets.folder import TRAIN, VAL
from stages.datasets.record_adapters import RecordReading, RecordRow
from stages.datasets.samples import DataError, Problem
from stages.datasets.table import read_rows
from stages.datasets.weld_files import plain

MANIFEST = "manifest.csv"
MODALITIES = ("image", "video", "audio", "series")
MEDIA = {"video": ".avi", "audio": ".flac", "series": ".csv"}
PHOTOS = "images"
GOOD = "good"
CLASSES = (GOOD, "excessive_convexity", "undercut", "lack_of_fusion", "porosity", "spatter", "burnthrough", "porosity_w_excessive_penetration",
           "excessive_penetration", "crater_cracks", "warping", "overlap")  # fmt: skip
CODES = {"00": GOOD, "01": "excessive_penetration", "02": "burnthrough", "06": "overlap", "07": "lack_of_fusion", "08": "excessive_convexity",
         "11": "crater_cracks"}  # fmt: skip
NAMES = {"weld_type": str, "thickness_mm": float, "steel_type": str, "current_a": float, "voltage_v": float, "gas_bar": float, "robot_speed_cpm": float}
LONGEST = 250  # bytes of a part number or a session: file systems allow 255, and files are called by it with an ending
REQUIRED = ("category", "directory", "subdirs")
ABOUT = {
    "name": "intel_welding",
    "citation": "Stemmer et al., Unsupervised Welding Defect Detection Using Audio And Video (2024), arXiv:2409.02290",
    "licence": "gated, for research only: not to be passed on",
    "label": "1 where a defect was provoked, 0 where the weld was meant to be good; intended, not verified",
}
ENCODERS: dict[str, dict[str, Any]] = {  # by modality, what `assay add` writes: all on the clock of the arc, without the paper label and the setting
    "image": {"kind": "views", "image_size": 224, "crop": [0.0, 0.2, 0.0, 0.0]},
    "video": {"kind": "arc_film", "frames": 16},
    "audio": {"kind": "arc_sound"},
    "series": {
        "kind": "sensor_steps",
        "relative": True,
        "nominal": {  # spreads within one weld
            "pressure": [1.8, 0.1],
            "co2_weld_flow": [15, 1],
            "feed": [70, 4],
            "primary_weld_current": [180, 8],
            "wire_consumed": [50, 20],
            "secondary_weld_voltage": [22, 1],
        },
    },
}
CONTROLS: dict[str, dict[str, Any]] = {  # likewise, of facts
    "setpoint": {
        "kind": "facts",
        "nominal": {"thickness_mm": [6, 3], "current_a": [190, 60], "voltage_v": [24, 5], "gas_bar": [2, 1], "robot_speed_cpm": [40, 15]},
        "hashed": {"weld_type": 16, "steel_type": 16},
    },
    "duration": {"kind": "facts", "nominal": {"duration_s": [30, 10]}},
    "session": {"kind": "facts", "hashed": {"session": 64}},
}


class Weld(NamedTuple):
    """One row of the manifest; one of several, where SUBDIRS names several folders."""

    session: str
    place: str  # the folder of the weld, POSIX, relative to the root
    kind: str  # its class in lower snake case
    split: str | None  # as the release says
    facts: Mapping[str, str | float]  # setpoints that are filled in

    @property
    def part(self) -> str:
        return PurePosixPath(self.place).name

    @property
    def record_id(self) -> str:
        return f"w{hashlib.sha256(self.place.encode()).hexdigest()[:12]}"

    def path(self, modality: str) -> str:
        """Where a medium of it lies, or should."""
        return f"{self.place}/{PHOTOS if modality == 'image' else self.part + MEDIA[modality]}"


def recognises(source: Path) -> bool:
    """Whether a folder has such a manifest."""
    try:
        with find_manifest(source).open(encoding="utf-8-sig", errors="replace") as file:
            header = file.readline(2**16).lower()
    except (DataError, OSError):
        return False
    return all(name in header for name in REQUIRED)


def read_records(
    source: Path,
    folder: Path,
    *,
    views: Annotated[int, Field(ge=1)] = 5,
    split: Literal["official", "none"] = "none",
    open_media: bool = True,
) -> RecordReading:
    """views: photographs that a weld should have. split: official keeps that of the release, which sessions cross: what train then shares with the judged
    is taken out of it by the manifest. open_media: look into sensor logs, and at the headers of films and sounds, which takes minutes for all.

    Raises DataError (E440) where there is no manifest, or none that can be used.
    """
    del folder
    return read_layout(source, views=views, split=split, open_media=open_media)


def read_layout(
    source: Path, *, views: int = 5, split: str = "none", open_media: bool = True, hashed: bool = True, about: Mapping[str, Any] = ABOUT
) -> RecordReading:
    """Any folder in this layout. hashed: whether rows tell what the photographs hold, for which all are read. about: what is told of the data set."""
    from stages.datasets import intel_welding_checks as checks

    manifest = find_manifest(source)
    root = manifest.parent
    welds, problems = read_manifest(manifest)
    found = {weld.record_id: checks.look(root, weld, open_media) for weld in welds}
    rows = [_row(root, weld, found[weld.record_id], split == "official", hashed) for weld in welds]
    problems += checks.problems(welds, found, views, official=split == "official")
    return RecordReading(root, MODALITIES, rows, problems, about)


def read_manifest(manifest: Path) -> tuple[list[Weld], list[Problem]]:
    """Its welds in order of their folders, and what is wrong with the table itself. Raises DataError (E440)."""
    try:
        rows = read_rows(manifest, REQUIRED)
    except (DataError, csv.Error) as error:
        raise DataError(f"E440 {manifest} cannot be used: {error}. Expected the manifest of the release, see docs/intel_welding.md") from error
    problems = []
    if absent := [name for name in NAMES if rows and name not in rows[0]]:
        what = f"the manifest has no column {', '.join(absent).upper()}; the controls that see setpoints go without"
        problems.append(Problem("E440", "warning", manifest.as_posix(), what, "Take the file as the release gives it"))
    if other := sorted({row["split"] for row in rows if row.get("split") and _split(row["split"]) is None}):
        what = f"SPLIT says {', '.join(other[:3])}, which is none of train, val and test; these welds are in no list of the official split"
        problems.append(Problem("E440", "warning", manifest.as_posix(), what, "Correct SPLIT, or leave `split: none`"))
    welds = sorted((weld for number, row in enumerate(rows) for weld in _welds(manifest, number + 2, row)), key=lambda weld: weld.place)
    if not welds:
        raise DataError(f"E440 {manifest} lists no weld. Take the file as the release gives it")
    places = [weld.place for weld in welds]
    if twice := next((place for place, after in pairwise(places) if place == after), None):
        raise DataError(f"E440 {manifest} lists {twice} twice. Remove one of its rows")
    return welds, problems


def class_name(category: str) -> str:
    """A class as the manifest spells it, in lower snake case: "Crater_Cracks", "Good Weld"."""
    return plain(category).removesuffix("_weld")


def find_manifest(source: Path) -> Path:
    """In the folder, or in the one folder of it that has one."""
    found = [source / MANIFEST] if (source / MANIFEST).is_file() else sorted(source.glob(f"*/{MANIFEST}"))
    if len(found) != 1:
        raise DataError(f"E440 {source} holds {len(found)} {MANIFEST}, expected one. Set `source` to the folder that the release was unpacked to")
    return found[0]


def _welds(manifest: Path, line: int, row: Mapping[str, str]) -> list[Weld]:
    session = _posix(row.get("directory", ""))  # a row may have fewer cells than the header
    places = [_posix(one) for one in _listed(row.get("subdirs", ""))]
    kind = class_name(row.get("category", ""))
    if not session or not places or not kind:
        raise DataError(f"E440 {manifest} line {line} lacks CATEGORY, DIRECTORY or SUBDIRS. Fill it in, or take the row out")
    places = [place if place.startswith(f"{session}/") else f"{session}/{place}" for place in places]
    for place in places:
        parts = PurePosixPath(place).parts
        if PurePosixPath(place).is_absolute() or ".." in parts or any(len(part.encode()) > LONGEST for part in parts):
            raise DataError(f"E440 {manifest} line {line} names {place[:80]}, which is outside of its folder, or too long. Correct SUBDIRS")
    facts = {name: value for name, kind_of in NAMES.items() if (value := _fact(manifest, line, name, row.get(name, ""), kind_of)) is not None}
    return [Weld(session, place, kind, _split(row.get("split", "")), facts) for place in places]


def _listed(cell: str) -> list[str]:
    """The folders that a cell names: one, a JSON list, or several with a separator between them."""
    if cell.startswith("["):
        try:
            return [str(one) for one in json.loads(cell.replace("'", '"'))]
        except (json.JSONDecodeError, RecursionError):
            cell = cell.strip("[]")
    return [one.strip() for one in cell.replace(";", ",").replace("|", ",").split(",") if one.strip()]


def _posix(place: str) -> str:
    return place.strip().replace("\\", "/").removeprefix("./").rstrip("/")


def _fact(manifest: Path, line: int, name: str, cell: str, kind: type) -> str | float | None:
    if not cell:
        return None
    if kind is str:
        return cell
    try:
        number = float(cell.replace(",", "."))
    except ValueError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"E440 {manifest} line {line} has {name.upper()} {cell!r}, expected a number. Mend the cell, or empty it")
    return number


def _split(name: str) -> str | None:
    name = plain(name)
    return next((part for part, names in (("train", TRAIN), ("val", VAL), ("test", {"test", "testing"})) if name in names), None)


def _row(root: Path, weld: Weld, found: Any, official: bool, hashed: bool) -> RecordRow:
    paths = {name: weld.path(name) for name in MODALITIES if name != "image" or found.photos}
    content = {"image": io.content_hash(sorted(io.file_hash(root / photo) for photo in found.photos))} if found.photos and hashed else {}
    facts = {**weld.facts, "session": weld.session}
    facts |= {"official_split": weld.split} if weld.split else {}
    facts |= {"duration_s": found.seconds["series"]} if found.seconds.get("series") is not None else {}
    fault = "" if weld.kind == GOOD else weld.kind
    return RecordRow(weld.record_id, paths, int(weld.kind != GOOD), fault, weld.session, weld.split if official else None, content, facts)
