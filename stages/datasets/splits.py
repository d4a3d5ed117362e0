"""Who is learnt from, who sets thresholds, who is judged: train, val and test, disjoint by sample, by group and by content.

Copies and near copies bind their samples as a group does. Where a data set fixes its own test split nothing in it moves: what train shares
with it is removed from train. Where it fixes none, groups with an anomalous image are test, of the normal ones a seeded share is. Val is a
seeded share of the normal train groups; anomalous images that the data set has in train (contamination) stay there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from stages import seed
from stages.datasets.duplicates import Pair, clusters
from stages.datasets.samples import DataError

Row = dict[str, Any]  # a row of samples.parquet
UNLABELLED = "unlabelled"  # the split of samples without a label: nothing uses them


class Rule(NamedTuple):
    """How the lists are drawn. Fractions are of normal images, in whole groups."""

    split_seed: int
    val_fraction: float
    test_fraction: float


class Split(NamedTuple):
    samples: list[dict[str, Any]]  # manifest rows, in the order of the sample table
    leaks: list[dict[str, Any]]  # what was removed from train, why and because of which test sample


def split(dataset: str, rows: Sequence[Row], pairs: Sequence[Pair], rule: Rule) -> Split:
    """Draw the lists. pairs: from `duplicates.find` over the same rows. Raises DataError where a category cannot be learnt."""
    groups = clusters(len(rows), _links(rows, pairs))
    place = _fixed(rows)
    _draw_test(dataset, rows, groups, place, rule)
    leaks = _leaks(rows, pairs, place)
    for position in leaks:
        del place[position]
    _draw_val(dataset, rows, groups, place, rule)
    samples = _manifest_rows(rows, pairs, place)
    refuse_overlap(samples, {row["sample_id"]: row["content_hash"] for row in rows})
    return Split(samples, [leaks[position] for position in sorted(leaks)])


def refuse_overlap(samples: Iterable[dict[str, Any]], content: dict[str, str]) -> None:
    """Raise DataError where train, val and a test list share a sample, a group or the bytes of an image."""
    owner: dict[tuple[str, str], str] = {}
    for sample in samples:
        part = sample["split"] if sample["split"] in ("train", "val", UNLABELLED) else "test"
        keys = (("sample", sample["sample_id"]), ("group", sample["group"]), ("content", content[sample["sample_id"]]))
        for key in keys if part != UNLABELLED else ():
            if owner.setdefault(key, part) != part:
                raise DataError(f"E203 {key[0]} {key[1]} is in {owner[key]} and in {part}; the lists must not overlap")


def _links(rows: Sequence[Row], pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Everything that must stay on one side, as linked positions: duplicates, and neighbours in a group."""
    last: dict[str, int] = {}
    links = [(pair.first, pair.second) for pair in pairs]
    for position, row in enumerate(rows):
        if row["group"] in last:
            links.append((last[row["group"]], position))
        last[row["group"]] = position
    return links


def _fixed(rows: Sequence[Row]) -> dict[int, str]:
    """Position -> split, where the data set or a missing label decides."""
    fixed = {}
    for position, row in enumerate(rows):
        if row["label"] is None:
            fixed[position] = UNLABELLED
        elif row["split"] is not None:
            fixed[position] = row["split"]
    return fixed


def _leaks(rows: Sequence[Row], pairs: Sequence[Pair], place: dict[int, str]) -> dict[int, dict[str, Any]]:
    """Train positions that share group or content with a test sample, directly: what to remove from train."""
    tests = [position for position, part in place.items() if part not in ("train", UNLABELLED)]
    by_group = {rows[position]["group"]: position for position in reversed(tests)}
    by_content = {rows[position]["content_hash"]: position for position in reversed(tests)}
    near: dict[int, tuple[int, float]] = {}
    for pair in pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if other in place and place[other] not in ("train", UNLABELLED):
                near.setdefault(one, (other, pair.similarity))
    leaks = {}
    for position in sorted(position for position, part in place.items() if part == "train"):
        row = rows[position]
        if row["content_hash"] in by_content:
            leaks[position] = _leak(rows, position, "copy", by_content[row["content_hash"]], 1.0)
        elif row["group"] in by_group:
            leaks[position] = _leak(rows, position, "group", by_group[row["group"]], None)
        elif position in near:
            leaks[position] = _leak(rows, position, "near copy", *near[position])
    return leaks


def _leak(rows: Sequence[Row], position: int, reason: str, other: int, similarity: float | None) -> dict[str, Any]:
    return {
        "sample_id": rows[position]["sample_id"],
        "removed_from": "train",
        "reason": reason,
        "of": rows[other]["sample_id"],
        "similarity": similarity,
    }


def _draw_test(dataset: str, rows: Sequence[Row], groups: list[int], place: dict[int, str], rule: Rule) -> None:
    """Place the samples whose split is not fixed; what is bound to fixed train samples stays with them."""
    free = [position for position in range(len(rows)) if position not in place]
    learnt = {groups[position] for position, part in place.items() if part == "train"}
    bound = {groups[position] for position, part in place.items() if part not in ("train", UNLABELLED)}
    bound |= {groups[position] for position in free if rows[position]["label"] == 1}
    for category, members in _by_category(rows, groups, free).items():
        normals = [position for position in members if rows[position]["label"] == 0]
        forced = [position for position in normals if groups[position] in bound]
        open_groups = _by_group(groups, (position for position in normals if groups[position] not in bound | learnt))
        wanted = round(rule.test_fraction * len(normals)) - len(forced)
        drawn = _draw(open_groups, wanted, 2, seed.numpy_generator(rule.split_seed, "test", dataset, category))
        for position in members:
            place[position] = "test" if groups[position] in bound | drawn else "train"


def _draw_val(dataset: str, rows: Sequence[Row], groups: list[int], place: dict[int, str], rule: Rule) -> None:
    train = [position for position, part in sorted(place.items()) if part == "train"]
    contaminated = {groups[position] for position in train if rows[position]["label"] == 1}
    for category, members in _by_category(rows, groups, range(len(rows))).items():
        if all(place.get(position) in (None, UNLABELLED) for position in members):
            continue
        normals = [position for position in members if place.get(position) == "train" and groups[position] not in contaminated]
        whole = _by_group(groups, normals)
        if len(whole) < 2:
            raise DataError(_too_few(category, len(normals), len(whole)))
        wanted = max(1, round(rule.val_fraction * len(normals)))
        drawn = _draw(whole, wanted, 1, seed.numpy_generator(rule.split_seed, "val", dataset, category)) or {_smallest(whole)}
        for position in normals:
            if groups[position] in drawn:
                place[position] = "val"


def _too_few(category: str, images: int, groups: int) -> str:
    found = f"category {category} has {images} normal training images in {groups} groups that are not tied to test or to anomalous images"
    return f"E201 {found}; at least 2 groups are needed, one to learn from and one to hold out as val. Add normal images, or check `group`"


def _by_category(rows: Sequence[Row], groups: list[int], positions: Iterable[int]) -> dict[str, list[int]]:
    """Positions by category; a group that spans categories counts with its first sample's, so that it is drawn once."""
    found: dict[str, list[int]] = defaultdict(list)
    for position in positions:
        found[rows[groups[position]]["category"]].append(position)
    return dict(sorted(found.items()))


def _by_group(groups: list[int], positions: Iterable[int]) -> dict[int, int]:
    """Group -> how many of the positions it holds."""
    size: dict[int, int] = defaultdict(int)
    for position in positions:
        size[groups[position]] += 1
    return dict(size)


def _draw(sizes: dict[int, int], wanted: int, keep: int, generator: Any) -> set[int]:
    """Whole groups in random order as long as they fit into `wanted` images and at least `keep` groups remain."""
    drawn, left = set(), wanted
    for group in generator.permutation(sorted(sizes)).tolist():
        if sizes[group] <= left and len(drawn) < len(sizes) - keep:
            drawn.add(group)
            left -= sizes[group]
    return drawn


def _smallest(sizes: dict[int, int]) -> int:
    return min(sizes, key=lambda group: (sizes[group], group))


def _manifest_rows(rows: Sequence[Row], pairs: Sequence[Pair], place: dict[int, str]) -> list[dict[str, Any]]:
    """One row per placed sample. Its group is that of the first sample it is bound to within its split."""
    together = [(a, b) for a, b in _links(rows, pairs) if place.get(a) is not None and place.get(a) == place.get(b)]
    groups = clusters(len(rows), together)
    return [
        {
            "sample_id": rows[position]["sample_id"],
            "category": rows[position]["category"],
            "split": place[position],
            "label": rows[position]["label"],
            "defect_type": rows[position]["defect_type"],
            "group": rows[groups[position]]["group"],
            "mask": rows[position]["mask_path"] is not None,
        }
        for position in sorted(place)
    ]
