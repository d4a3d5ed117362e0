"""`assay data check DIR`: which layout a folder has, every problem in it at once with how to mend it, and what Assay will do with it.

The data are never changed; a CSV of the labels and a sheet of thumbnails are written where they are asked for. Copies are looked for in the
whole set; they matter where they lie across the data set's own train and test.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from stages.datasets import adapters, btad, duplicates, folder, magnetic_tile, mvtec, visa
from stages.datasets.archive import is_archive, unpacked
from stages.datasets.images import read_image
from stages.datasets.samples import DataError, Problem, Reading, counts
from stages.datasets.splits import Rule, Split, split
from stages.datasets.table import write_labels
from stages.datasets.thumbnails import thumbnails
from stages.datasets.tree import images_below, relative
from stages.datasets.verify import Checked, Verified, listed, no_normals, verify
from stages.io import write_bytes

LAYOUTS = {"mvtec": mvtec.read, "visa": visa.read, "btad": btad.read, "magnetic_tile": magnetic_tile.read}
RULE = Rule(split_seed=0, val_fraction=0.15, test_fraction=0.4)  # what params.yaml has unless the user changes it
NOTHING = "Nothing, until the errors above are mended."
KNOWN_LAYOUTS = "MVTec AD, VisA, BTAD, good/ and bad/ (with or without train/ and test/), or a CSV with path and label"
MASK_NOTE = "pixel metrics need masks; without them they are n/a"


class Duplicate(NamedTuple):
    first: str
    second: str
    exact: bool
    similarity: float
    across: bool  # one lies in train, the other in a test split of the data set


class Check(NamedTuple):
    directory: Path
    layout: str  # name of the adapter, and for a plain folder what was found in it
    tree: dict[str, dict[str, dict[str, int]]]  # category -> split -> defect type -> images
    problems: list[Problem]
    duplicates: list[Duplicate]
    plan: list[str]  # what Assay will do, one sentence each
    ok: bool


def check(
    directory: Path, adapter: str | None = None, rule: Rule = RULE, write_csv: Path | None = None, sheet: Path | None = None
) -> Check:
    """Look at everything in `directory`. Raises nothing for bad data: that is what `problems` is for.

    rule: how the lists will be drawn. write_csv: a table of the labels for `folder` to read back, in a folder that holds all images.
    sheet: a PNG with a few images of every type.
    """
    with TemporaryDirectory() as scratch:  # for adapters that draw their images
        return _check(directory, adapter, Path(scratch), rule, write_csv, sheet)


def _check(directory: Path, adapter: str | None, scratch: Path, rule: Rule, write_csv: Path | None, sheet: Path | None) -> Check:
    try:
        layout, reading = _read(directory, adapter, scratch)
    except DataError as error:
        return Check(directory, "none", {}, [_as_problem(directory, error)], [], [NOTHING], False)
    verified = verify(reading)
    if write_csv is not None:
        write_labels(write_csv, reading.root, [row.sample for row in verified.rows])
    if sheet is not None:
        write_bytes(sheet, thumbnails(reading.root, [row.sample for row in verified.rows]))
    pairs = _pairs(reading, verified.rows)
    problems = [*verified.problems, *no_normals(reading, verified.rows), *_unused(directory, reading), *_same_names(verified.rows)]
    plan, drawn_problems = _plan(directory, verified, pairs, rule)
    problems = sorted({*problems, *drawn_problems}, key=lambda problem: (problem.severity, problem.code, problem.path, problem.what))
    ok = not any(problem.severity == "error" for problem in problems)
    return Check(directory, layout, _tree(verified.rows), problems, _named(verified.rows, pairs), plan if ok else [NOTHING], ok)


def as_json(found: Check) -> dict[str, Any]:
    return {
        **found._asdict(),
        "directory": found.directory.as_posix(),
        "problems": [problem._asdict() for problem in found.problems],
        "duplicates": [duplicate._asdict() for duplicate in found.duplicates],
    }


def render(found: Check) -> str:
    """The same as text for a terminal."""
    lines = [f"{found.directory.as_posix()}: layout {found.layout}", *_tree_lines(found.tree), ""]
    lines += [f"{problem.severity} {problem.code}  {problem.what}\n    fix: {problem.fix}" for problem in found.problems] or ["no problems"]
    lines += ["", _duplicate_line(found.duplicates), *(_pair_line(duplicate) for duplicate in _first(found.duplicates)), ""]
    lines += ["what Assay will do:", *(f"  {sentence}" for sentence in found.plan)]
    return "\n".join(lines)


def layout_of(directory: Path) -> str:
    """The name of the first adapter that can read the folder (or CSV file). Raises DataError where none can."""
    with TemporaryDirectory() as scratch:
        return _read(directory, None, Path(scratch))[0].split(" ")[0]


def _read(directory: Path, adapter: str | None, scratch: Path) -> tuple[str, Reading]:
    """By the adapter named, or by the first layout that fits; an archive is unpacked into `scratch` first."""
    if directory.is_file() and is_archive(directory):
        directory = unpacked(directory, scratch)
    if adapter is not None:
        return adapter, adapters.read(adapter, directory, scratch, {})
    for name, read in LAYOUTS.items():
        try:
            return name, read(directory, scratch)
        except DataError:
            continue  # the next layout may fit; `folder`, the last, says what is wrong
    return f"folder ({folder.describe(directory)})", folder.read(directory, scratch)


def _as_problem(directory: Path, error: DataError) -> Problem:
    text = str(error)
    code, text = (text[:4], text[5:]) if text.startswith("E2") else ("E201", text)
    return Problem(code, "error", directory.as_posix(), text, f"Use a layout that Assay knows: {KNOWN_LAYOUTS}")


def _pairs(reading: Reading, rows: list[Checked]) -> list[duplicates.Pair]:
    return duplicates.find(
        [row.content_hash for row in rows],
        [row.dhash for row in rows],
        [row.sample.category for row in rows],
        lambda position: read_image(reading.root / rows[position].sample.image_path),
    )


def _named(rows: list[Checked], pairs: list[duplicates.Pair]) -> list[Duplicate]:
    found = []
    for pair in pairs:
        first, second = rows[pair.first].sample, rows[pair.second].sample
        across = first.split != second.split and "train" in (first.split, second.split)
        found.append(Duplicate(first.image_path, second.image_path, pair.exact, pair.similarity, across))
    return found


def _unused(directory: Path, reading: Reading) -> list[Problem]:
    """Image files that are neither a sample nor a mask: a folder with an unexpected name, most often."""
    if reading.package or not directory.is_dir():
        return []
    used = {path for sample in reading.samples for path in (sample.image_path, sample.mask_path)}
    left = [name for path in images_below(directory) if (name := relative(reading.root, path)) not in used]
    left = [name for name in left if not any(_holds_masks(part.lower()) for part in name.split("/"))]
    if not left:
        return []
    what = f"{len(left)} image files belong to no split and no defect type and are not used: {listed(left)}"
    return [Problem("E201", "warning", left[0], what, "Move them into a folder that the layout knows, or remove them")]


def _holds_masks(folder_name: str) -> bool:
    return folder_name in folder.MASKS or folder_name.startswith("ground_truth")


def _same_names(rows: list[Checked]) -> list[Problem]:
    """Harmless, since ids are told apart, but worth knowing."""
    names = Counter((*row.sample[1:5], Path(row.sample.image_path).stem) for row in rows)
    twice = sorted({str(key[-1]) for key, number in names.items() if number > 1})
    if not twice:
        return []
    what = f"{len(twice)} names belong to more than one image of their type: {listed(twice)}"
    return [Problem("E201", "warning", twice[0], what, "Nothing to do: they are told apart by extension or path")]


def _plan(directory: Path, verified: Verified, pairs: list[duplicates.Pair], rule: Rule) -> tuple[list[str], list[Problem]]:
    table = [{**row.sample._asdict(), "content_hash": row.content_hash} for row in verified.rows]
    try:
        drawn = split(directory.name, table, pairs, rule)
    except DataError as error:
        return [NOTHING], [_as_problem(directory, error)]
    return _sentences(verified, drawn), _leak_problem(drawn)


def _sentences(verified: Verified, drawn: Split) -> list[str]:
    number = counts((sample["category"], sample["split"], sample["label"]) for sample in drawn.samples)
    sentences = []
    for category, splits in number.items():
        parts = [f"{part} {' + '.join(f'{images} {label}' for label, images in labels.items())}" for part, labels in splits.items()]
        sentences.append(f"{category}: {', '.join(parts)}.")
    fixed = any(row.sample.split for row in verified.rows)
    sentences.append("Keep the data set's own test split." if fixed else "Draw test: anomalous images and a share of the normal ones.")
    sentences.append("Hold out a share of the normal train images as val, whole groups and all copies together, to set thresholds.")
    masks = sum(row.sample.mask_path is not None for row in verified.rows)
    sentences.append(f"Compare maps with {masks} masks." if masks else f"Report image metrics only: {MASK_NOTE}.")
    if verified.quarantined:
        sentences.append(f"Leave out {len(verified.quarantined)} unreadable images.")
    return sentences


def _leak_problem(drawn: Split) -> list[Problem]:
    if not drawn.leaks:
        return []
    reasons = Counter(leak["reason"] for leak in drawn.leaks)
    shown = listed([f"{leak['sample_id']} is {leak['reason']} of {leak['of']}" for leak in drawn.leaks])
    kinds = ", ".join(f"{number} by {reason}" for reason, number in sorted(reasons.items()))
    what = f"{len(drawn.leaks)} training images are also in test ({kinds}): {shown}"
    return [Problem("E203", "warning", drawn.leaks[0]["sample_id"], what, "Assay leaves them out of train; remove them to silence this")]


def _tree(rows: list[Checked]) -> dict[str, dict[str, dict[str, int]]]:
    number = Counter((row.sample.category, row.sample.split or "all", row.sample.defect_type) for row in rows)
    tree: dict[str, dict[str, dict[str, int]]] = {}
    for (category, part, kind), images in sorted(number.items()):
        tree.setdefault(category, {}).setdefault(part, {})[kind] = images
    return tree


def _tree_lines(tree: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    lines = []
    for category, parts in tree.items():
        lines.append(f"  {category}/")
        for part, kinds in parts.items():
            lines.append(f"    {part}: {', '.join(f'{kind} {images}' for kind, images in kinds.items())}")
    return lines


def _duplicate_line(found: list[Duplicate]) -> str:
    exact = sum(duplicate.exact for duplicate in found)
    across = sum(duplicate.across for duplicate in found)
    return f"copies: {exact} exact pairs, {len(found) - exact} near pairs, {across} of them across train and test"


def _first(found: list[Duplicate]) -> list[Duplicate]:
    return sorted(found, key=lambda duplicate: (not duplicate.across, not duplicate.exact, -duplicate.similarity))[:10]


def _pair_line(duplicate: Duplicate) -> str:
    kind = "exact" if duplicate.exact else f"near {duplicate.similarity:.2f}"
    return f"  {kind}: {duplicate.first} = {duplicate.second}{'  (train and test)' if duplicate.across else ''}"
