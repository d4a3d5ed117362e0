"""MVTec AD: `<category>/train/good`, `<category>/test/<defect type>`, masks in `<category>/ground_truth/<defect type>/<stem>_mask.png`.

Bergmann et al., CVPR 2019. Fifteen categories, or whichever are there; any data set in this layout is read, with further test splits
(`test_shift` with its masks in `ground_truth_shift`), masks without the suffix, and bad images in train (contamination).
"""

from __future__ import annotations

from pathlib import Path

from stages.datasets.samples import GOOD, DataError, Problem, Reading, Sample, make_sample, name_apart
from stages.datasets.tree import folders, images, masks_by_stem, relative

ABOUT = {
    "source": "https://www.mvtec.com/company/research/datasets/mvtec-ad",
    "licence": "CC BY-NC-SA 4.0 (MVTec AD itself; not for commercial use)",
}


def read(source: Path, folder: Path) -> Reading:
    """Every category under `source`, or `source` itself where it is one category."""
    categories = [source] if _is_category(source) else [child for child in folders(source) if _is_category(child)]
    if not categories:
        raise DataError(f"{source} is not in MVTec AD layout: no folder in it holds train/good. Run `assay data check {source}`")
    problems: list[Problem] = []
    samples = [sample for category in categories for sample in _category(source, category, problems)]
    return Reading(source, name_apart(samples), problems, ABOUT)


def _is_category(folder: Path) -> bool:
    return (folder / "train" / GOOD).is_dir() and (folder / "test").is_dir()


def _category(root: Path, category: Path, problems: list[Problem]) -> list[Sample]:
    splits = [child for child in folders(category) if child.name == "train" or child.name.startswith("test")]
    return [sample for split in splits for kind in folders(split) for sample in _defect_type(root, category, split, kind, problems)]


def _defect_type(root: Path, category: Path, split: Path, kind: Path, problems: list[Problem]) -> list[Sample]:
    good = kind.name == GOOD
    truth = category / f"ground_truth{_suffix(split.name)}" / kind.name
    masks = masks_by_stem(truth)
    found = images(kind)
    problems += _orphans(root, truth, masks, {path.stem for path in found})
    return [
        make_sample(category.name, split.name, 0 if good else 1, kind.name, relative(root, path), relative(root, masks.get(path.stem)))
        for path in found
    ]


def _suffix(split: str) -> str:
    """`test` has its masks in ground_truth, `test_shift` in ground_truth_shift, bad images of `train` in ground_truth_train."""
    return split.removeprefix("test") if split.startswith("test") else f"_{split}"


def _orphans(root: Path, truth: Path, masks: dict[str, Path], stems: set[str]) -> list[Problem]:
    lonely = sorted(set(masks) - stems)
    what = f"{len(lonely)} masks in {relative(root, truth)} belong to no image: {', '.join(lonely[:5])}"
    return [Problem("E202", "warning", relative(root, truth), what, "name each mask <image>_mask.png, or remove it")] if lonely else []
