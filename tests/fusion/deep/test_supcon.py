"""The loss against the published formula written as two loops, and what a batch may lack."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from stages.fusion.deep.maths.supcon import SupConLoss


def units(seed: int, *shape: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def by_loops(features, label, tau, beta=0.0):
    """Per anchor the loss, None for one without a positive."""
    rows = [(features[record, view], label[record]) for record in range(len(features)) for view in range(features.shape[1])]
    losses = []
    for number, (anchor, kind) in enumerate(rows):
        others = [(float(anchor @ other), of == kind) for place, (other, of) in enumerate(rows) if place != number]
        positives = [cosine for cosine, same in others if same]
        negatives = [cosine for cosine, same in others if not same]
        mean = sum(math.exp(beta * cosine) for cosine in negatives) / len(negatives) if negatives else 1.0
        below = sum(math.exp(cosine / tau) for cosine in positives)
        below += sum(math.exp(beta * cosine) / mean * math.exp(cosine / tau) for cosine in negatives)
        losses.append(-sum(math.log(math.exp(cosine / tau) / below) for cosine in positives) / len(positives) if positives else None)
    return losses


@pytest.mark.parametrize("tau", [0.07, 0.5])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_it_is_the_published_formula_where_every_anchor_has_a_positive(tau, beta):
    features, label = units(0, 6, 2, 5), [0, 1, 0, 2, 1, 0]
    expected = by_loops(features, label, tau, beta)
    assert None not in expected
    found = SupConLoss(tau, beta)(features, torch.tensor(label))
    assert abs(float(found) - sum(expected) / len(expected)) < 1e-6


def test_mixed_precision_does_not_touch_the_cosines():
    features, label = units(3, 6, 2, 16).float(), torch.tensor([0, 1, 0, 2, 1, 0])
    whole = SupConLoss()(features, label)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(SupConLoss()(features, label)) == float(whole)


def test_anchors_without_a_positive_are_left_out_where_the_published_code_counts_them_as_zero():
    features, label = units(1, 5, 1, 4), [0, 0, 1, 2, 3]
    anchors = by_loops(features, label, 0.1)
    known = [one for one in anchors if one is not None]
    assert len(known) == 2
    ours = float(SupConLoss(0.1)(features, torch.tensor(label)))
    assert ours == pytest.approx(sum(known) / 2, abs=1e-9)
    published = sum(known) / 5
    assert ours == pytest.approx(published * 5 / 2, abs=1e-9)


def test_without_labels_it_is_the_contrast_between_two_views():
    """NT-Xent: cross-entropy of picking the other view of the same record out of all others."""
    features = units(2, 4, 2, 6)
    flat = features.flatten(0, 1)
    logits = (flat @ flat.T / 0.2).fill_diagonal_(-math.inf)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(8) ^ 1)
    loss = SupConLoss(0.2)
    assert loss(features).item() == pytest.approx(expected.item(), abs=1e-9)
    assert loss(features, torch.arange(4)).item() == loss(features).item()


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_gradient_is_that_of_finite_differences(beta):
    features = units(3, 4, 2, 3).requires_grad_()
    loss = SupConLoss(0.3, beta)
    assert torch.autograd.gradcheck(lambda one: loss(one, torch.tensor([0, 1, 0, 2])), features)
    lonely = units(4, 3, 1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda one: loss(one, torch.tensor([0, 0, 1])), lonely)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("shape, label", [((1, 1, 3), [0]), ((3, 1, 3), [0, 1, 2]), ((3, 2, 3), [0, 0, 0]), ((1, 2, 3), [0])])
def test_batches_without_positives_or_without_negatives_are_finite(beta, shape, label):
    features = units(5, *shape).float().requires_grad_()
    found = SupConLoss(0.07, beta)(features, torch.tensor(label))
    found.backward()
    assert found.isfinite() and found >= 0 and features.grad.isfinite().all()
    if shape[1] == 1 and len(set(label)) == len(label):
        assert found == 0


def test_hard_negatives_draw_the_gradient_to_the_nearest_one():
    def pull(beta):
        anchor = torch.tensor([[1.0, 0, 0]])
        near, far = normalize(torch.tensor([[0.9, 0.4, 0]]), dim=1), torch.tensor([[-1.0, 0, 0.1]])
        features = torch.cat([anchor, anchor, near, far])[:, None].requires_grad_()
        SupConLoss(1.0, beta)(features, torch.tensor([0, 0, 1, 2])).backward()
        return features.grad[2].norm() / features.grad[3].norm()

    assert pull(1.0) > 1.5 * pull(0.0)


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="tau"):
        SupConLoss(0.0)
    with pytest.raises(ValueError, match=r"\(records, views, width\)"):
        SupConLoss()(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="one of each record"):
        SupConLoss()(torch.zeros(3, 2, 4), torch.zeros(6))
