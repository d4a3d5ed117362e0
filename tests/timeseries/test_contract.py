"""What every detector of signals promises, whoever wrote it. A new detector is tested here without being named."""

import pytest
import torch

from stages.datasets.recordings import Segment
from stages.timeseries import build, known
from stages.timeseries.detector import SeriesDetector
from stages.timeseries.stream import Stream
from stages.training import Run
from stages.types import NotFitted, Refusal
from tests.timeseries.series import segment, values

SMALL = {  # options that make a fit take a fraction of a second
    "classical.isolation_forest": {"trees": 20, "samples": 64},
    "classical.kmeans_ad": {"window": 8, "clusters": 5},
    "classical.matrix_profile": {"window": 24},  # so that most windows of the planted shift hold one of its edges: levels are not compared
    "classical.ridge": {"lags": 4},
    "classical.sub_pca": {"window": 6},
    "masked_autoencoder": {
        "seq_length": 20,
        "num_patches": 10,
        "d_model": 16,
        "dim_feedforward": 32,
        "num_encoder_layers": 1,
        "num_teacher_layers": 1,
        "steps": 80,
        "window_stride": 2,
        "learning_rate": 5e-3,
        "lengths": [1, 5, 20],
    },
}
TRAIN, VAL, TEST = (values(steps, seed=seed) for seed, steps in enumerate((400, 150, 300)))
EXACT = {"rtol": 1e-6, "atol": 1e-6}

pytestmark = pytest.mark.parametrize("name", known())


def make(name: str) -> SeriesDetector:
    return build(name, SMALL.get(name, {}), at=("series", "models", name))


def fit(name: str, seed: int = 0, train: list[Segment] | None = None, val: list[Segment] | None = None) -> SeriesDetector:
    train = [segment(TRAIN[:250]), segment(TRAIN[250:], start=250)] if train is None else train
    return make(name).fit(train, [segment(VAL)] if val is None else val, Run(seed=seed, quiet=True))


@pytest.fixture(scope="module")
def cache():
    return {}


@pytest.fixture
def fitted(name, cache):
    """One fit for all tests that only score."""
    if name not in cache:
        cache[name] = fit(name)
    return cache[name]


def reach(detector: SeriesDetector) -> int:
    """How many steps one score may look at."""
    return detector.past + 1 + detector.future


def test_a_score_for_each_step_however_short_the_series(name, fitted):
    window = fitted.past + 1
    for steps in sorted({1, 2, window - 1, window, window + 1, reach(fitted), 300} - {0}):
        score = fitted.score(torch.from_numpy(TEST[:steps]))
        assert score.shape == (steps,) and score.dtype == torch.float32 and score.isfinite().all() and not score.requires_grad, steps


def test_parts_of_a_score_are_scores_of_the_same_steps(name, fitted):
    given = torch.from_numpy(TEST)
    for part, score in fitted.components(given).items():
        assert score.shape == (300,) and score.isfinite().all(), part
    assert "combined" not in fitted.components(given) or torch.equal(fitted.components(given)["combined"], fitted.score(given))


def test_a_reading_is_what_the_three_questions_give(name, fitted):
    given = torch.from_numpy(TEST)
    reading, blamed, parts = fitted.read(given), fitted.attribution(given), fitted.components(given)
    assert torch.equal(reading.score, fitted.score(given)) and reading.components.keys() == parts.keys()
    assert reading.attribution is blamed is None or torch.equal(reading.attribution, blamed)
    assert all(torch.equal(reading.components[part], score) for part, score in parts.items())


def test_the_same_seed_gives_the_same_state_and_leaves_the_global_generator_alone(name, fitted):
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again = fit(name)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in fitted.state_dict().items())


def test_the_state_is_the_whole_model(name, fitted):
    other = fit(name, seed=5, train=[segment(2 * TRAIN[:200])])  # whatever it knew must be gone
    other.load_state_dict({key: tensor.clone() for key, tensor in fitted.state_dict().items()})
    fresh = make(name)
    fresh.load_state_dict(fitted.state_dict())
    expected = fitted.score(torch.from_numpy(TEST))
    assert torch.equal(expected, fresh.eval().score(torch.from_numpy(TEST))) and torch.equal(expected, other.score(torch.from_numpy(TEST)))


def test_scoring_changes_neither_the_input_nor_the_detector(name, fitted):
    given, state = torch.from_numpy(TEST.copy()), {key: tensor.clone() for key, tensor in fitted.state_dict().items()}
    first = fitted.score(given)
    fitted.score(given[:50])
    assert torch.equal(given, torch.from_numpy(TEST)) and torch.equal(first, fitted.score(given))
    assert all(torch.equal(state[key], tensor) for key, tensor in fitted.state_dict().items())


def test_an_unfitted_detector_says_so(name):
    with pytest.raises(NotFitted, match=type(make(name)).__name__):
        make(name).score(torch.from_numpy(TEST))


def test_another_number_of_variables_is_an_error_that_says_which(name, fitted):
    with pytest.raises(ValueError, match=r"expected \(T, 3\) values.*got \(300, 2\)"):
        fitted.score(torch.from_numpy(TEST[:, :2]))


def test_nothing_to_learn_from_is_a_refusal(name):
    with pytest.raises(Refusal, match="no step"):
        fit(name, train=[segment(TRAIN[:0])])


def test_missing_values_and_constant_channels_give_finite_scores(name):
    train, test = TRAIN.copy(), TEST.copy()
    train[:, 1], test[:200, 1], test[200:, 1] = 7.0, 7.0, 8.0
    train[40:60, 0] = test[100:130, 0] = test[:5, 2] = float("nan")
    test[250] = float("nan")
    assert fit(name, train=[segment(train)]).score(torch.from_numpy(test)).isfinite().all()


def test_a_planted_level_shift_scores_higher_than_normal_steps(name, fitted):
    if hasattr(fitted, "blind"):
        pytest.skip(fitted.blind)
    planted = TEST.copy()
    planted[150:180, 1] += 8 * TEST[:, 1].std()
    score = fitted.score(torch.from_numpy(planted))
    far = torch.ones(300, dtype=torch.bool)
    far[150 - fitted.future - fitted.stride : 180 + fitted.past + fitted.stride] = False
    assert far.sum() >= 100 and score[150:180].mean() > score[far].mean()


def test_the_units_of_a_variable_do_not_matter(name, fitted):
    if hasattr(fitted, "blind"):
        pytest.skip("is scattered from the bits of the values")
    train, val, test = TRAIN.copy(), VAL.copy(), TEST.copy()
    for part in (train, val, test):
        part[:, 1] = 3 * part[:, 1] + 5
    other = fit(name, train=[segment(train[:250]), segment(train[250:])], val=[segment(val)])
    torch.testing.assert_close(other.score(torch.from_numpy(test)), fitted.score(torch.from_numpy(TEST)), rtol=2e-3, atol=2e-3)


def test_a_step_depends_on_nothing_outside_its_past_and_its_future(name, fitted):
    step = 151
    first, last = step - fitted.past, step + fitted.future
    assert first > 0 and last < 299, "SMALL must leave room on both sides"
    changed = TEST.copy()
    changed[:first] += 50
    changed[last + 1 :] -= 50
    score, other = fitted.score(torch.from_numpy(TEST)), fitted.score(torch.from_numpy(changed))
    torch.testing.assert_close(other[step], score[step], **EXACT)


def test_a_part_that_holds_the_past_and_the_future_of_a_step_scores_it_as_the_whole_does(name, fitted):
    """What a stream lives on. The left end of a part stands at a multiple of the stride, the right end anywhere."""
    score, step = fitted.score(torch.from_numpy(TEST)), 151
    earliest = (step - fitted.past) // fitted.stride * fitted.stride
    for start in {earliest, max(0, earliest - 3 * fitted.stride)}:
        for stop in range(step + fitted.future + 1, min(300, step + fitted.future + 2 * fitted.stride + 3)):
            torch.testing.assert_close(fitted.score(torch.from_numpy(TEST[start:stop]))[step - start], score[step], **EXACT)


def test_labels_never_reach_an_unsupervised_fit(name, fitted):
    label = torch.randint(2, (400,), generator=torch.Generator().manual_seed(1)).to(torch.int8).numpy()
    other = fit(name, train=[segment(TRAIN[:250], label[:250]), segment(TRAIN[250:], label[250:])], val=[segment(VAL, label[:150])])
    assert torch.equal(other.score(torch.from_numpy(TEST)), fitted.score(torch.from_numpy(TEST)))


def test_what_the_variables_add_is_not_negative_and_points_at_the_one_that_moved(name, fitted):
    planted = TEST.copy()
    planted[150:180, 1] += 8 * TEST[:, 1].std()
    added = fitted.attribution(torch.from_numpy(planted))
    if added is None:
        pytest.skip("cannot say what a variable adds")
    assert added.shape == (300, 3) and added.isfinite().all() and (added >= 0).all()
    assert added[150:152].mean(dim=0).argmax() == 1  # later, a forecast of the others is led astray as well


def test_a_stream_scores_as_the_stored_series_does(name, fitted):
    rows = torch.from_numpy(TEST[:200].copy())
    rows[40:50, 0] = torch.nan
    stream = Stream(fitted, every=20)
    found = [one for row in rows for one in stream.push(row)] + stream.flush()
    assert [one.step for one in found] == list(range(200))
    torch.testing.assert_close(torch.tensor([one.score for one in found]), fitted.score(rows), **EXACT)
