"""`assay data check` names the layout and every planted problem at once, and changes nothing."""

import json

import pytest

from stages.datasets import check
from tests.datasets.trees import Tree, mvtec_tree, texture


def _snapshot(root):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_clean_folder_is_ok_and_left_as_it_was(tmp_path):
    mvtec_tree(tmp_path)
    before = _snapshot(tmp_path)
    found = check.check(tmp_path)
    assert found.ok and found.layout == "mvtec" and found.problems == [] and found.duplicates == []
    assert found.tree == {"bottle": {"train": {"good": 20}, "test": {"good": 4, "crack": 4}}}
    assert _snapshot(tmp_path) == before


def test_every_planted_problem_is_reported_in_one_go(tmp_path):
    tree = mvtec_tree(tmp_path, train=60)
    train, test = tmp_path / "bottle/train/good", tmp_path / "bottle/test/good"
    (train / "000.png").write_bytes((test / "000.png").read_bytes())
    tree.image("bottle/test/good/900.png", texture(900, 192))
    tree.image("bottle/train/good/copy.jpg", texture(900, 192), quality=80)
    tree.file("bottle/train/good/005.png")
    tree.mask("bottle/ground_truth/crack/001_mask.png", shape=(9, 9))
    tree.image("bottle/extra/000.png")
    tree.image("bottle/train/good/007.jpg")
    found = check.check(tmp_path)
    assert found.ok
    assert sorted((problem.code, problem.severity) for problem in found.problems) == [
        ("E201", "warning"),
        ("E201", "warning"),
        ("E202", "warning"),
        ("E203", "warning"),
        ("E204", "warning"),
    ]
    text = check.render(found)
    for word in ("another size", "bottle/extra/000.png", "005.png", "1 by copy, 1 by near copy", "Leave out 1 unreadable", "007"):
        assert word in text
    assert all(problem.fix for problem in found.problems)
    across = {(duplicate.first, duplicate.second, duplicate.exact) for duplicate in found.duplicates if duplicate.across}
    assert {pair[2] for pair in across} == {True, False} and len(across) == 2


@pytest.mark.parametrize(
    ("names", "layout"),
    [
        (["c/train/good/{}.png", "c/test/good/{}.png"], "mvtec"),
        (["c/Data/Images/Normal/{}.png", "c/Data/Images/Anomaly/{}.png"], "visa"),
        (["01/train/ok/{}.bmp", "01/test/ok/{}.bmp", "01/test/ko/{}.bmp"], "btad"),
        (["MT_Free/Imgs/{}.jpg", "MT_Crack/Imgs/{}.jpg"], "magnetic_tile"),
        (["ok/{}.png", "ng/{}.png"], "folder (flat, one category)"),
        (["a/good/{}.png", "a/dent/{}.png"], "folder (flat, one folder per category)"),
        (["a/training/normal/{}.png", "a/testing/bad/{}.png"], "folder (split, one folder per category)"),
    ],
)
def test_the_layout_is_recognised(tmp_path, names, layout):
    tree = Tree(tmp_path)
    for name in names:
        tree.images(name, 4)
    assert check.check(tmp_path).layout == layout


@pytest.mark.parametrize("names", [["stuff/{}.png"], ["train/good/{}.txt"], []])
def test_what_cannot_be_used_is_an_error_and_not_a_traceback(tmp_path, names):
    for name in names:
        Tree(tmp_path / "d").file(name.format(0))
    found = check.check(tmp_path / "d")
    assert not found.ok and [problem.severity for problem in found.problems] == ["error"]
    assert "Nothing, until the errors" in check.render(found)


def test_json_says_the_same_as_the_object(tmp_path):
    mvtec_tree(tmp_path)
    found = check.check(tmp_path)
    again = json.loads(json.dumps(check.as_json(found)))
    assert again["ok"] is True and again["tree"] == found.tree and again["plan"] == found.plan


def test_masks_and_ignored_files_are_not_called_unused(tmp_path):
    tree = mvtec_tree(tmp_path)
    tree.file("bottle/train/good/Thumbs.db")
    tree.file("bottle/license.txt")
    tree.mask("bottle/ground_truth/good/000_mask.png", value=0)
    assert check.check(tmp_path).problems == []
