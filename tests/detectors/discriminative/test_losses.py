"""The losses by hand and against brute force."""

import math

import pytest
import torch
import torch.nn.functional as F

from stages.detectors.discriminative.maths.losses import focal, truncated_l1


def test_focal_by_hand():
    """A logit of 0 is p = 1/2 for either answer: (1/2)^4 log 2. log 3 is p = 3/4 for 1 and 1/4 for 0."""
    assert focal(torch.zeros(2), torch.tensor([0.0, 1.0])).item() == pytest.approx(math.log(2) / 16)
    three = torch.tensor([math.log(3)])
    assert focal(three, torch.ones(1)).item() == pytest.approx((1 / 4) ** 4 * math.log(4 / 3))
    assert focal(three, torch.zeros(1)).item() == pytest.approx((3 / 4) ** 4 * math.log(4))


def test_focal_without_the_factor_is_cross_entropy_and_finite_for_every_logit():
    logits, target = torch.tensor([-300.0, -1, 0.5, 200]), torch.tensor([1.0, 0, 1, 0])
    torch.testing.assert_close(focal(logits, target, gamma=0), F.binary_cross_entropy_with_logits(logits, target))
    assert focal(logits, target).item() == pytest.approx(125, rel=1e-2)  # (300 + 200) / 4; the two near 0 add next to nothing


def test_truncated_l1_by_hand():
    """Normal -1, 0, 0.5 with margin 0.5 cost 0, 0.5, 1, of mean 0.5; anomalous 0.2 and 3 cost 0.3 and 0, of mean 0.15."""
    logits, target = torch.tensor([[-1.0, 0, 0.5], [0.2, 3, -0.5]]), torch.tensor([[0.0, 0, 0], [1, 1, 0]])
    assert truncated_l1(logits, target, 0.5).item() == pytest.approx((0 + 0.5 + 1 + 0) / 4 + 0.15)


def test_truncated_l1_of_one_kind_alone_is_that_kinds_mean():
    logits = torch.tensor([0.5, -2.0])
    assert truncated_l1(logits, torch.zeros(2), 0.5).item() == pytest.approx(0.5)
    assert truncated_l1(logits, torch.ones(2), 0.5).item() == pytest.approx(1.25)
