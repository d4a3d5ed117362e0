"""Spot-the-Diff as pairs of two pictures and a description: 1 where the description is of another pair, 0 where it belongs to both.

Jhamtani and Berg-Kirkpatrick, "Learning to Describe Differences Between Pairs of Similar Images", EMNLP 2018, arXiv:1808.10584. Every pair of pictures
differs, so that a difference is no anomaly here: the label is a mismatch of pictures and words, made within the set's own split, each description used
once. Pictures are of surveillance cameras; which pairs come from one camera is not told, so that a pair is its own group.

    annotations/train.json, val.json, test.json     [{"img_id": "5", "sentences": ["the car is gone", ...]}, ...]
    resized_images/5.png, 5_2.png                   before and after

The descriptions are written as text files into the data set's folder, and the pictures copied beside them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stages import io
from stages.datasets.mismatched_pairs import partners
from stages.datasets.record_adapters import RecordReading, RecordRow
from stages.datasets.samples import DataError, Problem
from stages.seed import numpy_generator

SPLITS = ("train", "val", "test")
ABOUT = {
    "name": "spot_the_diff",
    "citation": "Jhamtani and Berg-Kirkpatrick, EMNLP 2018, arXiv:1808.10584",
    "licence": "none stated by its authors; pictures from the VIRAT data set",
    "label": "1 where the description is of another pair of pictures (a pair mismatch), 0 where it is of these two; every pair differs",
}


def read_records(source: Path, folder: Path, *, mismatched: Annotated[float, Field(ge=0, le=1)] = 0.5, seed: int = 0) -> RecordReading:
    """mismatched: share of the pairs of a split that get another pair's description."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, lost = [], 0
    for split in SPLITS:
        given = _annotations(source, split)
        pairs = [(name, said) for name, said in given if said and all(_picture(source, name, after) for after in (False, True))]
        lost += len(given) - len(pairs)
        texts = partners([name for name, _ in pairs], mismatched, numpy_generator(seed, "spot_the_diff", split))
        for at, ((name, said), text) in enumerate(zip(pairs, texts, strict=True)):
            io.write_text(folder / f"{name}.txt", "\n".join(said) + "\n")
            paths = {"text": f"{pairs[text][0]}.txt", "image": f"{name}.png", "image_after": f"{name}_2.png"}
            for after, key in ((False, "image"), (True, "image_after")):
                _copied(_picture(source, name, after) or source, folder / paths[key])
            rows.append(RecordRow(name, paths, int(text != at), "mismatch" if text != at else "", name, split))
    if not rows:
        raise DataError(
            f"E439 {source} has no annotations with pictures. Expected annotations/train.json and resized_images/<img_id>.png, <img_id>_2.png"
        )
    what = f"{lost} pairs have no description or lack a picture; they are left out"
    problems = [Problem("E439", "warning", source.as_posix(), what, "Bring their pictures, if they are wanted")] if lost else []
    return RecordReading(folder, ("text", "image", "image_after"), rows, problems, ABOUT)


def _annotations(source: Path, split: str) -> list[tuple[str, list[str]]]:
    """(img_id, sentences) of each pair, by id."""
    path = next((place for place in (source / "annotations" / f"{split}.json", source / f"{split}.json") if place.is_file()), None)
    content: Any = io.read_json(path) if path else []
    if not isinstance(content, list) or not all(isinstance(one, dict) and "img_id" in one and isinstance(one.get("sentences"), list) for one in content):
        raise DataError(f"E439 {path} is no list of {{img_id, sentences: [...]}}. Take the file as its authors give it")
    return sorted((Path(str(one["img_id"])).name, [str(text) for text in one["sentences"]]) for one in content)


def _picture(source: Path, name: str, after: bool) -> Path | None:
    places = (source / folder / f"{name}{'_2' if after else ''}.png" for folder in ("resized_images", "images", "."))
    return next((place for place in places if place.is_file()), None)


def _copied(source: Path, target: Path) -> None:
    """A copy, not a link: whoever writes to one of two linked files changes both, and the source is not ours."""
    target.unlink(missing_ok=True)  # of an earlier version it may be a link to the source
    shutil.copyfile(source, target)
