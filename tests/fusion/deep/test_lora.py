"""Low-rank adapters: nothing at first, exact when merged, little to keep, and only where they were asked for."""

import pytest
import torch
from torch import nn

from stages.fusion.deep.maths import lora, twins


@pytest.fixture
def network() -> nn.Module:
    return twins.drawn(twins.ImageTwin, 0).eval()


PIXELS = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def taught(network: nn.Module, rank: int = 8) -> nn.Module:
    """With adapters that are not zero any more."""
    lora.inject(network, rank)
    for _, layer in lora.adapters(network):
        nn.init.normal_(layer.up, std=0.05)
    return network


def test_fresh_adapters_change_nothing(network):
    before = network(PIXELS)
    assert len(lora.inject(network)) == 2 * 4  # query and value of four layers
    assert torch.equal(network(PIXELS), before)


def test_merging_and_unmerging_keeps_the_function(network):
    bare = network.layer[0].attention.q_proj.weight.clone()
    taught(network)
    with torch.no_grad():
        apart = network(PIXELS)
        lora.merge(network)
        assert (network(PIXELS) - apart).abs().max() < 1e-5
        lora.unmerge(network)
        assert (network(PIXELS) - apart).abs().max() < 1e-5
    layer = network.layer[0].attention.q_proj
    assert (layer.layer.weight - bare).abs().max() < 1e-6 and (layer.weight - bare).abs().max() > 1e-3


def test_a_second_merge_adds_nothing(network):
    taught(network)
    lora.merge(network)
    once = network(PIXELS)
    lora.merge(network)
    assert torch.equal(network(PIXELS), once)


def test_the_correction_is_alpha_over_rank_times_up_down():
    layer = lora.LowRank(nn.Linear(6, 5, bias=False), 2, 16.0, torch.Generator().manual_seed(0))
    nn.init.normal_(layer.up)
    given = torch.randn(4, 6)
    by_hand = given @ layer.layer.weight.T + 8.0 * given @ layer.down.T @ layer.up.T
    torch.testing.assert_close(layer(given), by_hand)


def test_only_the_adapters_learn_and_they_do(network):
    network.requires_grad_(False)
    lora.inject(network, 4)
    learning = [name for name, one in network.named_parameters() if one.requires_grad]
    assert learning and all(name.endswith((".up", ".down")) for name in learning)
    network(PIXELS).square().sum().backward()
    assert all(layer.up.grad.abs().sum() > 0 for _, layer in lora.adapters(network))


def test_adapters_alone_are_kept_and_put_on_another_copy(network):
    taught(network)
    other = twins.drawn(twins.ImageTwin, 0).eval()
    lora.inject(other, 8, seed=5)
    lora.load_adapters(other, lora.adapter_state(network))
    assert torch.equal(other(PIXELS), network(PIXELS))
    assert sum(one.numel() for one in lora.adapter_state(network).values()) == 8 * 8 * (192 + 192)
    lora.inject(third := twins.drawn(twins.ImageTwin, 0), 4)
    with pytest.raises(lora.NoSuchLayer, match="not of this network"):
        lora.load_adapters(third, lora.adapter_state(network))


def test_where_no_layer_has_the_name_it_says_which_there_are(network):
    with pytest.raises(lora.NoSuchLayer, match=r"no linear layer called qkv.*k_proj"):
        lora.inject(network, names=("qkv",))
    with pytest.raises(ValueError, match=r"rank must be in 1\.\.192"):
        lora.inject(network, 400)


def test_the_same_seed_draws_the_same_adapters_and_another_other_ones():
    def drawn(seed: int) -> torch.Tensor:
        lora.inject(network := twins.drawn(twins.ImageTwin, 0), seed=seed)
        return network.layer[0].attention.q_proj.down

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
