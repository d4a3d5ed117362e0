"""Any folder of a user: split as in MVTec AD, flat `good/ bad/`, with or without a category level, or a CSV.

Folder names are read in any case. A folder with a name for normal (good, ok, normal, ...) makes its neighbours defect types, whatever they
are called. `train` and every `test...` folder fix the split; images that lie in `train` itself are taken as normal, those in `test` itself
as unlabelled; of `val`, normals join train and the rest test, since Assay carves its own val. Masks lie in `ground_truth` or `masks`, in
folders as the images or all in one.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from stages.datasets.samples import GOOD, DataError, Problem, Reading, Sample, make_sample, name_apart
from stages.datasets.table import read_rows
from stages.datasets.tree import folders, images, images_below, masks_by_stem, relative

NORMAL = frozenset({"good", "ok", "normal", "pass", "passed", "nominal", "free", "defect_free", "no_defect", "nondefective", "0"})
ANOMALOUS = frozenset({"bad", "ng", "ko", "nok", "not_ok", "abnormal", "anomaly", "anomalous"})
ANOMALOUS |= {"anomalies", "defect", "defects", "defective", "fail", "failed", "reject", "1"}
UNKNOWN = frozenset({"", "?", "unknown", "unlabelled", "unlabeled", "none", "nan", "null"})
TRAIN = frozenset({"train", "training"})
VAL = frozenset({"val", "valid", "validation"})
MASKS = ("ground_truth", "groundtruth", "gt", "masks", "mask")


def read(source: Path, folder: Path, *, mask_threshold: int = 0) -> Reading:
    """A folder, or a CSV file with the columns path, label and any of category, split, mask, group, defect_type."""
    table = _table(source)
    if table is not None:
        return _by_table(table, mask_threshold)
    if not source.is_dir():
        raise DataError(f"{source} is neither a folder nor a CSV file. Set `source` of the data set in params.yaml")
    categories = [source] if _is_category(source) else [child for child in folders(source) if _is_category(child)]
    if not categories:
        raise DataError(f"E201 {source} has no folder of normal images. {folders_seen(source)}. Put them in `good/` (or ok, normal)")
    problems: list[Problem] = []
    samples = [sample for category in categories for sample in _category(source, category, problems)]
    return Reading(source, name_apart(samples), problems, {"layout": describe(source)}, mask_threshold=mask_threshold)


def describe(source: Path) -> str:
    """The layout in words, as `assay data check` prints it."""
    if _table(source) is not None:
        return "CSV"
    one = source if _is_category(source) else next((child for child in folders(source) if _is_category(child)), source)
    return f"{'split' if _is_split(one) else 'flat'}, {'one category' if one == source else 'one folder per category'}"


def _table(source: Path) -> Path | None:
    """The CSV itself, or the first one in the folder that lists images."""
    if source.suffix.lower() == ".csv" and source.is_file():
        return source
    return next((path for path in sorted(source.glob("*.csv")) if _lists_images(path)), None)


def _lists_images(table: Path) -> bool:
    with table.open(encoding="utf-8-sig", errors="replace") as file:
        header = {column.strip().lower() for column in re.split(r"[,;\t]", file.readline())}
    return "label" in header and bool(header & {"path", "image_path"})


def folders_seen(source: Path) -> str:
    """What lies there, for an error: folder names with how many images each holds."""
    seen = [f"{relative(source, path)} ({len(images(path))})" for path in _walk(source) if path != source]
    return f"Folders seen, with images: {', '.join(seen[:20]) or 'none'}"


def _walk(folder: Path) -> list[Path]:
    return [folder] + [path for child in folders(folder) for path in _walk(child)]


def _is_split(folder: Path) -> bool:
    return any(child.name.lower() in TRAIN for child in folders(folder))


def _is_category(folder: Path) -> bool:
    return _is_split(folder) or any(child.name.lower() in NORMAL for child in folders(folder))


def _category(root: Path, category: Path, problems: list[Problem]) -> list[Sample]:
    name = category.resolve().name
    masks = next((child for child in folders(category) if child.name.lower() in MASKS), category / MASKS[0])
    if not _is_split(category):
        return _split(root, category, name, None, masks, problems)
    return [
        sample
        for child in folders(category)
        if child.name.lower() in TRAIN | VAL or child.name.lower().startswith("test")
        for sample in _split(root, child, name, child.name.lower(), masks, problems)
    ]


def _split(root: Path, folder: Path, category: str, split: str | None, masks: Path, problems: list[Problem]) -> list[Sample]:
    samples = _loose(root, folder, category, split, problems)
    for kind in folders(folder):
        if kind.name.lower() in MASKS:
            continue
        normal = kind.name.lower() in NORMAL
        of_kind = masks_by_stem(masks / kind.name) or masks_by_stem(masks)
        for path in images_below(kind):
            mask = None if normal else relative(root, of_kind.get(path.stem))
            samples.append(
                make_sample(
                    category, _split_name(split, normal), 0 if normal else 1, GOOD if normal else kind.name, relative(root, path), mask
                )
            )
    return samples


def _loose(root: Path, folder: Path, category: str, split: str | None, problems: list[Problem]) -> list[Sample]:
    """Images that lie beside the folders of the types rather than in one."""
    found = images(folder)
    if not found:
        return []
    normal = split in TRAIN
    where = relative(root, folder)
    what = f"{len(found)} images lie in {where} itself, not in a folder of their type; they count as {'normal' if normal else 'unlabelled'}"
    problems.append(Problem("E201", "warning", where, what, "move them to good/ or to a folder named after the defect"))
    return [
        make_sample(category, _split_name(split, normal), 0 if normal else None, GOOD if normal else "unknown", relative(root, path))
        for path in found
    ]


def _split_name(split: str | None, normal: bool) -> str | None:
    if split in TRAIN or (split in VAL and normal):
        return "train"
    return "test" if split in VAL or split == "testing" else split


def _by_table(table: Path, mask_threshold: int) -> Reading:
    rows = [_spell(row) for row in read_rows(table, ())]
    if not rows or "path" not in rows[0] or "label" not in rows[0]:
        raise DataError(f"{table} needs the columns path and label (and may have category, split, mask, group, defect_type)")
    root, problems = table.parent, []
    samples = [sample for row in rows if (sample := _row(root, row, problems))]
    return Reading(root, name_apart(samples), problems, {"layout": "CSV"}, mask_threshold=mask_threshold)


def _spell(row: dict[str, str]) -> dict[str, str]:
    """The names of Assay's own samples.csv mean the same."""
    return {{"image_path": "path", "mask_path": "mask"}.get(column, column): cell for column, cell in row.items()}


def _row(root: Path, row: dict[str, str], problems: list[Problem]) -> Sample | None:
    image, mask = inside(root, row["path"]), inside(root, row["mask"]) if row.get("mask") else None
    if image is None or not (root / image).is_file():
        what = f"{row['path']} is listed in the CSV but is no file below it"
        problems.append(Problem("E204", "error", row["path"], what, "paths are relative to the CSV's folder and stay inside it"))
        return None
    label = parse_label(row["label"])
    kind = row.get("defect_type") or (GOOD if label == 0 else "unknown" if label is None else row["label"])
    split = _split_name((row.get("split") or "").lower() or None, label == 0)
    return make_sample(row.get("category") or root.resolve().name, split, label, kind, image, mask, row.get("group") or "")


def parse_label(text: str) -> int | None:
    """0 for a name of normal, None for a name of unknown, 1 for everything else: it is a defect type."""
    text = text.strip().lower()
    return 0 if text in NORMAL else None if text in UNKNOWN else 1


def inside(root: Path, text: str) -> str | None:
    """POSIX path relative to `root`, or None where it would leave it."""
    path = PurePosixPath(text.replace("\\", "/"))
    if path.is_absolute() and path.is_relative_to(root.resolve().as_posix()):
        path = path.relative_to(root.resolve().as_posix())
    return None if path.is_absolute() or ".." in path.parts else path.as_posix()
