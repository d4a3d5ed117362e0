"""Cross-attention: the shape that the seed asks for, an oracle for the attention, and that what is masked cannot be seen."""

import itertools

import pytest
import torch

from stages.fusion.deep.maths.encoder import joined
from stages.fusion.deep.maths.fusion import Attention, CrossAttentionFusionModule, by_modality
from tests.fusion.deep.made import LENGTHS, WIDTHS

NAMES = list(WIDTHS)
VARIANTS = [{}, {"query": "video"}, {"query": "series"}, {"style": "per_modality"}, {"queries": 1}, {"queries": 8}]


def sequences(batch: int = 3, width: int = 16, lacking: tuple[str, ...] = (), extra: int = 0):
    """Four dummy sequences; of what is lacking the first token alone, as an encoder gives it. extra: columns that are masked, full of large numbers."""
    parts, draw = {}, torch.Generator().manual_seed(0)
    for name in NAMES:
        values = torch.randn(batch, LENGTHS[name], width, generator=draw)
        mask = torch.ones(batch, LENGTHS[name], dtype=torch.bool)
        if name in lacking:
            mask[:, 1:] = False
        values = torch.cat([values, torch.full((batch, extra, width), 99.0)], 1)
        mask = torch.cat([mask, torch.zeros(batch, extra, dtype=torch.bool)], 1)
        parts[name] = values, mask, torch.full((batch,), name not in lacking)
    return joined(parts)


def module(features: int = 32, **options) -> CrossAttentionFusionModule:
    return CrossAttentionFusionModule(NAMES, 16, features, heads=2, ffn=64, **options).eval()


def test_four_dummy_sequences_become_one_vector_of_the_seeds_shape():
    fused = CrossAttentionFusionModule(NAMES, 16)(sequences(batch=2))
    assert fused.features.shape == (2, 1, 512) and fused.features.isfinite().all()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_subset_of_modalities_gives_finite_features_and_attention_that_sums_to_1(options):
    fuse = module(**options)
    for count in range(len(NAMES)):
        for lacking in itertools.combinations(NAMES, count):
            given = sequences(lacking=lacking)
            fused = fuse(given)
            assert fused.features.shape == (3, 1, 32) and fused.features.isfinite().all()
            torch.testing.assert_close(fused.attention.sum(1), torch.ones(3))
            assert (fused.attention[~given.mask] == 0).all()
            assert by_modality(fused.attention, given).shape == (3, 4)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_what_is_masked_cannot_be_seen(options):
    fuse = module(**options)
    torch.testing.assert_close(fuse(sequences(extra=5)).features, fuse(sequences()).features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_token_of_each_modality_reaches_the_features(options):
    given = sequences()
    tokens = given.tokens.clone().requires_grad_(True)
    module(**options)(given._replace(tokens=tokens)).features.square().sum().backward()
    assert (tokens.grad.abs().sum((0, 2)) > 0).all()


def test_attention_is_that_of_pytorch():
    """Projecting what is asked and what was read, in place of every key and value, is the same function."""
    own, theirs = Attention(16, 4).double(), torch.nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    queries, tokens = torch.randn(3, 2, 16).double(), torch.randn(3, 5, 16).double()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1]]).bool()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([own.query.weight, own.key.weight, own.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([own.query.bias, torch.randn(16), own.value.bias]))
        theirs.out_proj.load_state_dict(own.out.state_dict())
    found, weights = own(queries, tokens, mask)
    said, theirs_weights = theirs(queries, tokens, tokens, key_padding_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(found, said)
    torch.testing.assert_close(weights, theirs_weights)


def test_the_weights_of_every_layer_are_there_for_rollout():
    fused = module(layers=3, queries=2)(sequences())
    assert [one.shape for one in fused.weights] == [(3, 2, 2, 33)] * 3 and [one.shape for one in fused.within] == [(3, 2, 2, 2)] * 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"features": 33}, "features must be a multiple of heads, got 33 and 2"),
        ({"query": "smell"}, "query must be 'learned' or a modality that is shown"),
        ({"query": "video", "style": "per_modality"}, "queries are learnt, got query 'video'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        module(**options)
