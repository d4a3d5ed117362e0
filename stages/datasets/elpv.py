"""ELPV: electroluminescence images of mono- and polycrystalline solar cells, with the defect probability that experts gave.

Deitsch et al., Solar Energy 2019; Buerhop-Lutz et al., EU PVSEC 2018. p = 0 is normal and p = 1 anomalous; cells that the experts doubted
(p = 1/3, 2/3) are left out or counted as anomalous. Image labels only, no masks, no split. The images are read where the package elpv-
dataset lies and never copied: their licence forbids commercial use. One module is in the set twice, the second time out of focus: cells
1735 to 1784 are cells 2277 to 2326 (their phases correlate by .78 to .95), which the authors do not say. Each such pair is one group.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

from stages.datasets.samples import GOOD, DataError, Reading, Sample, make_sample, name_apart, package_folder

PACKAGE_NAME = "elpv_dataset"
LABELS = Path("data") / "labels.csv"
DEFECT = "defective"
DOUBTED = "doubted"
TWICE = range(2277, 2327)  # cells of the module that was photographed again
EARLIER = 542  # where its first photographs lie
ABOUT = {
    "source": "https://github.com/zae-bayern/elpv-dataset",
    "licence": "CC BY-NC-SA 4.0: not for commercial use, no copies in a repository",
}


def read(source: Path, folder: Path, *, uncertain: Literal["excluded", "anomalous"] = "excluded") -> Reading:
    """The installed package, or a clone of its repository where `source` is a folder that holds `data/labels.csv`."""
    cloned = next((root for root in (source, source / "src" / PACKAGE_NAME) if (root / LABELS).is_file()), None)
    root = cloned or package_folder(PACKAGE_NAME)
    rows = [_row(line) for line in (root / LABELS).read_text(encoding="utf-8").splitlines() if line.strip()]
    samples = [_sample(*row) for row in rows if uncertain == "anomalous" or row[1] in (0.0, 1.0)]
    about = ABOUT | {"uncertain": uncertain, "left_out": len(rows) - len(samples)}
    return Reading(root, name_apart(samples), [], about, package=None if cloned else PACKAGE_NAME)


def _row(line: str) -> tuple[str, float, str]:
    try:
        image, probability, kind = line.split()
        return image, float(probability), kind
    except ValueError as error:
        raise DataError(f"{LABELS.as_posix()} should hold `<image> <probability> <mono|poly>` in each line, got {line!r}") from error


def _sample(image: str, probability: float, kind: str) -> Sample:
    defect_type = GOOD if probability == 0 else DEFECT if probability == 1 else DOUBTED
    return make_sample(kind, None, 0 if probability == 0 else 1, defect_type, f"{LABELS.parent.as_posix()}/{image}", group=_cell(image))


def _cell(image: str) -> str:
    """The physical cell, named by its first photograph."""
    number = int(PurePosixPath(image).stem.removeprefix("cell"))
    return f"cell{number - EARLIER if number in TWICE else number:04}"
