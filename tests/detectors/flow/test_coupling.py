"""The coupling layer: it can be undone, and its log-determinant is that of the Jacobian which autograd sees."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.detectors.flow.maths.coupling import AllInOne, Flow, convolutions, random_rotation, seeded

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # rotations are stored in float32, so their inverse is as exact as that


def linears(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 2 * inputs), nn.ReLU(), nn.Linear(2 * inputs, outputs))


def shaken(module: nn.Module, seed: int = 0, size: float = 0.5) -> nn.Module:
    """In float64 with every parameter moved, so that scales, shifts and coefficients are far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data += size * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return module.requires_grad_(False)


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def maps_flow(channels: int, permutation: str, seed: int = 0) -> Flow:
    with seeded(seed):
        layers = [AllInOne(channels, convolutions(kernel, 1.0), clamp=2.0, permutation=permutation) for kernel in (3, 1, 3)]
    return shaken(Flow(*layers), seed)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), st.integers(1, 4), st.integers(1, 5), st.sampled_from(["hard", "soft"]), st.integers(0, 1000))
def test_the_inverse_undoes_the_flow_and_its_log_determinant(channels, height, width, permutation, seed):
    flow, x = maps_flow(channels, permutation, seed), noise(3, channels, height, width, seed=seed)
    z, log_det = flow(x)
    back, log_det_back = flow.inverse(z)
    torch.testing.assert_close(back, x, **CLOSE)
    torch.testing.assert_close(log_det_back, -log_det, **CLOSE)


@pytest.mark.parametrize("permutation", ["hard", "soft"])
@pytest.mark.parametrize("channels", [2, 5])
def test_the_log_determinant_of_a_map_is_autograds(channels, permutation):
    flow, x = maps_flow(channels, permutation), noise(2, channels, 2, 3)
    _, log_det = flow(x)
    for image, got in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda values: flow(values[None])[0][0], image)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian.reshape(image.numel(), -1)).logabsdet, got, **CLOSE)


@pytest.mark.parametrize("permutation", ["hard", "soft"])
def test_the_log_determinant_of_a_vector_is_autograds_and_the_condition_has_no_part_in_it(permutation):
    with seeded(3):
        flow = shaken(Flow(*[AllInOne(5, linears, clamp=1.9, condition=4, permutation=permutation) for _ in range(3)]))
    x, condition = noise(2, 5), noise(2, 4, seed=2)
    z, log_det = flow(x, condition)
    torch.testing.assert_close(flow.inverse(z, condition)[0], x, **CLOSE)
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda values, row=row: flow(values[None], condition[row : row + 1])[0][0], x[row])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[row], **CLOSE)
    assert not torch.allclose(flow(x, 2 * condition)[0], z)


def test_the_values_of_one_layer_by_hand():
    """x1 = 3, x2 = 5; the network gives a_s = 10 x1, a_t = x1; so s = 2 tanh(3), a_t = 0.3. g = (2, 3), b = (1, -1), channels swapped."""
    layer = AllInOne(2, lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False), clamp=2.0)
    layer.subnet.weight.data = torch.tensor([[10.0], [1.0]])
    layer.gamma.data = torch.tensor([2 * math.log(math.exp(scale / 0.2) - 1) for scale in (2.0, 3.0)])
    layer.shift.data = torch.tensor([1.0, -1.0])
    layer.order = torch.tensor([1, 0])
    s = 2 * math.tanh(3)
    y, log_det = layer(torch.tensor([[3.0, 5.0]]))
    torch.testing.assert_close(y, torch.tensor([[3 * (5 * math.exp(s) + 0.3) - 1, 2 * 3 + 1.0]]))
    torch.testing.assert_close(log_det, torch.tensor([s + math.log(2) + math.log(3)]))


def test_an_odd_channel_passes_so_the_passive_half_is_the_larger():
    layer = AllInOne(5, linears, clamp=2.0, condition=7)
    assert layer.subnet[0].in_features == 3 + 7 and layer.subnet[2].out_features == 2 * 2


def test_a_layer_starts_as_its_coupling_and_its_permutation_alone():
    """g = 1 and b = 0: with a network that gives nothing, the values only change places and no volume."""
    layer = AllInOne(6, convolutions(3, 1.0), clamp=2.0)
    layer.subnet[2].weight.data.zero_()
    layer.subnet[2].bias.data.zero_()
    x = noise(2, 6, 3, 3).float()
    y, log_det = layer(x)
    torch.testing.assert_close(y, x[:, layer.order])
    torch.testing.assert_close(log_det, torch.zeros(2), atol=1e-4, rtol=0)


def test_the_clamp_bounds_how_much_a_layer_can_scale():
    layer = AllInOne(4, convolutions(1, 1.0), clamp=1.5)
    layer.subnet[2].bias.data.fill_(1e6)
    _, log_det = layer(noise(2, 4, 3, 3).float())
    torch.testing.assert_close(log_det, torch.full((2,), 1.5 * 2 * 9), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("permutation", "name"), [("hard", "order"), ("soft", "rotation")])
def test_the_permutation_is_part_of_the_state(permutation, name):
    with seeded(1):
        one = AllInOne(8, linears, clamp=2.0, permutation=permutation)
    with seeded(2):
        other = AllInOne(8, linears, clamp=2.0, permutation=permutation)
    x = noise(3, 8).float()
    assert name in one.state_dict() and not torch.equal(getattr(one, name), getattr(other, name))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x)[0], other(x)[0]) and name not in dict(one.named_parameters())


@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_a_soft_permutation_is_a_rotation(size):
    with seeded(size):
        rotations = [random_rotation(size).double() for _ in range(8)]
    for rotation in rotations:
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(size, dtype=torch.float64), atol=1e-6, rtol=0)
        assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-5)


def test_seeded_draws_depend_on_the_seed_alone_and_leave_the_global_generator():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    with seeded(3):
        one = torch.randn(4)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    with seeded(3):
        assert torch.equal(one, torch.randn(4))


def test_a_single_channel_and_an_empty_hidden_layer_are_refused():
    with pytest.raises(ValueError, match="at least 2; got 1"):
        AllInOne(1, linears, clamp=2.0)
    with pytest.raises(ValueError, match="hidden_ratio 0.1 of 4 channels leaves none; raise it above 0.250"):
        AllInOne(8, convolutions(3, 0.1), clamp=2.0)
