"""BTAD (beanTech): categories 01, 02, 03 with `train/ok`, `test/ok`, `test/ko` and masks in `ground_truth/ko`.

Mishra et al., ISIE 2021. Images are bmp in some categories and png in others, and a mask may have another extension than its image, so that
the two are joined by stem.
"""

from __future__ import annotations

from pathlib import Path

from stages.datasets.samples import GOOD, DataError, Reading, Sample, make_sample, name_apart
from stages.datasets.tree import folders, images, masks_by_stem, relative

ANOMALOUS = "ko"
ABOUT = {"source": "https://github.com/pankajmishra000/VT-ADL", "licence": "CC BY-NC-SA 4.0: not for commercial use"}


def read(source: Path, folder: Path) -> Reading:
    categories = [child for child in folders(source) if (child / "train" / "ok").is_dir()]
    if not categories:
        raise DataError(f"{source} is not in BTAD layout: no folder in it holds train/ok. Run `assay data check {source}`")
    return Reading(source, name_apart([sample for category in categories for sample in _category(source, category)]), [], ABOUT)


def _category(root: Path, category: Path) -> list[Sample]:
    masks = masks_by_stem(category / "ground_truth" / ANOMALOUS)
    rows = []
    for split in ("train", "test"):
        rows += [make_sample(category.name, split, 0, GOOD, relative(root, path)) for path in images(category / split / "ok")]
        rows += [
            make_sample(category.name, split, 1, ANOMALOUS, relative(root, path), relative(root, masks.get(path.stem)))
            for path in images(category / split / ANOMALOUS)
        ]
    return rows
