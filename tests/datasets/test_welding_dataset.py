"""`WeldingDataset` gives the seed's four arrays. The first half reads no file and needs NumPy alone: a reader made of arrays is put in."""

import numpy as np
import pytest

from stages.datasets.intel_welding import CLASSES
from stages.datasets.record_adapters import RecordRow
from stages.datasets.samples import DataError
from stages.datasets.welding_dataset import MediaReader, Medium, Shape, WeldingDataset, collate
from tests.datasets.weld_trees import log_rows, write_log, write_tree

SHAPE = Shape(frames=16, frame_size=32, clock_s=2.0)


def _rows(*faults):
    return [RecordRow(f"w{number}", {}, int(bool(fault)), fault) for number, fault in enumerate(faults)]


def _media(seed=0, frames=12, views=(0, 1, 2, 3, 4), columns=150, steps=100):
    draw = np.random.default_rng(seed)
    return {
        "video": Medium(draw.integers(0, 255, (frames, 32, 32), np.uint8), np.linspace(0, 1, frames)),
        "image": Medium(draw.integers(0, 255, (len(views), 224, 224, 3), np.uint8), np.array(views) / 4, views),
        "audio": Medium(draw.normal(-8, 2, (columns, 64)).astype(np.float32), np.linspace(0, 0.75, columns)),
        "series": Medium(draw.normal(size=(steps, 6)), np.linspace(0, 1, steps)),
    }


def _dataset(media=None, faults=("", "porosity"), **options):
    return WeldingDataset(_rows(*faults), lambda row: _media() if media is None else media, SHAPE, **options)


def test_a_sample_has_the_shapes_of_the_contract():
    dataset = _dataset()
    sample = dataset[0]
    assert len(dataset) == 2
    assert sample["post_weld_images"].shape == (5, 3, 224, 224) and sample["post_images"] is sample["post_weld_images"]
    assert sample["video"].shape == (16, 1, 32, 32)
    assert sample["audio"].shape == (1, 64, 200)
    assert sample["sensors"].shape == (256, 6)
    assert all(sample[name].dtype == np.float32 for name in ("video", "post_images", "audio", "sensors"))
    assert {name: mask.shape for name, mask in sample["masks"].items()} == {"video": (16,), "post_images": (5,), "audio": (200,), "sensors": (256,)}
    assert sample["present"].tolist() == [True] * 4


def test_the_default_is_five_views_of_224_pixels_and_16_kilohertz():
    shape = Shape()
    assert (shape.views, shape.image_size, shape.rate, shape.frames, shape.steps) == (5, 224, 16000, 16, 256)


def test_labels_are_places_among_the_twelve_classes():
    samples = [_dataset(faults=("", "porosity"))[number] for number in (0, 1)]
    assert [sample["label"] for sample in samples] == [0, CLASSES.index("porosity")] and [sample["anomalous"] for sample in samples] == [0, 1]
    with pytest.raises(DataError, match="E441 the class 'rust' is none of good"):
        _dataset(faults=("rust",))


def test_what_lies_behind_a_mask_is_padding_and_what_lies_before_it_is_untouched():
    media, sample = _media(), _dataset()[0]
    assert sample["masks"]["video"].tolist() == [True] * 12 + [False] * 4
    np.testing.assert_allclose(sample["video"][:12, 0], media["video"].values / np.float32(255), rtol=1e-6)
    assert not sample["video"][12:].any() and not sample["sensors"][100:].any()
    np.testing.assert_allclose(sample["audio"][0, :, :150], media["audio"].values.T)
    assert (sample["audio"][0, :, 150:] == np.float32(np.log(1e-6))).all(), "silence, as a spectrogram shows it"
    assert sample["video"].max() <= 1 and sample["post_images"].max() <= 1
    np.testing.assert_allclose(sample["time"]["video"][:12], np.linspace(0, 1, 12), rtol=1e-6)


def test_a_missing_angle_is_masked_and_filled_by_zeros_or_by_the_view_before():
    media = _media(views=(1, 3))
    zeros, repeated = _dataset(media)[0], _dataset(media, fill="repeat")[0]
    for sample in (zeros, repeated):
        assert sample["masks"]["post_images"].tolist() == [False, True, False, True, False]
        np.testing.assert_allclose(sample["post_images"][3].transpose(1, 2, 0), media["image"].values[1] / np.float32(255), rtol=1e-6)
    assert not zeros["post_images"][[0, 2, 4]].any()
    np.testing.assert_array_equal(repeated["post_images"][[0, 2, 4]], repeated["post_images"][[1, 1, 3]])


def test_a_missing_medium_is_all_masked_and_not_present():
    media = {name: one for name, one in _media().items() if name not in ("audio", "image")}
    sample = _dataset(media)[0]
    assert sample["present"].tolist() == [True, False, False, True]
    assert sample["post_images"].shape == (5, 3, 224, 224) and not sample["masks"]["audio"].any()


def test_a_reader_that_gives_another_shape_is_named():
    media = _media() | {"series": Medium(np.zeros((10, 4)), np.zeros(10))}
    with pytest.raises(ValueError, match=r"series of shape \(10, 4\), expected at most \(256, 6\)"):
        _dataset(media)[0]


def test_samples_of_sound_are_given_where_there_are_no_bands():
    shape = SHAPE._replace(bands=0, clock_s=0.5)
    media = {"audio": Medium(np.ones(5000, np.float32), np.linspace(0, 0.6, 5000))}
    sample = WeldingDataset(_rows(""), lambda row: media, shape)[0]
    assert sample["audio"].shape == (1, 8000) and sample["masks"]["audio"].sum() == 5000 and not sample["audio"][0, 5000:].any()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("welds")
    write_tree(root, [("Good", "00"), ("Undercut", "03")], seconds=3.0, arc=(0.75, 2.5))
    return root


def test_a_folder_of_the_release_is_read_on_the_clock_of_the_arc(tree):
    dataset = WeldingDataset.from_folder(tree, SHAPE, nominal={"primary_weld_current": (180, 10)} | {name: (0, 1) for name in "abcde"})
    with pytest.raises(DataError, match="E434 .*has no sensor 'a'"):
        dataset[0]
    dataset = WeldingDataset.from_folder(tree, SHAPE)
    assert len(dataset) == 4
    by_id = {sample["record_id"]: sample for sample in (dataset[number] for number in range(4))}
    assert sorted(sample["label"] for sample in by_id.values()) == [0, 0, 2, 2]
    for sample in by_id.values():
        assert sample["present"].all() and sample["masks"]["post_images"].all()
        assert all(sample["time"][name][0] == 0 for name in ("video", "audio", "sensors"))
        assert sample["sensors"][0, 3] == pytest.approx(0, abs=0.1), "180 A is nominal"
        assert sample["video"][0].mean() > 0.15 and sample["audio"][0, :, :150].mean() - sample["audio"][0, :, 190:].mean() > 2
        assert 14 <= sample["masks"]["sensors"].sum() <= 20
    plain = WeldingDataset.from_folder(tree, SHAPE, onset=False)[0]
    assert plain["video"][0].mean() < 0.15 and plain["sensors"][0, 3] == -3


def test_steps_within_a_gap_of_the_clock_are_padding_and_those_after_it_lie_where_they_belong(tmp_path):
    write_tree(tmp_path, [("Good", "00")], welds=1, seconds=3.0, arc=(0.0, 3.0), photos=1)
    log = next(tmp_path.rglob("s00/*/*.csv"))
    rows = log_rows(4.0, (0.0, 4.0))
    rows[16:, 0] += 3
    write_log(log, rows)
    sample = WeldingDataset.from_folder(tmp_path, SHAPE._replace(rate_hz=8.0, clock_s=10.0))[0]
    mask = sample["masks"]["sensors"]
    assert np.flatnonzero(mask).tolist() == [*range(16), *range(40, 56)] and not sample["sensors"][~mask].any()
    np.testing.assert_allclose(sample["time"]["sensors"][mask] * 80, np.flatnonzero(mask), atol=1e-3)


def test_lists_are_chosen_by_split_or_by_id(tree):
    ids = [row.record_id for row in WeldingDataset.from_folder(tree, SHAPE).rows]
    assert [row.record_id for row in WeldingDataset.from_folder(tree, SHAPE, record_ids=ids[2:0:-1]).rows] == ids[2:0:-1]
    assert len(WeldingDataset.from_folder(tree, SHAPE, split="train")) == 4 and len(WeldingDataset.from_folder(tree, SHAPE, split="test")) == 0
    with pytest.raises(DataError, match="has no weld w0000"):
        WeldingDataset.from_folder(tree, SHAPE, record_ids=["w0000"])
    with pytest.raises(DataError, match=r"E440 .* holds 0 manifest.csv"):
        WeldingDataset.from_folder(tree / "s00")


def test_a_loader_gives_batches_of_tensors(tree):
    torch = pytest.importorskip("torch")
    shape = SHAPE._replace(frame_size=16, image_size=32, bands=16)
    dataset = WeldingDataset.from_folder(tree, shape, crop=(0.0, 0.2, 0.0, 0.0))
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4, collate_fn=collate)))
    assert batch["post_weld_images"] is batch["post_images"] and batch["post_images"].shape == (4, 5, 3, 32, 32)
    assert batch["video"].shape == (4, 16, 1, 16, 16) and batch["audio"].shape == (4, 1, 16, 200) and batch["present"].shape == (4, 4)
    assert batch["masks"]["audio"].shape == (4, 200) and batch["masks"]["audio"].dtype == torch.bool and batch["label"].tolist() == [0, 0, 2, 2]
    assert torch.equal(batch["sensors"][1], torch.from_numpy(dataset[1]["sensors"])) and len(batch["record_id"]) == 4


def test_a_reader_whose_sensors_do_not_fit_the_shape_is_refused(tree):
    with pytest.raises(DataError, match="`nominal` has 1 sensors and the shape 6"):
        MediaReader(tree, SHAPE, nominal={"feed": (0, 1)})


@pytest.mark.parametrize("arc", [{}, {"arc_above": 1e9}, {"current": "Feed", "arc_above": 60.0}])
def test_sensors_less_their_own_level_are_the_tokens_of_the_pipeline(tree, arc):
    """`current`, `arc_above`, `relative` and `limit` as the encoder kind sensor_steps has them, which is the oracle here."""
    pytest.importorskip("torch")
    from stages.encoders.media.sensor_steps import build

    nominal = {"primary_weld_current": (180.0, 0.5), "feed": (70.0, 2.0)}
    shape = SHAPE._replace(sensors=2, rate_hz=8.0, steps=20)
    dataset = WeldingDataset.from_folder(tree, shape, nominal=nominal, relative=True, limit=3.0, **arc)
    encoder = build(None, nominal=nominal, steps=20, rate_hz=8.0, clock_s=2.0, relative=True, limit=3.0, **arc)
    for number, row in enumerate(dataset.rows):
        sample, tokens = dataset[number], encoder.read(tree / row.paths["series"])
        np.testing.assert_allclose(sample["sensors"][sample["masks"]["sensors"]], tokens.values.numpy(), atol=1e-6)
        np.testing.assert_allclose(sample["time"]["sensors"][sample["masks"]["sensors"]], tokens.time.numpy(), atol=1e-6)
    assert abs(sample["sensors"]).max() == 3, "a weld that ends is far from its level"
