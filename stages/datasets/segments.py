"""Prepared recordings on disk, and the segments of them that a manifest gives to train, val, threshold and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from stages import io
from stages.datasets.recordings import Recording, Region, Segment, runs_of
from stages.datasets.samples import DataError

TIME, LABEL = "time_s", "label"  # columns that are no variables


def recording_path(recording_id: str) -> str:
    """POSIX, below data/<dataset>. Raises DataError for a name that would leave it."""
    parts = PurePosixPath(recording_id).parts
    if len(parts) != 2 or ".." in parts or any(set(part) & set('\\:*?"<>|\0') for part in parts):
        raise DataError(f"E319 {recording_id!r} cannot be a folder and a file. Use plain names for categories and recordings")
    return f"recordings/{recording_id}.parquet"


def write_recording(path: Path, recording: Recording) -> None:
    """Parquet: `time_s` if known, a float32 column for each variable, `label` int8 if known."""
    taken = {TIME, LABEL} & set(recording.variables)
    if taken:
        raise DataError(
            f"E317 {recording.category}/{recording.name} has a variable called {taken.pop()!r}, a word that is taken. Rename the column"
        )
    columns = {TIME: recording.time_s, **dict(zip(recording.variables, recording.values.T)), LABEL: recording.label}
    io.write_table(path, {name: np.ascontiguousarray(column) for name, column in columns.items() if column is not None})


def read_values(path: Path, variables: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """(T, V) float32 and (T,) int8 or None, of a prepared recording."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(io.require(path)) as file:
            labelled = [LABEL] if LABEL in file.schema_arrow.names else []
            table = file.read(columns=[*variables, *labelled])
    except pyarrow.ArrowException as error:
        raise io.DamagedFile(path, error) from error
    values = np.stack([table[name].to_numpy() for name in variables], 1)
    return values, table[LABEL].to_numpy() if labelled else None


def categories_of(dataset: str, project: Path = Path()) -> list[str]:
    """In the order of the manifest."""
    return list(dict.fromkeys(row["category"] for row in _manifest(dataset, project)["segments"]))


def open_segments(dataset: str, category: str, split: str, project: Path = Path()) -> list[Segment]:
    """The segments of one split of a category, each recording read once. split: train, val, threshold or test."""
    rows = [row for row in _manifest(dataset, project)["segments"] if (row["category"], row["split"]) == (category, split)]
    recordings = {row["recording_id"]: row for row in _recordings(dataset, project)}
    segments: list[Segment] = []
    for recording_id in dict.fromkeys(row["recording_id"] for row in rows):
        about = recordings[recording_id]
        values, label = read_values(project / "data" / dataset / about["path"], about["variables"])
        for row in rows:
            if row["recording_id"] == recording_id:
                place = slice(row["start"], row["stop"])
                part = None if label is None else label[place].copy()  # a view would keep the whole recording alive
                segments.append(Segment(recording_id, row["start"], values[place].copy(), part))
    return segments


def variables_of(dataset: str, category: str, project: Path = Path()) -> list[str]:
    """The names of the columns of a segment's values."""
    return next(row["variables"] for row in _recordings(dataset, project) if row["category"] == category)


def regions_of(dataset: str, category: str, project: Path = Path()) -> dict[str, list[Region]]:
    """recording_id to what is known of its anomalies, in its own steps."""
    rows = [row for row in _recordings(dataset, project) if row["category"] == category]
    return {
        row["recording_id"]: [Region(**region | {"variables": tuple(region["variables"])}) for region in row["regions"]] for row in rows
    }


def regions_in(dataset: str, category: str, segments: Sequence[Segment], project: Path = Path()) -> list[Region]:
    """The known anomalies on the axis of these segments laid end to end, cut off where one reaches out of its segment."""
    known, found, offset = regions_of(dataset, category, project), [], 0
    for segment in segments:
        for region in known[segment.recording]:
            start, stop = max(region.start, segment.start), min(region.stop, segment.start + segment.steps)
            if start < stop:
                found.append(region._replace(start=start - segment.start + offset, stop=stop - segment.start + offset))
        offset += segment.steps
    return found


def fingerprint(dataset: str, category: str, project: Path = Path()) -> str:
    """What the data of a category are: a hash of its recordings' values and of its segments."""
    segments = [row for row in _manifest(dataset, project)["segments"] if row["category"] == category]
    content = [
        (row["recording_id"], row["content_hash"], row["regions"]) for row in _recordings(dataset, project) if row["category"] == category
    ]
    return hashlib.sha256(repr((segments, content)).encode()).hexdigest()


def normal_parts(segments: Iterable[Segment], shortest: int = 1) -> list[Segment]:
    """The segments without their anomalous steps: more and shorter ones, those below `shortest` steps left out; unlabelled ones stay as they are."""
    return [
        segment._replace(start=segment.start + start, values=segment.values[start:stop], label=segment.label[start:stop])
        if segment.label is not None
        else segment
        for segment in segments
        for start, stop in (runs_of(segment.label == 0) if segment.label is not None else [(0, segment.steps)])
        if stop - start >= shortest
    ]


def known_in(regime: str, segments: Sequence[Segment]) -> list[Segment]:
    """The training segments as a fit of this regime may see them."""
    if regime == "weak":
        return list(segments)
    kept = normal_parts(segments) if regime == "unsup-clean" else segments
    return [segment._replace(label=None) for segment in kept]


def _manifest(dataset: str, project: Path) -> dict[str, Any]:
    return io.read_json(project / "data" / dataset / "manifest.json")


def _recordings(dataset: str, project: Path) -> list[dict[str, Any]]:
    return io.read_json(project / "data" / dataset / "recordings.json")["recordings"]
