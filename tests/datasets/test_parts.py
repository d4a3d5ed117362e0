"""The generated data set: layout, exact masks, independence of pictures, contamination. How hard it is: test_parts_hardness.py."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from stages.datasets import parts
from stages.datasets.samples import DataError
from stages.datasets.scenes import picture
from stages.datasets.scenes.camera import NOMINAL, SHIFTED, lamp, photograph
from stages.datasets.scenes.defects import LEVELS, difference
from stages.datasets.scenes.picture import SCENES, damage, defect_of, defect_types, draw
from stages.datasets.scenes.surface import SIZE, Surface

KEY = (7, 1, 0)
SMALL = {"train_normal": 2, "test_normal": 1, "test_anomalous": 2, "shift_normal": 1, "shift_anomalous": 1}
EVERY_DEFECT = [(category, defect) for category in SCENES for defect in defect_types(category)]


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.png"))}


def drawn(folder: Path, **options) -> parts.Reading:
    folder.mkdir()
    return parts.read(Path("unused"), folder, **(SMALL | options))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("parts") / "a")


def test_every_file_is_a_row_and_every_row_a_file(small):
    listed = {s.image_path for s in small.samples} | {s.mask_path for s in small.samples if s.mask_path}
    assert listed == set(tree(small.root))
    assert len({s.sample_id for s in small.samples}) == len(small.samples) == len(SCENES) * sum(SMALL.values())


def test_layout_is_that_of_mvtec_ad_with_a_shifted_test_beside_it(small):
    paths = {s.image_path: s for s in small.samples if s.category == "weave"}
    assert set(paths) == {
        "weave/train/good/000.png", "weave/train/good/001.png", "weave/test/good/000.png", "weave/test/stain/000.png",
        "weave/test/snag/000.png", "weave/test_shift/good/000.png", "weave/test_shift/stain/000.png",
    }  # fmt: skip
    assert paths["weave/test/snag/000.png"].mask_path == "weave/ground_truth/snag/000_mask.png"
    assert paths["weave/test_shift/stain/000.png"].mask_path == "weave/ground_truth_shift/stain/000_mask.png"
    assert paths["weave/test/snag/000.png"][:6] == ("weave/test/snag/000", "weave", "test", 1, "snag", "weave/test/snag/000")


def test_masks_are_black_and_white_and_as_large_as_their_image(small):
    for sample in small.samples:
        assert (sample.mask_path is None) == (sample.label == 0)
        if sample.mask_path:
            mask, image = (np.asarray(Image.open(small.root / path)) for path in (sample.mask_path, sample.image_path))
            assert image.shape == (256, 256, 3) and mask.shape == (256, 256) and set(np.unique(mask)) == {0, 255}


def test_same_seed_gives_the_same_bytes_and_another_seed_other_pictures(small, tmp_path):
    assert tree(drawn(tmp_path / "again").root) == tree(small.root)
    other = tree(drawn(tmp_path / "other", seed=1).root)
    assert not set(other.values()) & set(tree(small.root).values())


def test_a_picture_does_not_depend_on_what_was_drawn_before_it(small, tmp_path):
    fewer = tree(drawn(tmp_path / "fewer", train_normal=1, test_normal=0, shift_normal=0).root)
    assert fewer.items() <= tree(small.root).items()
    sample = next(s for s in small.samples if s.image_path == "washer/test/dent/000.png")
    assert np.array_equal(np.asarray(Image.open(small.root / sample.image_path)), draw("washer", 0, "test", 1, bad=True).image)


@pytest.mark.parametrize(("category", "defect"), EVERY_DEFECT)
def test_the_mask_covers_where_the_picture_differs_from_its_good_twin(category, defect, monkeypatch):
    """Light carries a change a little further than its cause (shadow, occlusion); 12 pixels around the mask hold it."""
    index = defect_types(category).index(defect)
    bad = draw(category, 3, "test", index, bad=True)
    monkeypatch.setattr(picture, "damage", lambda scene, layout, clean, *rest: (clean, np.zeros((256, 256), bool)))
    twin = draw(category, 3, "test", index, bad=True)
    change = np.abs(bad.image.astype(int) - twin.image).max(axis=2)
    around = ndimage.binary_dilation(bad.mask, iterations=12)
    assert bad.defect_type == defect
    assert change[~around].max(initial=0) <= 12
    assert change[bad.mask].mean() > 3 * max(1.0, change[~bad.mask].mean())


@pytest.mark.parametrize(("category", "defect"), EVERY_DEFECT)
def test_a_higher_level_is_never_the_fainter_defect(category, defect):
    scene = SCENES[category]
    layout = scene.compose(np.random.default_rng(KEY), 1.0)
    clean = scene.paint(layout)

    def strength(level: float) -> float:
        change = 0.0
        for stream in range(3):
            surface = scene.spoil(np.random.default_rng((*KEY, stream)), layout, clean, defect, level)
            change += np.abs(surface.albedo - clean.albedo).sum() * 20 + np.abs(surface.height - clean.height).sum()
        return change

    faint, plain, gross = (strength(level) for level in LEVELS)
    assert 0 < faint <= plain <= gross


@pytest.mark.parametrize(
    ("category", "defect"),
    [("weave", "broken_stripe"), ("terrazzo", "foreign_chip"), ("washer", "rust"), ("blister", "wrong_colour")],
)
def test_a_higher_level_of_a_coloured_defect_stands_out_more_where_it_is(category, defect):
    scene = SCENES[category]
    layout = scene.compose(np.random.default_rng(KEY), 1.0)
    clean = scene.paint(layout)
    contrast = []
    for level in LEVELS:
        change = np.abs(scene.spoil(np.random.default_rng(KEY), layout, clean, defect, level).albedo - clean.albedo).max(axis=2)
        contrast.append(change[change > 0.012].mean())
    assert contrast[0] < contrast[1] < contrast[2]


@pytest.mark.parametrize("category", SCENES)
def test_painting_twice_gives_the_same_surface_so_that_only_defects_differ(category):
    scene = SCENES[category]
    layout = scene.compose(np.random.default_rng(KEY), 1.0)
    assert not difference(scene.paint(layout), scene.paint(layout)).any()


@pytest.mark.parametrize("category", SCENES)
def test_defects_take_turns_and_each_goes_through_all_levels(category):
    types = defect_types(category)
    planned = [defect_of(category, index) for index in range(3 * len(types))]
    assert sorted(planned) == sorted((defect, level) for defect in types for level in LEVELS)
    assert len(SCENES[category].STRUCTURAL) >= 2 and len(SCENES[category].LOGICAL) >= 2


def test_a_defect_that_left_no_mark_is_drawn_again():
    class Shy:
        calls = 0

        @classmethod
        def spoil(cls, rng, layout, clean, defect, level):
            cls.calls += 1
            return clean if cls.calls < 3 else clean._replace(height=clean.height + 1)

    flat = np.zeros((SIZE, SIZE), np.float32)
    _, mask = damage(Shy, None, Surface(np.zeros((SIZE, SIZE, 3), np.float32), flat, flat), KEY, "shy", 1.0)
    assert Shy.calls == 3 and mask.all()


def test_a_defect_that_never_leaves_a_mark_is_an_error(monkeypatch):
    monkeypatch.setattr(SCENES["weave"], "spoil", lambda rng, layout, clean, defect, level: clean)
    with pytest.raises(RuntimeError, match=r"stain at level .* left no mark"):
        draw("weave", 0, "test", 0, bad=True)


def test_contamination_files_bad_pictures_under_good_and_tells_the_truth_in_the_table(tmp_path):
    only_train = {"test_normal": 0, "test_anomalous": 0, "shift_normal": 0, "shift_anomalous": 0}
    low = drawn(tmp_path / "low", train_normal=4, contamination=0.25, **only_train)
    high = drawn(tmp_path / "high", train_normal=4, contamination=0.5, **only_train)
    for reading, count in ((low, 1), (high, 2)):
        bad = [s for s in reading.samples if s.label == 1 and s.category == "blister"]
        assert sorted(s.defect_type for s in bad) == sorted(defect_types("blister")[:count])  # types take turns
        assert all(s.split == "train" and "/train/good/" in s.image_path for s in bad)
        assert all((reading.root / s.mask_path).exists() for s in bad)
    bad_paths = [{s.image_path for s in reading.samples if s.label == 1} for reading in (low, high)]
    assert bad_paths[0] < bad_paths[1]
    changed = {path for path, digest in tree(high.root).items() if "/good/" in path and tree(low.root)[path] != digest}
    assert changed == bad_paths[1] - bad_paths[0]


@pytest.mark.parametrize("wrong", [{"train_normal": 0}, {"test_anomalous": -1}, {"contamination": 0.6}, {"contamination": -0.1}])
def test_numbers_out_of_range_are_named_in_the_error(wrong, tmp_path):
    with pytest.raises(DataError, match=next(iter(wrong))):
        drawn(tmp_path / "wrong", **wrong)


def test_shifted_shots_vary_more_in_light_and_show_less_detail():
    lamps = {c: [lamp(np.random.default_rng(k), c) for k in range(200)] for c in (NOMINAL, SHIFTED)}
    assert np.std([light.gain for light in lamps[SHIFTED]]) > 1.5 * np.std([light.gain for light in lamps[NOMINAL]])
    scene = SCENES["weave"]
    surface = scene.paint(scene.compose(np.random.default_rng(KEY), 1.0))
    quiet = [c._replace(noise=(0, 0), gain=(0, 0), azimuth=(0, 0)) for c in (NOMINAL, SHIFTED)]
    sharp, soft = (np.abs(np.diff(photograph(np.random.default_rng(5), surface, c).mean(axis=2), axis=1)).mean() for c in quiet)
    assert soft < 0.8 * sharp
