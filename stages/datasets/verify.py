"""Every file looked at once: images decoded, hashed and fingerprinted, masks compared with them; what is unusable is set aside and named.

The image's label wins over its mask: a mask is dropped where it is unreadable, of another size, empty for an anomalous image, or not empty
for a normal one. Each drop is a problem in the list, none is silent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages import io
from stages.datasets.duplicates import difference_hash
from stages.datasets.images import UnreadableImage, read_image, read_mask
from stages.datasets.samples import DataError, Problem, Reading, Sample
from stages.progress import Advance

QUARANTINE_LIMIT = 0.05  # of all images; more than that is no accident
LISTED = 5  # file names in one problem
NOISE_LEVEL = 127  # where a mask changes between "above 0" and "above this", its grey values are compression noise
NOISE_SHARE = 1.2  # and it grows by more than this factor


class Checked(NamedTuple):
    """One usable image."""

    sample: Sample
    content_hash: str  # SHA-256 of the file's bytes
    width: int
    height: int
    dhash: bytes


class Verified(NamedTuple):
    rows: list[Checked]
    problems: list[Problem]
    quarantined: list[dict[str, str]]  # {"path", "cause"}


def verify(reading: Reading, advance: Advance = lambda count: None) -> Verified:
    """Decode everything the reading lists; `advance` is told of each image done."""
    rows: list[Checked] = []
    quarantined: list[dict[str, str]] = []
    complaints: dict[str, list[str]] = defaultdict(list)
    for sample in reading.samples:
        try:
            rows.append(_check(reading, sample, complaints))
        except UnreadableImage as error:
            quarantined.append({"path": sample.image_path, "cause": error.cause})
        advance(1)
    problems = [*reading.problems, *_quarantine_problem(quarantined, len(reading.samples)), *_mask_problems(rows, complaints)]
    return Verified(rows, problems, quarantined)


def refuse(reading: Reading, verified: Verified) -> None:
    """Raise DataError with every reason why the data cannot be used: too many bad files, a category without normal training images."""
    reasons = [problem for problem in (*verified.problems, *no_normals(reading, verified.rows)) if problem.severity == "error"]
    if reasons:
        raise DataError("\n".join(f"{problem.code} {problem.what}. {problem.fix}" for problem in reasons))


def no_normals(reading: Reading, rows: Iterable[Checked]) -> Iterator[Problem]:
    """E201 for each category in which nothing normal can be learnt from."""
    by_category: dict[str, list[Sample]] = defaultdict(list)
    for row in rows:
        by_category[row.sample.category].append(row.sample)
    if not by_category:
        yield Problem("E201", "error", str(reading.root), f"{reading.root} holds no usable image", "Check `source` in params.yaml")
    for category, samples in sorted(by_category.items()):
        if not any(sample.label == 0 and sample.split in (None, "train") for sample in samples):
            what = f"category {category} has no normal training images. Folders seen: {folder_counts(samples)}"
            yield Problem("E201", "error", category, what, "Put normal images into train/good, or call their folder good, ok or normal")


def folder_counts(samples: Iterable[Sample]) -> str:
    count: dict[str, int] = defaultdict(int)
    for sample in samples:
        count[str(Path(sample.image_path).parent.as_posix())] += 1
    return ", ".join(f"{folder} ({number} images)" for folder, number in sorted(count.items()))


def _check(reading: Reading, sample: Sample, complaints: dict[str, list[str]]) -> Checked:
    path = reading.root / sample.image_path
    image = read_image(path)
    height, width = image.shape[:2]
    if sample.mask_path is not None:
        complaint = _judge_mask(reading, sample, (height, width))
        if complaint:
            complaints[complaint].append(sample.image_path)
        if complaint not in (None, "noise"):
            sample = sample._replace(mask_path=None)
    if sample.label == 0:
        sample = sample._replace(mask_path=None)
    return Checked(sample, io.file_hash(path), width, height, difference_hash(image))


def _judge_mask(reading: Reading, sample: Sample, shape: tuple[int, int]) -> str | None:
    """What is wrong with a mask: a key of MASK_TEXTS, or None."""
    path = reading.root / str(sample.mask_path)
    try:
        mask = read_mask(path, reading.mask_threshold)
    except UnreadableImage:
        return "unreadable"
    if mask.shape != shape:
        return "size"
    if sample.label == 0:
        return "good" if mask.any() else None
    if not mask.any():
        return "empty"
    return "noise" if reading.mask_threshold < NOISE_LEVEL and _is_noisy(path, mask) else None


def _is_noisy(path: Path, mask: np.ndarray) -> bool:
    """Values on both sides of the middle, and enough low ones to swell the defect."""
    high = read_mask(path, NOISE_LEVEL).sum()
    return bool(high) and mask.sum() > NOISE_SHARE * high


MASK_TEXTS = {
    "unreadable": ("have a mask that cannot be read", "Replace it; until then pixel metrics leave these images out"),
    "size": ("have a mask of another size than the image", "Save it at the image's size; until then pixel metrics leave these images out"),
    "empty": ("are anomalous but their mask marks nothing", "Draw the defect; until then pixel metrics leave these images out"),
    "good": ("are normal but have a mask that marks something", "Check the label; the mask is ignored"),
    "noise": ("have a mask with grey values, as lossy compression leaves them", "Set mask_threshold: 127, or the defects grow"),
    "missing": ("are anomalous and have no mask", "Pixel metrics leave these images out"),
}


def _mask_problems(rows: list[Checked], complaints: dict[str, list[str]]) -> Iterator[Problem]:
    anomalous = [row.sample for row in rows if row.sample.label == 1]
    named = set().union(*complaints.values()) if complaints else set()
    lacking = [sample.image_path for sample in anomalous if sample.mask_path is None and sample.image_path not in named]
    if len(lacking) < len(anomalous):  # a data set without any mask is not at fault
        complaints = {**complaints, "missing": lacking}
    for key, paths in sorted(complaints.items()):
        if paths:
            text, fix = MASK_TEXTS[key]
            yield Problem("E202", "warning", paths[0], f"{len(paths)} of {len(rows)} images {text}: {listed(paths)}", fix)


def _quarantine_problem(quarantined: list[dict[str, str]], count: int) -> Iterator[Problem]:
    if quarantined:
        too_many = len(quarantined) > QUARANTINE_LIMIT * count
        causes = listed([f"{bad['path']} ({bad['cause']})" for bad in quarantined])
        what = f"{len(quarantined)} of {count} images cannot be read and are left out: {causes}"
        limit = f"; at most {QUARANTINE_LIMIT:.0%} may be unreadable" if too_many else ""
        yield Problem("E204", "error" if too_many else "warning", quarantined[0]["path"], what + limit, "Replace or remove these files")


def listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
