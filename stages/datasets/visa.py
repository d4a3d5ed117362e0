"""VisA: twelve categories, normal and anomalous images apart, and the split in `split_csv/1cls.csv`.

Zou et al., ECCV 2022. The csv's rows are `object,split,label,image,mask`; mask values are small integers (the kind of defect), so that
every value above zero is defect. Where the csv is missing no split is fixed and the raw layout
`<category>/Data/Images/{Normal,Anomaly}` is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stages.datasets.samples import GOOD, DataError, Problem, Reading, Sample, make_sample, name_apart
from stages.datasets.table import read_rows
from stages.datasets.tree import folders, images, masks_by_stem, relative

SPLIT = Path("split_csv") / "1cls.csv"
ANOMALOUS = "anomaly"
ABOUT = {"source": "https://github.com/amazon-science/spot-diff", "licence": "CC BY 4.0"}


def read(source: Path, folder: Path) -> Reading:
    problems: list[Problem] = []
    rows = _by_table(source, problems) if (source / SPLIT).is_file() else _by_folders(source)
    samples = name_apart(list(rows))
    if not samples:
        raise DataError(f"{source} is not in VisA layout: neither {SPLIT.as_posix()} nor <category>/Data/Images/Normal lists an image")
    return Reading(source, samples, problems, ABOUT)


def _by_table(root: Path, problems: list[Problem]) -> Iterator[Sample]:
    for row in read_rows(root / SPLIT, ("object", "split", "label", "image")):
        if not (root / row["image"]).is_file():
            fix = "unpack the archive again, or remove the row"
            problems.append(Problem("E204", "error", row["image"], f"{row['image']} is listed in {SPLIT.as_posix()} but is not there", fix))
            continue
        normal = row["label"].lower() == "normal"
        kind = GOOD if normal else ANOMALOUS
        yield make_sample(row["object"], row["split"], 0 if normal else 1, kind, row["image"], row.get("mask") or None)


def _by_folders(root: Path) -> Iterator[Sample]:
    for category in folders(root):
        data = category / "Data"
        masks = masks_by_stem(data / "Masks" / "Anomaly")
        for path in images(data / "Images" / "Normal"):
            yield make_sample(category.name, None, 0, GOOD, relative(root, path))
        for path in images(data / "Images" / "Anomaly"):
            yield make_sample(category.name, None, 1, ANOMALOUS, relative(root, path), relative(root, masks.get(path.stem)))
