"""Attention, blocks and heads: padding and order do not count, sizes that do not fit are refused."""

import pytest
import torch

from stages.fusion.perceiver.trunk import Attention, Network, Shape
from tests.fusion.perceiver.made_records import WIDTHS, drawn

SHAPE = Shape(width=16, latents=4, heads=2, blocks=3, hidden=24)


def network(shape: Shape = SHAPE, widths=WIDTHS) -> Network:
    torch.manual_seed(0)
    return Network(widths, shape).eval()


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = Attention(16, 2), torch.nn.MultiheadAttention(16, 2, batch_first=True)
    weight, bias = (torch.cat([getattr(part, name) for part in (ours.query, ours.key_value)]) for name in ("weight", "bias"))
    theirs.load_state_dict(
        {"in_proj_weight": weight, "in_proj_bias": bias, "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias}
    )
    queries, tokens, mask = torch.randn(3, 4, 16), torch.randn(3, 7, 16), torch.arange(7) < torch.tensor([[7], [2], [5]])
    wanted, weights = theirs(queries, tokens, tokens, key_padding_mask=~mask)
    found = ours(queries, ours.key_value(tokens), mask)
    assert torch.allclose(found[0], wanted, atol=1e-6) and torch.allclose(found[1].mean(1), weights, atol=1e-6)


def test_what_stands_where_there_is_no_token_does_not_count():
    torch.manual_seed(0)
    attention, queries, tokens = Attention(16, 2), torch.randn(1, 4, 16), torch.randn(1, 7, 32)
    mask = torch.arange(7)[None] < 5
    other = tokens.masked_fill(~mask[..., None], 1e4)
    assert torch.equal(attention(queries, tokens, mask)[0], attention(queries, other, mask)[0])


def test_the_order_of_modalities_does_not_count():
    """The same parameters under the same names, the modalities in another order: the same logits."""
    turned = dict(reversed(WIDTHS.items()))
    one, other, records = network(), network(widths=turned), drawn(12, missing=0.4)
    other.load_state_dict(one.state_dict())
    found, again = one(records.tokens), other({name: records.tokens[name] for name in turned})
    assert torch.allclose(found.logit, again.logit, atol=1e-5) and torch.allclose(found.attention, again.attention.flip(1), atol=1e-5)


def test_attention_to_modalities_sums_to_one_and_gates_are_those_of_every_layer():
    reading = network()(drawn(6, missing=0.5).tokens)
    assert torch.allclose(reading.attention.sum(1), torch.ones(6)) and reading.gates.shape == (3, 6, 4, 4)
    assert torch.allclose(reading.gates.sum(3), torch.ones(3, 6, 4)) and reading.latents.shape == (6, 4, 16) and len(reading.routings) == 3


def test_unimodal_logits_see_the_mean_token_of_their_modality_alone():
    records = drawn(5, missing=0.0)
    one = network()(records.tokens).unimodal
    other = network()({**records.tokens, "video": records.tokens["video"]._replace(values=records.tokens["video"].values + 1)}).unimodal
    assert ((one - other).abs() > 1e-6).any(0).tolist() == [False, False, True, False, False]


def test_shared_blocks_are_the_second_one_again():
    assert len(network(SHAPE._replace(share_weights=True)).blocks) == 2
    shared, apart = network(SHAPE._replace(share_weights=True)), network()
    state = shared.state_dict()
    again = {name.replace("blocks.1.", "blocks.2."): value for name, value in state.items() if name.startswith("blocks.1.")}
    apart.load_state_dict({**state, **again})
    tokens = drawn(4).tokens
    assert torch.equal(shared(tokens).logit, apart(tokens).logit)


@pytest.mark.parametrize("match", ["active", "total"])
def test_a_dense_network_has_no_gates(match):
    assert network(SHAPE._replace(ffn="dense", match=match))(drawn(3).tokens).gates.shape == (3, 3, 4, 0)


def test_a_dense_network_is_as_large_as_the_mixture():
    dense, mixture = (sum(one.numel() for one in network(SHAPE._replace(ffn=ffn)).parameters()) for ffn in ("dense", "moe"))
    assert abs(dense / mixture - 1) < 0.01


@pytest.mark.parametrize(
    ("wrong", "said"), [({"heads": 3}, "multiple of heads"), ({"top_k": 5}, r"top_k must be in 1\.\.4"), ({"latents": 0}, "latents")]
)
def test_sizes_that_do_not_go_together_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        SHAPE._replace(**wrong).check()
