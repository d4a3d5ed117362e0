"""Magnetic tile surfaces: `MT_<class>/Imgs/<name>.jpg` with the mask `<name>.png` beside it; `MT_Free` is normal.

Huang, Qiu, Yuan, "Surface defect saliency of magnetic tile", The Visual Computer 2020. One category, no split of its own. The masks went
through a lossy step: values between 0 and 255 lie all around the defects, so only those above MASK_THRESHOLD are defect.
"""

from __future__ import annotations

from pathlib import Path

from stages.datasets.samples import GOOD, DataError, Reading, Sample, make_sample, name_apart
from stages.datasets.tree import folders, images, relative

CATEGORY = "tile"
PREFIX = "MT_"
NORMAL = "MT_Free"
MASK_THRESHOLD = 127
ABOUT = {
    "source": "https://github.com/abin24/Magnetic-tile-defect-datasets.",
    "licence": "none stated; the authors welcome use and ask for citation",
}


def read(source: Path, folder: Path) -> Reading:
    classes = [child for child in folders(source) if child.name.startswith(PREFIX) and (child / "Imgs").is_dir()]
    if not classes:
        raise DataError(f"{source} is not in magnetic-tile layout: no folder {PREFIX}<class>/Imgs in it. Run `assay data check {source}`")
    samples = name_apart([sample for tiles in classes for sample in _class(source, tiles)])
    return Reading(source, samples, [], ABOUT, mask_threshold=MASK_THRESHOLD)


def _class(root: Path, folder: Path) -> list[Sample]:
    normal = folder.name == NORMAL
    kind = GOOD if normal else folder.name.removeprefix(PREFIX).lower()
    photographs = [path for path in images(folder / "Imgs") if path.suffix.lower() in (".jpg", ".jpeg")]
    masks = {path.stem: path for path in images(folder / "Imgs") if path.suffix.lower() == ".png"}
    return [
        make_sample(CATEGORY, None, 0 if normal else 1, kind, relative(root, path), relative(root, masks.get(path.stem)))
        for path in photographs
    ]
