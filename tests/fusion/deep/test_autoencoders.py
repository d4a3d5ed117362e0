"""Sequences without padding, and the two autoencoders over them, against torch's own layers and by hand."""

import pytest
import torch
from torch import nn

from stages.datasets.records import Ragged
from stages.fusion.deep.maths.autoencoders import TimeAutoencoder, TimeConvolution, TokenAutoencoder, one_cycle
from stages.fusion.deep.maths.ragged import TokenSource, beside, record_means, taken, worst_stretch
from tests.fusion.synthetic import records

LENGTHS = [3, 0, 1, 5]
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)


def ragged(width: int = 4) -> Ragged:
    return Ragged(torch.randn(9, width), torch.linspace(0, 1, 9), OFFSETS)


def test_neighbours_are_of_the_same_record():
    values = torch.arange(1.0, 10.0)[:, None]
    assert beside(values, OFFSETS).tolist() == [
        [0, 1, 2], [1, 2, 3], [2, 3, 0], [0, 4, 0], [0, 5, 6], [5, 6, 7], [6, 7, 8], [7, 8, 9], [8, 9, 0]
    ]  # fmt: skip


def test_a_convolution_along_time_is_that_of_torch_with_zeros_at_both_ends():
    layer, tokens = TimeConvolution(4, 6).eval(), ragged()
    layer.norm.running_mean.normal_()
    reference = nn.Conv1d(4, 6, 3, padding=1)
    reference.weight.data = layer.mix.weight.data.view(6, 3, 4).transpose(1, 2)
    reference.bias.data = layer.mix.bias.data
    found = layer(tokens.values, tokens.offsets)
    for start, length in zip(OFFSETS.tolist(), LENGTHS):
        own = layer.norm(tokens.values[start : start + length])
        if length:
            torch.testing.assert_close(found[start : start + length], reference(own.T[None])[0].T)


def test_one_token_alone_can_be_learnt_from():
    layer = TimeConvolution(4, 6).train()
    assert layer(torch.randn(1, 4), torch.tensor([0, 1])).isfinite().all()
    before = layer.norm.running_mean.clone()
    layer(torch.randn(5, 4), torch.tensor([0, 5]))
    assert not torch.equal(layer.norm.running_mean, before)


def test_errors_do_not_depend_on_the_other_records():
    for network in (TimeAutoencoder(4, 8, 2).eval(), TokenAutoencoder(4, (8, 2), 0.5).eval()):
        tokens = ragged()
        together = network(tokens)
        for number, length in enumerate(LENGTHS):
            own = tokens.take(torch.tensor([number]))
            torch.testing.assert_close(network(own), together[OFFSETS[number] : OFFSETS[number] + length], atol=1e-5, rtol=1e-5)


def test_the_code_is_narrow_and_the_way_back_is_the_way_there_turned_round():
    sound, film = TimeAutoencoder(40, 16, 3), TokenAutoencoder(40, (32, 16, 8, 4, 4), 0.5)
    assert [layer.mix.out_features for layer in sound.layers] == [16, 16, 16, 3, 16, 16, 16, 40]
    widths = [layer.out_features for layer in film.layers if isinstance(layer, nn.Linear)]
    assert widths == [32, 16, 8, 4, 4, 4, 8, 16, 32, 40]


def test_means_and_the_worst_stretch_by_hand():
    values = torch.tensor([[1.0], [2.0], [6.0], [4.0], [1.0], [1.0], [7.0], [1.0], [1.0]])
    assert record_means(values, torch.tensor(LENGTHS))[:, 0].tolist() == pytest.approx([3, 0, 4, 2.2])
    time = torch.tensor([0.0, 0.1, 0.2, 0.0, 0.0, 0.1, 0.2, 0.3, 0.4])
    found = worst_stretch(values[:, 0], time, LENGTHS, window=0.15)  # a token and the one before it
    assert found.tolist() == pytest.approx([4, 0, 4, 4])
    assert worst_stretch(values[:, 0], time, LENGTHS, window=0.01).tolist() == pytest.approx([6, 0, 4, 7])
    assert worst_stretch(values[:, 0], time * 0, LENGTHS, window=0.01).tolist() == pytest.approx([3, 0, 4, 2.2])  # without order the mean


def test_the_source_holds_the_records_that_have_the_modality():
    given = records(0, 50, missing=0.4)
    source = TokenSource(given, "text")
    there = (given.tokens["text"].lengths > 0).nonzero()[:, 0]
    assert source.samples == len(there) < 50
    one = taken(source.take([3, 1]).features)
    expected = given.tokens["text"].take(there[[3, 1]])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, expected))


def test_the_rate_rises_to_its_greatest_and_falls_to_nothing_as_that_of_torch_does():
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1.0, total_steps=40, cycle_momentum=False)
    for step in range(40):
        assert one_cycle(step, 40) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimiser.step()
        if step < 39:
            schedule.step()
