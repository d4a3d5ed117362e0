"""Each adapter reads a small copy of its layout, with the traps that real copies hold."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from stages.datasets import adapters, btad, elpv, folder, magnetic_tile, mvtec, visa
from stages.datasets.samples import DataError
from stages.params import ParamsError
from tests.datasets.trees import Tree, mvtec_tree


def _table(reading) -> set[tuple]:
    return {(sample.sample_id, sample.split, sample.label, sample.mask_path) for sample in reading.samples}


def _holds_the_contract(reading) -> None:
    ids = [sample.sample_id for sample in reading.samples]
    assert len(set(ids)) == len(ids)
    assert ids == [sample.sample_id for sample in sorted(reading.samples, key=lambda row: (row.category, row.split or "", row.sample_id))]
    for sample in reading.samples:
        assert (reading.root / sample.image_path).is_file() and "\\" not in sample.image_path
        assert sample.mask_path is None or (reading.root / sample.mask_path).is_file()
        assert sample.group and sample.sample_id.startswith(f"{sample.category}/{sample.split or 'all'}/{sample.defect_type}/")
        assert (sample.defect_type == "good") == (sample.label == 0)


def test_mvtec_joins_masks_by_name_and_keeps_further_tests_and_bad_training_images(tmp_path):
    tree = Tree(tmp_path)
    for name in ("bottle/train/good/000.png", "bottle/train/crack/009.png", "bottle/test/good/000.png", "bottle/test/crack/000.png"):
        tree.image(name)
    tree.image("bottle/test_shift/crack/000.png")
    tree.mask("bottle/ground_truth/crack/000_mask.png")
    tree.mask("bottle/ground_truth_shift/crack/000.png")
    tree.image("screw/train/good/000.png")
    tree.image("screw/test/good/000.png")
    reading = mvtec.read(tmp_path, tmp_path)
    _holds_the_contract(reading)
    assert _table(reading) == {
        ("bottle/train/good/000", "train", 0, None),
        ("bottle/train/crack/009", "train", 1, None),
        ("bottle/test/good/000", "test", 0, None),
        ("bottle/test/crack/000", "test", 1, "bottle/ground_truth/crack/000_mask.png"),
        ("bottle/test_shift/crack/000", "test_shift", 1, "bottle/ground_truth_shift/crack/000.png"),
        ("screw/train/good/000", "train", 0, None),
        ("screw/test/good/000", "test", 0, None),
    }


def test_mvtec_reads_one_category_given_alone(tmp_path):
    mvtec_tree(tmp_path)
    assert {sample.category for sample in mvtec.read(tmp_path / "bottle", tmp_path).samples} == {"bottle"}


def test_masks_of_no_image_are_listed(tmp_path):
    mvtec_tree(tmp_path).mask("bottle/ground_truth/crack/777_mask.png")
    (problem,) = mvtec.read(tmp_path, tmp_path).problems
    assert problem.code == "E202" and "777" in problem.what


def test_files_that_are_no_images_are_left_alone(tmp_path):
    tree = mvtec_tree(tmp_path, train=3)
    for name in ("Thumbs.db", ".DS_Store", "._000.png", ".hidden.png", "notes.txt", "desktop.ini"):
        tree.file(f"bottle/train/good/{name}")
    tree.file("__MACOSX/bottle/train/good/._000.png")
    tree.image("bottle/train/.thumbnails/000.png")
    for name in (".git/train/good/000.png", ".git/test/good/000.png"):
        tree.image(name)
    samples = mvtec.read(tmp_path, tmp_path).samples
    assert Counter(sample.split for sample in samples) == {"train": 3, "test": 8}


def test_equal_names_unicode_and_very_long_names_stay_apart(tmp_path):
    long = "x" * 200
    names = ["a.png", "a.jpg", "ä é 日本 100%.png", f"{long}.png", "two.dots.png"]
    tree = mvtec_tree(tmp_path, train=1)
    for name in names:
        tree.image(f"bottle/train/good/{name}")
    reading = mvtec.read(tmp_path, tmp_path)
    _holds_the_contract(reading)
    ids = {sample.sample_id.removeprefix("bottle/train/good/") for sample in reading.samples if sample.split == "train"}
    assert ids == {"000", "a.png", "a.jpg", "ä é 日本 100%", long, "two.dots"}


def test_visa_follows_its_table_and_the_raw_folders_where_there_is_none(tmp_path):
    tree = Tree(tmp_path)
    for name in ("Normal/0.JPG", "Normal/1.JPG", "Anomaly/0.JPG"):
        tree.image(f"candle/Data/Images/{name}")
    tree.mask("candle/Data/Masks/Anomaly/0.png", value=3)
    raw = visa.read(tmp_path, tmp_path)
    _holds_the_contract(raw)
    mask = "candle/Data/Masks/Anomaly/0.png"
    assert _table(raw) == {
        ("candle/all/good/0", None, 0, None),
        ("candle/all/good/1", None, 0, None),
        ("candle/all/anomaly/0", None, 1, mask),
    }
    rows = [
        "object,split,label,image,mask",
        "candle,train,normal,candle/Data/Images/Normal/0.JPG,",
        "candle,test,normal,candle/Data/Images/Normal/1.JPG,",
        f"candle,test,anomaly,candle/Data/Images/Anomaly/0.JPG,{mask}",
        "candle,test,anomaly,candle/Data/Images/Anomaly/9.JPG,",
    ]
    tree.file("split_csv/1cls.csv", "\n".join(rows).encode())
    split = visa.read(tmp_path, tmp_path)
    _holds_the_contract(split)
    assert _table(split) == {
        ("candle/train/good/0", "train", 0, None),
        ("candle/test/good/1", "test", 0, None),
        ("candle/test/anomaly/0", "test", 1, mask),
    }
    assert [problem.path for problem in split.problems] == ["candle/Data/Images/Anomaly/9.JPG"]


def test_btad_joins_masks_of_another_extension(tmp_path):
    tree = Tree(tmp_path)
    for name in ("01/train/ok/0000.bmp", "01/test/ok/0001.bmp", "01/test/ko/0000.bmp", "02/train/ok/0000.png", "02/test/ko/0000.png"):
        tree.image(name)
    tree.mask("01/ground_truth/ko/0000.png")
    tree.mask("02/ground_truth/ko/0000.bmp")
    reading = btad.read(tmp_path, tmp_path)
    _holds_the_contract(reading)
    assert _table(reading) == {
        ("01/train/good/0000", "train", 0, None),
        ("01/test/good/0001", "test", 0, None),
        ("01/test/ko/0000", "test", 1, "01/ground_truth/ko/0000.png"),
        ("02/train/good/0000", "train", 0, None),
        ("02/test/ko/0000", "test", 1, "02/ground_truth/ko/0000.bmp"),
    }


def test_magnetic_tile_pairs_each_photograph_with_the_mask_beside_it(tmp_path):
    tree = Tree(tmp_path)
    tree.image("MT_Free/Imgs/exp1_num_1.jpg")
    tree.mask("MT_Free/Imgs/exp1_num_1.png", value=0)
    tree.image("MT_Blowhole/Imgs/exp1_num_2.jpg")
    tree.mask("MT_Blowhole/Imgs/exp1_num_2.png")
    reading = magnetic_tile.read(tmp_path, tmp_path)
    _holds_the_contract(reading)
    assert _table(reading) == {
        ("tile/all/good/exp1_num_1", None, 0, "MT_Free/Imgs/exp1_num_1.png"),
        ("tile/all/blowhole/exp1_num_2", None, 1, "MT_Blowhole/Imgs/exp1_num_2.png"),
    }
    assert reading.mask_threshold == 127


def test_elpv_leaves_doubted_cells_out_unless_asked(tmp_path):
    tree = Tree(tmp_path)
    tree.images("data/images/cell{:04}.png", 4)
    rows = ["0.0  mono", "1.0  mono", "0.3333333333333333  poly", "0.6666666666666666  poly"]
    tree.file("data/labels.csv", "\n".join(f"images/cell{number:04}.png  {row}" for number, row in enumerate(rows)).encode())
    sure = elpv.read(tmp_path, tmp_path)
    _holds_the_contract(sure)
    assert [(sample.sample_id, sample.label) for sample in sure.samples] == [
        ("mono/all/defective/cell0001", 1),
        ("mono/all/good/cell0000", 0),
    ]
    assert sure.about["left_out"] == 2
    every = elpv.read(tmp_path, tmp_path, uncertain="anomalous")
    assert {sample.label for sample in every.samples if sample.category == "poly"} == {1} and len(every.samples) == 4


def test_both_photographs_of_an_elpv_cell_are_one_group(tmp_path):
    tree = Tree(tmp_path)
    tree.file("data/labels.csv", "".join(f"images/cell{number}.png 0.0 poly\n" for number in (1734, 1735, 2276, 2277, 2326, 1784)).encode())
    group = {sample.sample_id[-4:]: sample.group for sample in elpv.read(tmp_path, tmp_path).samples}
    assert group["2277"] == group["1735"] and group["2326"] == group["1784"] and len(set(group.values())) == 4


def test_elpv_counts_of_the_installed_package(tmp_path):
    """The counts that its authors publish: mono 588 / 313, poly 920 / 402 at p = 0 and p = 1."""
    pytest.importorskip("elpv_dataset", reason="the extra `solar` is not installed")
    reading = elpv.read(Path("requirements.lock"), tmp_path)
    assert Counter((sample.category, sample.label) for sample in reading.samples) == {
        ("mono", 0): 588,
        ("mono", 1): 313,
        ("poly", 0): 920,
        ("poly", 1): 402,
    }
    assert reading.package == "elpv_dataset" and "NC" in reading.about["licence"]


@pytest.mark.parametrize(("normal", "bad"), [("good", "bad"), ("OK", "NG"), ("Normal", "Abnormal"), ("good", "hole"), ("pass", "Dent 3")])
@pytest.mark.parametrize("above", ["", "cap/"])
def test_flat_folders_are_read_by_any_name_for_normal(tmp_path, normal, bad, above):
    tree = Tree(tmp_path / "mine")
    tree.images(f"{above}{normal}/{{}}.png", 2)
    tree.image(f"{above}{bad}/0.png")
    tree.mask(f"{above}masks/0.png")
    reading = folder.read(tmp_path / "mine", tmp_path)
    _holds_the_contract(reading)
    category = "cap" if above else "mine"
    assert _table(reading) == {
        (f"{category}/all/good/0", None, 0, None),
        (f"{category}/all/good/1", None, 0, None),
        (f"{category}/all/{bad}/0", None, 1, f"{above}masks/0.png"),
    }


@pytest.mark.parametrize("above", ["", "cap/"])
def test_split_folders_with_any_names_are_read(tmp_path, above):
    tree = Tree(tmp_path / "mine")
    for name in ("Train/OK/0.png", "val/ok/1.png", "val/ng/2.png", "Test/OK/3.png", "Test/NG/4.png", "test_night/NG/5.png"):
        tree.image(above + name)
    tree.mask(f"{above}ground_truth/NG/4.png")
    reading = folder.read(tmp_path / "mine", tmp_path)
    _holds_the_contract(reading)
    parts = {(row.image_path.removeprefix(above), row.split, row.label, row.mask_path is not None) for row in reading.samples}
    assert parts == {
        ("Train/OK/0.png", "train", 0, False),
        ("val/ok/1.png", "train", 0, False),
        ("val/ng/2.png", "test", 1, False),
        ("Test/OK/3.png", "test", 0, False),
        ("Test/NG/4.png", "test", 1, True),
        ("test_night/NG/5.png", "test_night", 1, False),
    }


def test_images_that_lie_in_train_itself_are_normal_and_in_test_itself_unlabelled(tmp_path):
    tree = Tree(tmp_path / "mine")
    tree.images("train/{}.png", 2)
    tree.image("test/7.png")
    reading = folder.read(tmp_path / "mine", tmp_path)
    assert Counter((sample.split, sample.label) for sample in reading.samples) == {("train", 0): 2, ("test", None): 1}
    assert len(reading.problems) == 2


def _csv(path: Path, rows: list[list[str]], delimiter: str = ",", encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_a_table_gives_labels_splits_masks_and_groups(tmp_path, delimiter, encoding):
    tree = Tree(tmp_path)
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        tree.image(name)
    tree.mask("m/2.png")
    rows = [
        ["Path", "Label", "category", "split", "mask", "group"],
        ["a/1.png", "0", "cap", "train", "", "part7"],
        ["a/2.png", "scratch", "cap", "test", "m/2.png", ""],
        ["b/1.png", "OK", "lid", "", "", ""],
        ["b\\2.png", "unknown", "lid", "", "", ""],
    ]
    _csv(tmp_path / "list.csv", rows, delimiter, encoding)
    reading = folder.read(tmp_path, tmp_path)
    assert _table(reading) == {
        ("cap/train/good/1", "train", 0, None),
        ("cap/test/scratch/2", "test", 1, "m/2.png"),
        ("lid/all/good/1", None, 0, None),
        ("lid/all/unknown/2", None, None, None),
    }
    assert {sample.group for sample in reading.samples if sample.category == "cap"} == {"part7", "cap/test/scratch/2"}


def test_a_table_cannot_point_outside_its_folder(tmp_path):
    Tree(tmp_path).image("secret.png")
    tree = Tree(tmp_path / "data")
    tree.image("ok.png")
    _csv(tmp_path / "data/list.csv", [["path", "label"], ["../secret.png", "0"], [str(tmp_path / "secret.png"), "0"], ["ok.png", "0"]])
    reading = folder.read(tmp_path / "data/list.csv", tmp_path)
    assert [sample.image_path for sample in reading.samples] == ["ok.png"]
    assert [problem.code for problem in reading.problems] == ["E204", "E204"]


def test_a_stray_table_does_not_hide_the_folders(tmp_path):
    tree = Tree(tmp_path / "mine")
    tree.image("good/0.png")
    _csv(tmp_path / "mine/inventory.csv", [["article", "price"], ["7", "1"]])
    assert [sample.label for sample in folder.read(tmp_path / "mine", tmp_path).samples] == [0]


def test_no_folder_of_normal_images_is_e201_with_the_folders_seen(tmp_path):
    Tree(tmp_path).images("stuff/scratch/{}.png", 3)
    with pytest.raises(DataError, match=r"E201 .*stuff/scratch \(3\)"):
        folder.read(tmp_path, tmp_path)


def test_an_unknown_adapter_or_option_names_the_nearest(tmp_path):
    with pytest.raises(ParamsError, match="did you mean 'mvtec'"):
        adapters.read("mvtek", tmp_path, tmp_path, {}, at=("datasets", "mine"))
    with pytest.raises(ParamsError, match="did you mean 'uncertain'"):
        adapters.read("elpv", tmp_path, tmp_path, {"uncertian": "excluded"}, at=("datasets", "solar"))


def test_every_layout_of_the_design_is_known():
    assert {"mvtec", "visa", "btad", "magnetic_tile", "elpv", "folder", "parts"} <= set(adapters.known())
