"""What every detector promises, whoever wrote it. A new detector is tested here without being named."""

import importlib
from typing import NamedTuple

import pytest
import torch

from stages import detectors
from stages.datasets.tiles import Grid
from stages.detectors import build, known
from stages.detectors.prediction import predictions
from stages.encoders.batches import TiledBatches
from stages.training import Run
from stages.types import Detector, NotFitted, Prediction, Refusal
from tests.arrays import ArrayBatches, features_of, noise_pixels, normal_pixels, plant_defect, read_aloud

TRAIN, HELD_OUT = normal_pixels(12, seed=1), normal_pixels(8, seed=2)
AUX = {name: ArrayBatches({"pixels": noise_pixels(6, seed)}) for seed, name in enumerate(("textures", "penalty"))}

pytestmark = [pytest.mark.usefixtures("tiny_cnn"), pytest.mark.parametrize("name", known())]


def make(name: str) -> Detector:
    """With the options `SMALL` of the detector's own test file, which make a fit take a fraction of a second."""
    family, file = name.split(".")
    own = "trivial" if family == "trivial" else file
    options = getattr(importlib.import_module(f"tests.detectors.{family}.test_{own}"), "SMALL", {})
    return build(name, options, at=("models", name))


def session(seed: int = 0) -> Run:
    return Run(seed=seed, quiet=True, aux=AUX, category="made-up", text=read_aloud)


def fit(name: str, seed: int = 0) -> Detector:
    return make(name).fit(ArrayBatches(features_of(TRAIN)), ArrayBatches(features_of(HELD_OUT)), session(seed))


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def fitted(name, cache):
    """One fit for all tests that only score."""
    if name not in cache:
        cache[name] = fit(name)
    return cache[name]


class Again(NamedTuple):
    """The fit of `fitted` once more, and whether it left alone what is not its own."""

    detector: Detector
    generator_untouched: bool
    features_untouched: bool


@pytest.fixture
def again(name, cache):
    """One second fit for all tests that look at what a fit does."""
    if (name, "again") not in cache:
        train, held_out = features_of(TRAIN), features_of(HELD_OUT)
        copies = [{key: values.clone() for key, values in features.items()} for features in (train, held_out)]
        torch.manual_seed(99)  # the global generator must not matter
        before = torch.random.get_rng_state()
        detector = make(name).fit(ArrayBatches(train), ArrayBatches(held_out), session())
        generator = torch.equal(before, torch.random.get_rng_state())
        features = all(torch.equal(old[key], new[key]) for old, new in zip(copies, (train, held_out), strict=True) for key in old)
        cache[name, "again"] = Again(detector, generator, features)
    return cache[name, "again"]


def assert_same(one, other):
    """Bit for bit without a network in the way; convolutions may round differently for another batch size."""
    for left, right in zip(one, other, strict=True):
        if left is not None or right is not None:
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)


def among_training_images(detector: Detector, images: torch.Tensor) -> tuple[torch.Tensor, Prediction]:
    """The scores of the training images, and what is said of two others; a transductive detector sees all of them at once."""
    if not detector.transductive:
        return detector.score(features_of(TRAIN)).image_score, detector.score(features_of(images))
    scores, maps = detector.score(features_of(torch.cat([TRAIN, images[:2]])))
    return scores[: len(TRAIN)], Prediction(scores[len(TRAIN) :], maps if maps is None else maps[len(TRAIN) :])


def test_a_score_before_fit_is_refused(name, fitted):
    detector = make(name)
    if detector.transductive:  # it has the whole set before it, and nothing to learn
        assert torch.equal(detector.score(features_of(HELD_OUT)).image_score, fitted.score(features_of(HELD_OUT)).image_score)
        return
    if not detector.state_dict():
        pytest.skip("learns nothing, so there is nothing to fit first")
    with pytest.raises(NotFitted, match=type(detector).__name__):
        detector.score(features_of(HELD_OUT))


def test_shapes_and_types(name):
    """On images that are not square, so that height and width cannot be mistaken for each other."""
    narrow = make(name).fit(ArrayBatches(features_of(TRAIN[:, :, :, :28])), None, session())
    image_score, anomaly_map = narrow.score(features_of(HELD_OUT[:, :, :, :28]))
    assert image_score.shape == (8,) and image_score.dtype == torch.float32 and not image_score.requires_grad
    assert anomaly_map is None or (anomaly_map.shape == (8, 32, 28) and anomaly_map.dtype == torch.float32)


def test_an_image_scores_the_same_alone_or_in_any_company(name, fitted):
    features = features_of(HELD_OUT)
    together = fitted.score(features)
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    shuffled = fitted.score({key: values[order] for key, values in features.items()})
    assert_same([value if value is None else value[order] for value in together], shuffled)
    if fitted.transductive:
        with pytest.raises(Refusal, match="judges one image"):
            fitted.score({key: values[:1] for key, values in features.items()})
        return
    for place in range(8):
        alone = fitted.score({key: values[place : place + 1] for key, values in features.items()})
        assert_same([value if value is None else value[place : place + 1] for value in together], alone)
    company = features_of(torch.cat([HELD_OUT[:1], plant_defect(HELD_OUT[:3])]))
    assert_same([value if value is None else value[:1] for value in together], [v if v is None else v[:1] for v in fitted.score(company)])


def test_scoring_changes_neither_the_input_nor_the_detector(name, fitted):
    features = features_of(HELD_OUT)
    before = {key: values.clone() for key, values in features.items()}
    state = {key: values.clone() for key, values in fitted.state_dict().items()}
    first = fitted.score(features)
    assert all(torch.equal(before[key], features[key]) for key in before)
    assert all(torch.equal(state[key], values) for key, values in fitted.state_dict().items())
    assert torch.equal(first.image_score, fitted.score(features).image_score)


def test_fitting_leaves_the_features_as_they_were(name, again):
    assert again.features_untouched


def test_the_state_is_the_whole_model(name, fitted):
    fresh = make(name)
    fresh.load_state_dict({key: values.clone() for key, values in fitted.state_dict().items()})
    for one, other in zip(fitted.score(features_of(HELD_OUT)), fresh.score(features_of(HELD_OUT)), strict=True):
        assert one is other is None or torch.equal(one, other)


def test_loading_into_a_fitted_detector_replaces_what_it_knew(name, fitted):
    """Anything built from the buffers (an index, unpacked factors) must be built again."""
    other = make(name).fit(ArrayBatches(features_of(255 - TRAIN)), None, session(seed=5))
    other.score(features_of(HELD_OUT))
    other.load_state_dict(fitted.state_dict())
    assert torch.equal(other.score(features_of(HELD_OUT)).image_score, fitted.score(features_of(HELD_OUT)).image_score)


def test_the_same_seed_gives_the_same_state(name, fitted, again):
    state = again.detector.state_dict()
    assert all(torch.equal(values, state[key]) for key, values in fitted.state_dict().items())


def test_fitting_leaves_the_global_generator_alone(name, again):
    assert again.generator_untouched


def test_a_planted_defect_outscores_every_training_image(name, fitted):
    if hasattr(fitted, "blind"):
        pytest.skip(fitted.blind)
    normal, planted = among_training_images(fitted, plant_defect(HELD_OUT))
    assert planted.image_score.min() > normal.max()


def test_a_map_is_higher_at_the_planted_defect(name, fitted):
    if hasattr(fitted, "blind"):
        pytest.skip(fitted.blind)
    _, (_, anomaly_map) = among_training_images(fitted, plant_defect(HELD_OUT))
    if anomaly_map is None:
        pytest.skip("gives no map")
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[18:28, 3:13] = True
    assert (anomaly_map[:, inside].mean(dim=1) > 1.5 * anomaly_map[:, ~inside].mean(dim=1)).all()


def test_more_images_held_out_do_not_change_what_a_one_pass_model_learns(name, fitted):
    if not fitted.one_pass:
        pytest.skip("uses held-out images to decide when to stop")
    alone = make(name).fit(ArrayBatches(features_of(TRAIN)), None, session())
    assert all(torch.equal(values, alone.state_dict()[key]) for key, values in fitted.state_dict().items())


def test_the_batch_size_of_the_store_does_not_change_what_is_learnt(name, fitted):
    """Sums are taken in another order, so up to rounding. A student draws its own batches, whatever the store hands out."""
    other = make(name).fit(
        ArrayBatches(features_of(TRAIN), batch_size=5), ArrayBatches(features_of(HELD_OUT), batch_size=3), session()
    )
    expected, got = fitted.score(features_of(HELD_OUT)).image_score, other.score(features_of(HELD_OUT)).image_score
    torch.testing.assert_close(expected, got, rtol=1e-4, atol=1e-6)


def test_every_detector_is_found_by_its_name(name):
    assert issubclass(detectors.load(name), Detector)


class Tiles:
    """A source of batches that holds the tiles of images in memory."""

    has_masks = False

    def __init__(self, images, grid):
        self.grid, self.rows = grid, [{"sample_id": f"image{place}", "category": "made-up", "label": 0} for place in range(len(images))]
        names = [name for row in self.rows for name in grid.names(row["sample_id"])]
        self.tiles = dict(zip(names, features_by_image(grid.cut(images)), strict=True))

    def read(self, sample_ids, names):
        return {name: torch.stack([self.tiles[sample_id][name] for sample_id in sample_ids]) for name in names if name != "mask"}


def features_by_image(pixels):
    features = features_of(pixels)
    return [{name: value[place] for name, value in features.items()} for place in range(len(pixels))]


def test_a_large_image_scores_as_its_worst_tile_and_has_one_map(name, fitted):
    """What was fitted on images of 32 pixels sees larger ones in tiles of that size, stored or live."""
    grid = Grid.over((44, 80), 32, 8)
    images = torch.nn.functional.interpolate(HELD_OUT[:2].float(), (44, 80), mode="bicubic").clamp(0, 255).to(torch.uint8)
    source = Tiles(images, grid)
    layers = [layer for layer in features_of(HELD_OUT[:1]) if layer != "pixels"]
    batches = TiledBatches(source.rows, grid, source, source, layers, 5, {})
    assert batches.samples == 2 * grid.count == 2 * 2 * 3
    if fitted.transductive:
        with pytest.raises(Refusal, match="cut into tiles"):
            next(predictions(fitted, batches))
        return
    for place, (batch, whole) in enumerate(predictions(fitted, batches)):
        tiles = fitted.score(features_of(grid.cut(images[place : place + 1])))
        assert batch.sample_id == [f"image{place}"]
        torch.testing.assert_close(whole.image_score, tiles.image_score.max()[None], rtol=1e-5, atol=1e-7)
        assert (whole.anomaly_map is None) == (tiles.anomaly_map is None)
        if whole.anomaly_map is not None:
            assert whole.anomaly_map.shape == (1, 44, 80)
            assert tiles.anomaly_map.min() - 1e-6 <= whole.anomaly_map.min() and whole.anomaly_map.max() <= tiles.anomaly_map.max() + 1e-6
