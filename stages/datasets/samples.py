"""What an adapter returns: one row per image, the problems it met on the way, and where the files lie.

A row says what the data set's authors say and nothing more: `split` is None where they fixed none, `label` is None where nobody knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from stages.errors import UserError

PACKAGE = "package:"  # prefix of a source or root that is an installed Python package
GOOD = "good"  # defect type of normal images


class Sample(NamedTuple):
    sample_id: str  # <category>/<split or all>/<defect_type>/<stem>, unique in its data set
    category: str
    split: str | None  # "train", "test", another test such as "test_shift", or None where the data set fixes none
    label: int | None  # 0 normal, 1 anomalous, None unknown
    defect_type: str  # "good" for normal images
    group: str  # what must not be split: a part, a shift, a camera; the sample itself by default
    image_path: str  # POSIX, relative to the root
    mask_path: str | None  # likewise; None where there is no mask


class Problem(NamedTuple):
    code: str  # "E201" ...
    severity: Literal["error", "warning"]
    path: str
    what: str
    fix: str


class Reading(NamedTuple):
    root: Path
    samples: list[Sample]
    problems: Sequence[Problem] = ()
    about: Mapping[str, Any] = MappingProxyType({})  # licence, source, notes
    package: str | None = None  # the Python package that holds the files
    mask_threshold: int = 0  # mask values above it are defect


class DataError(UserError, ValueError):
    """The data cannot be used as it is; the message says what was found and how to mend it."""


def make_sample(
    category: str,
    split: str | None,
    label: int | None,
    defect_type: str,
    image_path: str,
    mask_path: str | None = None,
    group: str = "",
) -> Sample:
    """A sample with the id of its place; `name_apart` fills in the group and makes ids unique."""
    stem = PurePosixPath(image_path).stem
    return Sample(f"{category}/{split or 'all'}/{defect_type}/{stem}", category, split, label, defect_type, group, image_path, mask_path)


def name_apart(samples: list[Sample]) -> list[Sample]:
    """The samples in a fixed order, ids unique and groups filled in.

    Ids that collide take the file's extension; where that is not enough, its whole path. Which one depends on the set of files, never on
    the order in which they were listed.
    """
    samples = _told_apart(samples, lambda sample: f"{PurePosixPath(sample.sample_id).parent}/{PurePosixPath(sample.image_path).name}")
    samples = _told_apart(samples, lambda sample: f"{PurePosixPath(sample.sample_id).parent}/{sample.image_path}")
    samples = [sample if sample.group else sample._replace(group=sample.sample_id) for sample in samples]
    return sorted(samples, key=lambda sample: (sample.category, sample.split or "", sample.sample_id))


def _told_apart(samples: list[Sample], longer_id: Callable[[Sample], str]) -> list[Sample]:
    count = Counter(sample.sample_id for sample in samples)
    return [sample._replace(sample_id=longer_id(sample)) if count[sample.sample_id] > 1 else sample for sample in samples]


def counts(places: Iterable[tuple[str, str | None, int | None]]) -> dict[str, dict[str, dict[str, int]]]:
    """(category, split, label) of each sample to category -> split ("all" for None) -> normal | anomalous | unknown -> number."""
    names = {0: "normal", 1: "anomalous", None: "unknown"}
    number = Counter((category, split or "all", names[label]) for category, split, label in places)
    table: dict[str, dict[str, dict[str, int]]] = {}
    for (category, split, label), images in sorted(number.items()):
        table.setdefault(category, {}).setdefault(split, {})[label] = images
    return table


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it. Raises DataError with the command that installs it."""
    from importlib.util import find_spec

    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the Python package {name} is not installed. Run `pip install {name.replace('_', '-')}`")
    return Path(next(iter(spec.submodule_search_locations)))


def manifest_samples(dataset: str, project: Path = Path()) -> list[dict[str, Any]]:
    """All samples of `data/<dataset>/manifest.json`: sample_id, category, split, label, group, mask."""
    from stages import io

    return io.read_json(project / "data" / dataset / "manifest.json")["samples"]


def root_of(dataset_json: Path) -> Path:
    """The folder that the paths of a prepared data set are relative to.

    dataset_json: `data/<dataset>/dataset.json`. A root that is neither absolute nor a package is relative to the project.
    """
    from stages import io

    root = io.read_json(dataset_json)["root"]
    if root.startswith(PACKAGE):
        return package_folder(root.removeprefix(PACKAGE))
    return dataset_json.parent.parent.parent / root
