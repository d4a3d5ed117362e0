"""Windows and what they say of steps, against plain loops."""

import pytest
import torch

from stages.seed import torch_generator
from stages.timeseries.classical import windows as module
from stages.timeseries.classical.windows import flat_windows, long_enough, over_steps, sample, sampled_windows, score_steps, windows
from stages.timeseries.detector import Stretch
from stages.types import Refusal

VALUES = torch.randn(23, 2, generator=torch.Generator().manual_seed(0))


def test_windows_are_views_of_consecutive_steps():
    found = windows(VALUES, 5)
    assert found.shape == (19, 2, 5) and found.untyped_storage().data_ptr() == VALUES.untyped_storage().data_ptr()
    assert all(torch.equal(found[start], VALUES[start : start + 5].T) for start in range(19))


def test_a_series_shorter_than_a_window_is_one_with_its_last_step_repeated():
    assert torch.equal(windows(VALUES[:3], 5), VALUES[[0, 1, 2, 2, 2]].T[None])


def test_chunks_put_together_are_all_windows(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    chunks = list(flat_windows(VALUES, 5))
    assert max(map(len, chunks)) == 4 and torch.equal(torch.cat(chunks), windows(VALUES, 5).flatten(1))


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 23])
def test_the_score_of_a_step_is_the_mean_over_the_windows_that_cover_it(steps):
    values = VALUES[:steps]
    got = score_steps(values, 5, lambda rows: rows.square().sum(dim=1))
    rows = windows(values, 5).flatten(1).square().sum(dim=1)
    expected = [rows[[start for start in range(len(rows)) if start <= step < start + 5]].mean() for step in range(steps)]
    torch.testing.assert_close(got, torch.stack(expected))


def test_a_huge_score_leaves_no_rounding_in_steps_that_its_window_does_not_cover():
    scored = torch.tensor([1e12, 1e12, 1e12] + [0.1] * 20)
    torch.testing.assert_close(over_steps(scored, 4)[6:], torch.full((20,), 0.1))


def test_a_sample_that_is_large_enough_holds_every_window_of_every_series_and_none_across_two():
    series = [VALUES[:9], VALUES[9:]]
    expected = torch.cat([windows(values, 4).flatten(1) for values in series])
    assert torch.equal(sampled_windows(series, 4, 100, torch_generator(0)), expected)
    drawn = sampled_windows(series, 4, 7, torch_generator(0))
    assert len(drawn) == 7 and all((expected == row).all(dim=1).any() for row in drawn)


def test_a_sample_has_no_row_twice_and_keeps_the_order():
    drawn = sample(50, 20, torch_generator(1))
    assert (
        len(drawn.unique()) == 20 and torch.equal(drawn, drawn.sort().values) and not torch.equal(drawn, sample(50, 20, torch_generator(2)))
    )


def test_short_stretches_are_left_out_and_none_long_enough_is_a_refusal():
    stretches = [Stretch(VALUES[:3], None), Stretch(VALUES, None)]
    assert [len(values) for values in long_enough(stretches, 5)] == [23]
    with pytest.raises(Refusal, match="one window of 5 steps; the longest has 3"):
        long_enough(stretches[:1], 5)
