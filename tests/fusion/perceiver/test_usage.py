"""How experts are used, in numbers that can be checked by hand."""

import math

import pytest
import torch

from stages.fusion.perceiver.usage import entropy, information, summary


def test_entropy_by_hand():
    assert entropy(torch.tensor([0.5, 0.5, 0.0]).double()) == pytest.approx(math.log(2))
    assert entropy(torch.tensor([1.0, 0.0]).double()) == 0


def test_information_is_all_where_the_trait_decides_and_none_where_it_does_not():
    trait = torch.tensor([0, 0, 1, 1])
    assert information(trait[:, None].expand(4, 3), trait) == pytest.approx(math.log(2))
    assert information(torch.tensor([[0, 1]] * 4), trait) == pytest.approx(0)
    assert information(torch.tensor([[0, 1]] * 4), torch.zeros(4, dtype=torch.int64)) == pytest.approx(0)


def test_the_summary_counts_first_choices_and_reads_known_labels_alone():
    gates = torch.tensor([[[0.7, 0.3], [0.6, 0.4]], [[0.2, 0.8], [0.1, 0.9]], [[0.9, 0.1], [0.9, 0.1]], [[0.9, 0.1], [0.2, 0.8]]])[
        None
    ]  # (1, 4, 2, 2)
    present = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    layer = summary(gates, present, ["image", "text"], torch.tensor([0, 1, 0, -1]))["layers"][0]
    assert layer["first_choice"] == pytest.approx([5 / 8, 3 / 8]) and layer["mean_gate"][0] == pytest.approx(4.5 / 8)
    assert layer["information"]["class"] == pytest.approx(entropy(torch.tensor([2 / 3, 1 / 3]).double()))
    assert layer["information"]["present"]["image"] == 0 < layer["information"]["present"]["text"]
    assert layer["entropy"] == pytest.approx(entropy(torch.tensor([5 / 8, 3 / 8]).double()) / math.log(2))
