"""A stream of rows, against the score of the stored series. Every detector is held to it in test_contract.py."""

import pytest
import torch

from stages import io
from stages.timeseries import build
from stages.timeseries.detector import SeriesDetector
from stages.timeseries.stream import Stream
from stages.training import Run
from stages.types import NotFitted
from tests.timeseries.series import segment, values

TEST = torch.from_numpy(values(120, seed=1))


class Strided(SeriesDetector):
    """Windows of 6 steps that start at every third step; a step has the sum of the means of those that cover it."""

    past, future, stride = 5, 5, 3

    def learn(self, train, val, run):
        pass

    def rate(self, values):
        score = torch.zeros(len(values))
        for start in range(0, len(values) - 5, 3):
            score[start : start + 6] += values[start : start + 6].mean()
        return score


def fitted(name="classical.kmeans_ad", **options):
    detector = Strided() if name == "strided" else build(name, options, at=())
    return detector.fit([segment(values(200))], [], Run(seed=0, quiet=True))


def pushed(stream, rows):
    return [one for row in rows for one in stream.push(row)]


def assert_equal_to_batch(found, detector, rows):
    assert [one.step for one in found] == list(range(len(rows)))
    torch.testing.assert_close(torch.tensor([one.score for one in found]), detector.score(rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("every", [1, 4, 1000])
@pytest.mark.parametrize("name", ["classical.kmeans_ad", "classical.ridge", "strided"])
def test_a_stream_scores_as_the_stored_series_does(name, every):
    detector = fitted(name)
    stream = Stream(detector, every=every)
    assert_equal_to_batch(pushed(stream, TEST) + stream.flush(), detector, TEST)


def test_missing_values_are_filled_from_rows_that_are_long_forgotten():
    rows = TEST.clone()
    rows[30:90, 1] = torch.nan
    rows[:10, 2] = torch.nan
    rows[50, 0] = torch.inf
    detector = fitted("classical.pca")
    stream = Stream(detector)
    assert_equal_to_batch(pushed(stream, rows) + stream.flush(), detector, rows)


def test_a_score_comes_as_soon_as_its_future_is_there():
    stream = Stream(fitted("strided"))
    late = [[one.step for one in stream.push(row)] for row in TEST[:9]]
    assert late == [[], [], [], [], [], [0], [1], [2], [3]]


@pytest.mark.parametrize("name", ["classical.kmeans_ad", "strided"])
def test_the_rows_kept_do_not_grow_with_the_stream(name):
    detector, most = fitted(name), 0
    stream = Stream(detector, every=4)
    for row in TEST:
        stream.push(row)
        most = max(most, len(stream.rows))
        assert stream.rows.untyped_storage().nbytes() <= 4 * 3 * len(stream.rows) + 4 * 3 * 4  # no view of a longer history
    assert most <= detector.past + detector.future + detector.stride + 4 and stream.seen == 120


@pytest.mark.parametrize("cut", [0, 1, 25, 77])
def test_a_restart_goes_on_where_the_stream_was_left(cut, tmp_path):
    detector = fitted("strided")
    first = Stream(detector)
    found = pushed(first, TEST[:cut])
    io.write_model(tmp_path / "state.safetensors", first.state(), {})
    second = Stream(detector)
    second.restore(io.read_model(tmp_path / "state.safetensors"))
    assert_equal_to_batch(found + pushed(second, TEST[cut:]) + second.flush(), detector, TEST)


def test_a_state_is_not_changed_by_the_stream_that_gave_it():
    stream = Stream(fitted())
    pushed(stream, TEST[:60])
    state = stream.state()
    kept = {key: tensor.clone() for key, tensor in state.items()}
    pushed(stream, TEST[60:])
    assert all(torch.equal(kept[key], tensor) for key, tensor in state.items())


def test_the_state_of_another_detector_is_refused():
    stream = Stream(fitted(window=8))
    with pytest.raises(ValueError, match="another detector"):
        stream.restore(Stream(fitted(window=9)).state())


def test_rows_that_follow_a_flush_are_scored_with_their_whole_past_and_no_step_comes_twice():
    detector = fitted("classical.sub_pca", window=6)
    stream = Stream(detector)
    found = pushed(stream, TEST[:70]) + stream.flush() + pushed(stream, TEST[70:]) + stream.flush()
    assert [one.step for one in found] == list(range(120)) and stream.flush() == []
    expected = torch.cat([detector.score(TEST[:70]), detector.score(TEST)[70:]])
    torch.testing.assert_close(torch.tensor([one.score for one in found]), expected, rtol=1e-6, atol=1e-6)


def test_what_the_variables_add_is_that_of_the_stored_series():
    detector = fitted("classical.ridge")
    added = torch.stack([one.added for one in pushed(Stream(detector, explain=True), TEST)])
    torch.testing.assert_close(added, detector.attribution(TEST), rtol=1e-5, atol=1e-6)
    assert all(one.added is None for one in pushed(Stream(detector), TEST))


def test_a_row_of_another_length_is_an_error_that_says_both():
    with pytest.raises(ValueError, match=r"a row of 3 values.*got \(2,\)"):
        Stream(fitted()).push([1.0, 2.0])


def test_a_detector_that_has_learnt_nothing_cannot_stream():
    with pytest.raises(NotFitted, match="KMeansAD"):
        Stream(build("classical.kmeans_ad", {}, at=()))
