"""What is wrong with a file or a mask is found, named and set aside; nothing is dropped in silence."""

import numpy as np
import pytest

from stages.datasets import folder, mvtec
from stages.datasets.samples import DataError
from stages.datasets.verify import refuse, verify
from tests.datasets.trees import Tree, mvtec_tree


def _verified(tmp_path):
    reading = mvtec.read(tmp_path, tmp_path)
    return reading, verify(reading)


def _mask_of(verified, sample_id: str) -> str | None:
    return next(row.sample.mask_path for row in verified.rows if row.sample.sample_id == sample_id)


def test_a_clean_tree_has_no_problems(tmp_path):
    mvtec_tree(tmp_path)
    reading, verified = _verified(tmp_path)
    refuse(reading, verified)
    assert verified.problems == [] and verified.quarantined == [] and len(verified.rows) == len(reading.samples)


CRACK = "bottle/test/crack/001"


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda tree: tree.mask("bottle/ground_truth/crack/001_mask.png", shape=(24, 24)), "another size"),
        (lambda tree: tree.mask("bottle/ground_truth/crack/001_mask.png", value=0), "marks nothing"),
        (lambda tree: tree.file("bottle/ground_truth/crack/001_mask.png"), "cannot be read"),
        (lambda tree: (tree.root / "bottle/ground_truth/crack/001_mask.png").unlink(), "have no mask"),
    ],
)
def test_an_unusable_mask_is_dropped_and_the_image_named(tmp_path, spoil, text):
    spoil(mvtec_tree(tmp_path))
    _, verified = _verified(tmp_path)
    (problem,) = verified.problems
    assert (problem.code, problem.severity) == ("E202", "warning")
    assert text in problem.what and "001.png" in problem.what and problem.what.startswith("1 of 28")
    assert _mask_of(verified, CRACK) is None and _mask_of(verified, "bottle/test/crack/002")


def test_masks_with_small_values_stay(tmp_path):
    mvtec_tree(tmp_path).mask("bottle/ground_truth/crack/001_mask.png", value=1)
    _, verified = _verified(tmp_path)
    assert verified.problems == [] and _mask_of(verified, CRACK)


def test_compression_noise_in_a_mask_is_told_from_small_values(tmp_path):
    tree = mvtec_tree(tmp_path)
    noisy = np.zeros((96, 96), dtype=np.uint8)
    noisy[4:12, 4:12] = 255
    noisy[:, 20:30] = 9
    tree.image("bottle/ground_truth/crack/001_mask.png", noisy)
    _, verified = _verified(tmp_path)
    assert [("grey values" in problem.what, "mask_threshold" in problem.fix) for problem in verified.problems] == [(True, True)]
    quiet = verify(folder.read(tmp_path / "bottle", tmp_path, mask_threshold=127))
    assert quiet.problems == []


def test_a_good_image_whose_mask_marks_something_keeps_its_label_and_loses_the_mask(tmp_path):
    mvtec_tree(tmp_path).mask("bottle/ground_truth/good/002_mask.png")
    _, verified = _verified(tmp_path)
    (problem,) = verified.problems
    assert "are normal but have a mask" in problem.what and "002.png" in problem.what
    assert _mask_of(verified, "bottle/test/good/002") is None


def test_an_empty_mask_of_a_good_image_is_no_problem(tmp_path):
    mvtec_tree(tmp_path).mask("bottle/ground_truth/good/002_mask.png", value=0)
    assert _verified(tmp_path)[1].problems == []


def test_a_data_set_without_any_mask_is_not_blamed(tmp_path):
    tree = Tree(tmp_path / "mine")
    tree.images("good/{}.png", 5)
    tree.images("bad/{}.png", 5)
    assert verify(folder.read(tmp_path / "mine", tmp_path)).problems == []


@pytest.mark.parametrize(("bad", "refused"), [(1, False), (2, True)])
def test_unreadable_images_are_quarantined_and_past_five_percent_refused(tmp_path, bad, refused):
    tree = mvtec_tree(tmp_path, train=20)  # 28 images: one is 3.6 %, two are 7.1 %
    for number in range(bad):
        tree.file(f"bottle/train/good/{number:03}.png")
    reading, verified = _verified(tmp_path)
    assert [entry["path"] for entry in verified.quarantined] == [f"bottle/train/good/{number:03}.png" for number in range(bad)]
    assert len(verified.rows) == 28 - bad
    (problem,) = verified.problems
    assert problem.code == "E204" and problem.severity == ("error" if refused else "warning") and f"{bad} of 28" in problem.what
    if refused:
        with pytest.raises(DataError, match="at most 5%"):
            refuse(reading, verified)
    else:
        refuse(reading, verified)


def test_a_category_without_normal_training_images_is_e201_with_folders_and_counts(tmp_path):
    tree = mvtec_tree(tmp_path)
    tree.image("screw/test/good/0.png")
    (tmp_path / "screw/train/good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"E201 category screw .*screw/test/good \(1 images\)"):
        refuse(*_verified(tmp_path))
