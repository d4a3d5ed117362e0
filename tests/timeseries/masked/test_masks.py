import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.timeseries.masked import masks

ratios = st.floats(0.02, 0.98)


@given(st.integers(2, 60), ratios, st.integers(0, 9))
def test_exactly_round_of_ratio_times_patches_are_hidden(patches, ratio, seed):
    expected = min(max(round(ratio * patches), 1), patches - 1)
    generator = torch.Generator().manual_seed(seed)
    assert (masks.drawn(4, patches, ratio, generator).sum(1) == expected).all()
    assert (masks.drawn_spans(4, patches, ratio, generator).sum(1) == expected).all()
    assert (masks.drawn_by_variable(4, patches, 3, ratio, generator).sum(1) == expected).all()


def test_the_same_generator_draws_the_same_mask_and_rows_differ():
    first, again = (masks.drawn(8, 25, 0.4, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and len(first.unique(dim=0)) > 1


@given(st.integers(2, 40), ratios, st.integers(0, 9))
def test_a_drawn_span_has_no_gap(patches, ratio, seed):
    span = masks.drawn_spans(3, patches, ratio, torch.Generator().manual_seed(seed))
    starts = span & ~torch.cat([torch.zeros(3, 1, dtype=torch.bool), span[:, :-1]], dim=1)
    assert (starts.sum(1) == 1).all()


@pytest.mark.parametrize("wanted", [3, 10, 20])
def test_patches_that_come_first_are_hidden_before_any_other_and_the_count_stays(wanted):
    first = torch.zeros(5, 25, dtype=torch.bool)
    first[:, :wanted] = True
    mask = masks.drawn(5, 25, 0.4, torch.Generator().manual_seed(0), first)
    assert (mask.sum(1) == 10).all() and ((mask & first).sum(1) == min(wanted, 10)).all()
    by_variable = masks.drawn_by_variable(5, 25, 3, 0.4, torch.Generator().manual_seed(0), first)
    assert (by_variable.sum(1) == 10).all() and ((by_variable & first[..., None]).sum(1) == min(wanted, 10)).all()


@given(st.integers(2, 40), st.data())
def test_each_patch_is_hidden_in_one_pass(patches, data):
    passes = data.draw(st.integers(2, patches))
    assert (masks.interleaved(patches, passes).sum(0) == 1).all()


def test_five_passes_hide_every_fifth_patch_and_twenty_five_one_each():
    assert masks.interleaved(25, 5)[2].nonzero()[:, 0].tolist() == [2, 7, 12, 17, 22]
    assert torch.equal(masks.interleaved(25, 25), torch.eye(25, dtype=torch.bool))


def test_the_last_patches_are_the_last():
    assert masks.last(5, 2).tolist() == [[False, False, False, True, True]]
