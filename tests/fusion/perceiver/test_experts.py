"""The mixture of experts: gates, dispatch, and the two losses of the router by hand."""

import math

import pytest
import torch

from stages.fusion.perceiver.experts import Dense, Experts, Mixture, Router, Routing, balance_loss, equal_hidden, z_loss

GATES = ("softmax", "laplace", "sigmoid")


def routing(logits: torch.Tensor) -> Routing:
    share = logits.softmax(1)
    return Routing(logits, share, share, share.topk(1, 1).indices)


def rows(count: int = 40, width: int = 8) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("gate", GATES)
def test_gates_sum_to_one_over_the_chosen_experts_alone(gate):
    torch.manual_seed(0)
    found = Router(8, 5, 2, gate).eval()(rows())
    assert torch.allclose(found.gates.sum(1), torch.ones(40)) and ((found.gates > 0).sum(1) == 2).all()
    assert torch.allclose(found.probabilities.sum(1), torch.ones(40))
    assert torch.equal(found.gates.topk(2, 1).indices, found.chosen) and torch.equal(found.probabilities.topk(2, 1).indices, found.chosen)


def test_the_laplace_gate_prefers_the_nearest_expert():
    router = Router(8, 5, 1, "laplace").eval()
    torch.nn.init.zeros_(router.linear.bias)
    near = router.linear.weight[3] + 0.01
    assert router(near[None]).chosen.item() == 3


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_dispatch_equals_asking_every_expert(top_k):
    torch.manual_seed(0)
    experts, found = Experts(8, 12, 4), Router(8, 4, top_k, "softmax").eval()(rows())
    assert torch.allclose(experts(rows(), found.gates, found.chosen), experts.all(rows(), found.gates), atol=1e-6)


def test_dispatch_has_the_gradients_of_asking_every_expert():
    torch.manual_seed(0)
    experts, found = Experts(8, 12, 4), Router(8, 4, 2, "softmax").eval()(rows())
    ways = (lambda: experts(rows(), found.gates, found.chosen), lambda: experts.all(rows(), found.gates))
    one, other = (torch.autograd.grad(way().square().sum(), list(experts.parameters()), retain_graph=True) for way in ways)
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(one, other))


def test_an_expert_that_nobody_chose_does_no_harm():
    experts, gates = Experts(8, 12, 3), torch.tensor([[0.0, 1.0, 0.0]]).expand(40, 3)
    chosen = torch.ones(40, 1, dtype=torch.int64)
    found = experts(rows(), gates, chosen)
    found.sum().backward()
    assert torch.allclose(found, experts.all(rows(), gates), atol=1e-6) and (experts.first.grad[0] == 0).all()


def test_balance_is_one_where_all_experts_are_used_alike():
    assert balance_loss(routing(10 * torch.eye(4).repeat(3, 1))).item() == pytest.approx(1)
    assert balance_loss(routing(torch.zeros(7, 4))).item() == pytest.approx(1)


def test_balance_is_the_number_of_experts_where_one_takes_all():
    assert balance_loss(routing(torch.tensor([[60.0, 0, 0, 0]]).expand(9, 4))).item() == pytest.approx(4)


def test_balance_by_hand():
    """Two experts, three rows: first choices 2/3 and 1/3; mean probabilities (.8 + .6 + .1) / 3 = .5 and .5: 2 (2/3 .5 + 1/3 .5) = 1."""
    share = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    assert balance_loss(routing(share.log())).item() == pytest.approx(1)
    share = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])  # mean .6 and .4: 2 (2/3 .6 + 1/3 .4)
    assert balance_loss(routing(share.log())).item() == pytest.approx(2 * (0.4 + 0.4 / 3))


def test_z_loss_by_hand():
    assert z_loss(routing(torch.zeros(5, 4))).item() == pytest.approx(math.log(4) ** 2)
    two = torch.tensor([[0.0, 0.0], [1.0, 1.0]])  # log 2 and 1 + log 2
    assert z_loss(routing(two)).item() == pytest.approx((math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2)


def test_the_router_sees_what_is_present():
    torch.manual_seed(0)
    mixture = Mixture(8, 3, 12, 4, 2, "softmax", uniform=False).eval()
    _, one, _ = mixture(rows(), torch.zeros(40, 3))
    _, other, _ = mixture(rows(), torch.ones(40, 3))
    assert (one.logits - other.logits).abs().min() > 1e-4


def test_uniform_routing_is_the_mean_of_all_experts():
    mixture = Mixture(8, 3, 12, 4, 2, "softmax", uniform=True)
    found, none, gates = mixture(rows(), torch.zeros(40, 3))
    mean = torch.stack([mixture.experts._one(expert, rows()) for expert in range(4)]).mean(0)
    assert none is None and (gates == 0.25).all() and torch.allclose(found, mean, atol=1e-6)


@pytest.mark.parametrize("used", [2, 4])
def test_the_dense_layer_has_as_many_parameters_as_the_experts_that_count(used):
    mixture = Mixture(64, 32, 128, 4, 2, "softmax", uniform=False)
    one = sum(parameter[0].numel() for parameter in mixture.experts.parameters())
    wanted = used * one + sum(parameter.numel() for parameter in mixture.router.parameters())
    got = sum(parameter.numel() for parameter in Dense(64, equal_hidden(64, 32, 128, 4, used)).parameters())
    assert abs(got - wanted) <= 65  # half of what one hidden unit costs
