"""Modalities to one sequence of tokens: what exists stands where it should, what does not exist has no say."""

import torch

from stages.datasets.records import Ragged
from stages.fusion.perceiver.tokens import Adapter, Tokeniser, dropped, subsampled, time_code, without
from tests.fusion.perceiver.made_records import WIDTHS, drawn


def ragged(*lengths: int) -> Ragged:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Ragged(torch.arange(float(offsets[-1]))[:, None], torch.zeros(int(offsets[-1])), offsets)


def test_long_sequences_are_thinned_evenly_from_the_first_token():
    thinned = subsampled(ragged(8, 0, 3), 4)
    assert thinned.lengths.tolist() == [4, 0, 3] and thinned.values[:, 0].tolist() == [0, 2, 4, 6, 8, 9, 10]


def test_a_modality_is_taken_away_from_the_records_that_are_named():
    left = without(ragged(2, 1, 3), torch.tensor([False, True, False]))
    assert left.values[:, 0].tolist() == [0, 1, 3, 4, 5] and left.offsets.tolist() == [0, 2, 2, 5]


def test_some_modality_always_stays_and_only_present_ones_go():
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(3000, 5, generator=generator) < 0.4
    present[present.sum(1) == 0, 2] = True
    gone = dropped(present, 0.9, generator)
    assert (present & ~gone).any(1).all() and not (gone & ~present).any()


def test_each_modality_goes_as_often_as_is_said():
    gone = dropped(torch.ones(20000, 5, dtype=torch.bool), 0.3, torch.Generator().manual_seed(0))
    assert ((gone.float().mean(0) - 0.3).abs() < 0.015).all()


def test_every_record_has_its_tokens_and_one_for_each_absent_modality():
    records = drawn(9, missing=0.5)
    found = Tokeniser(WIDTHS, 16, 256)(records.tokens)
    lengths = torch.stack([one.lengths for one in records.tokens.values()], 1)
    assert torch.equal(found.mask.sum(1), lengths.clamp(min=1).sum(1)) and torch.equal(found.present, lengths > 0)
    assert len(found.slot.unique()) == len(found.rows) == int(found.mask.sum())  # no two tokens in one place
    assert torch.equal(found.mask.flatten()[found.slot], torch.ones(len(found.rows), dtype=torch.bool))
    assert torch.equal(found.slot // found.mask.shape[1], found.record)


def test_rows_carry_the_content_of_their_own_token():
    """One record and one modality at a time: the same rows as in the batch."""
    torch.manual_seed(0)
    tokeniser, records = Tokeniser(WIDTHS, 16, 4), drawn(7, missing=0.4)
    together = tokeniser(records.tokens)
    padded = together.padded(together.rows)
    for number in range(7):
        alone = tokeniser(records.take([number]).tokens)
        length = alone.mask.shape[1]
        assert torch.allclose(padded[number, :length], alone.padded(alone.rows)[0], atol=1e-6)
        assert (padded[number, length:] == 0).all()


def test_dimensions_are_standardised_by_what_was_learnt_from():
    tokeniser, records = Tokeniser(WIDTHS, 16, 256), drawn(50)
    tokeniser.standardise([records.take(range(20)), records.take(range(20, 50))])
    adapter, values = tokeniser.adapters["of_text"], records.tokens["text"].values
    assert torch.allclose(adapter.centre, values.mean(0), atol=1e-5) and torch.allclose(
        adapter.scale, values.std(0, correction=0), atol=1e-5
    )


def test_a_dimension_that_never_changes_does_not_blow_up():
    records = drawn(10)
    records.tokens["text"].values[:, 0] = 3.3
    tokeniser = Tokeniser(WIDTHS, 16, 256)
    tokeniser.standardise([records])
    assert tokeniser.adapters["of_text"].scale[0] == 1


def test_the_size_of_a_narrow_modality_is_not_lost():
    """A LayerNorm over one number gives the same for every number."""
    torch.manual_seed(0)
    adapter = Adapter(1, 8)
    one, two = adapter(torch.tensor([[1.0], [2.0]]))
    assert (one - two).abs().max() > 0.1


def test_the_size_of_a_token_passes_the_layer_norm():
    torch.manual_seed(0)
    adapter, token = Adapter(8, 8), torch.randn(1, 8)
    assert (adapter(token) - adapter(4 * token)).abs().max() > 0.1


def test_enormous_values_stay_finite():
    assert Adapter(8, 8)(torch.full((1, 8), 1e30)).isfinite().all()


def test_the_time_code_tells_times_apart():
    codes = time_code(torch.linspace(0, 1, 200))
    apart = torch.cdist(codes, codes) + 9 * torch.eye(200)
    assert codes.shape == (200, 16) and apart.min() > 0.1


def test_a_modality_may_have_any_name():
    names = {"module.layer": 4, "keys": 4, "training": 4, "forward": 4}
    records = {name: ragged(2, 1)._replace(values=torch.randn(3, 4)) for name in names}
    assert Tokeniser(names, 8, 256)(records).rows.shape == (12, 8)
