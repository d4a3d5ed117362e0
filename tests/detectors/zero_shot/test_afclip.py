"""AF-CLIP against its formulas, by brute force and by hand; what a trained adaptor finds on objects that it never saw; what is refused."""

import itertools
import json
from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.detectors.zero_shot.afclip import AFCLIP, unit_rows
from stages.detectors.zero_shot.maths import afclip_losses
from stages.detectors.zero_shot.maths.afclip_adaptor import (
    SENTENCES,
    Adaptor,
    Alignment,
    as_tokens,
    averaged,
    heads_for,
    neighbourhoods,
    quarters,
    with_class_tokens,
)
from stages.detectors.zero_shot.maths.afclip_training import VECTORS, Learner, prompted
from stages.encoders import weights
from stages.encoders.clip import Text, Vision, whole_network
from stages.serving import train_afclip
from stages.training import Plan, Run
from stages.types import NotFitted, Refusal
from tests.arrays import ArrayBatches, features_of, noise_pixels, normal_pixels, plant_defect, read_aloud

SMALL = {"layers": ("group1", "group2"), "checkpoint": "random"}
LAYERS, RADII = ("block1", "block3"), (1, 3)  # of test-clip; few, so that it learns quickly
SIDE = 128


class MarkedBatches(ArrayBatches):
    """The same with labels and masks."""

    def __init__(self, features, masks, batch_size=4):
        super().__init__(features, batch_size)
        self.masks = masks

    def take(self, positions):
        masks = self.masks[positions]
        return super().take(positions)._replace(mask=masks, label=masks.flatten(1).any(dim=1).long())


@cache
def network(backbone="test-clip", seed=1):
    return whole_network(backbone, "random", seed, weights.Path("nowhere"))[0]


@cache
def tower(backbone="test-clip", size=SIDE, blocks=4):
    return Vision(whole_network(backbone, "random", 1, weights.Path("nowhere"))[0], with_class_tokens(quarters(blocks)), size)


@cache
def reader():
    return Text(whole_network("test-clip", "random", 1, weights.Path("nowhere"))[0])


def large(pixels):
    return F.interpolate(pixels.float(), (SIDE, SIDE)).to(torch.uint8)


def seen(pixels):
    """What test-clip says of (B, 3, 32, 32) images, enlarged to what it takes."""
    return tower()(large(pixels)) | {"pixels": large(pixels)}


@cache
def known():
    return seen(normal_pixels(2, seed=1))


@cache
def fresh():
    """Four good images and the same with a defect."""
    good = normal_pixels(4, seed=2)
    return seen(good), seen(plant_defect(good))


def defect_mask(count):
    where = torch.zeros(count, 1, 32, 32)
    where[:, :, 18:28, 3:13] = 1
    return F.interpolate(where, (SIDE, SIDE))[:, 0].bool()


@cache
def other_objects():
    """Blotches, stripes and negatives, half of them with the defect, turned to all sides so that its place cannot be learnt."""
    good = torch.cat([noise_pixels(8, seed=3), 255 - normal_pixels(8, seed=4), normal_pixels(8, seed=5).flip(2).roll(9, 3)])
    planted = plant_defect(good)
    pixels, masks = [], []
    for place in range(len(good)):
        turns = place % 4
        pixels += [torch.rot90(one[place], turns, (1, 2)) for one in (good, planted)]
        masks += [torch.zeros(SIDE, SIDE, dtype=torch.bool), torch.rot90(defect_mask(1)[0], turns)]
    return MarkedBatches(seen(torch.stack(pixels)), torch.stack(masks), batch_size=8)


def learner(seed=122, **given):
    options = {"layers": LAYERS, "radii": RADII, "sigma": 4.0, "temperature": 0.07, "seed": seed}
    return Learner(network().visual, reader(), **{**options, **given})


@cache
def trained():
    """A learner after some epochs, and what its losses were."""
    made, run = learner(), Run(seed=122, quiet=True)
    plan = Plan(optimiser=partial(torch.optim.Adam, lr=2e-3, betas=(0.5, 0.999)), epochs=12, batch_size=8)
    run.train(made, other_objects(), made.loss, plan)
    return made, [row["loss"] for row in run.history]


def about(dataset="others", **reads):
    return {
        "reads": {"layers": list(LAYERS), "radii": list(RADII), "sigma": 4.0, "temperature": 0.07, **reads},
        "auxiliary": {"dataset": dataset},
        "encoder": {"backbone": "test-clip", "weights": weights.random_identity(1)},
    }


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder of weights with afclip-others in it."""
    folder = tmp_path_factory.mktemp("backbones")
    train_afclip.store("afclip-others", trained()[0], about(), folder, Run(seed=0, quiet=True))
    return folder


@pytest.fixture
def session(checkpoint):
    return Run(seed=0, quiet=True, backbones=checkpoint, text=reader(), category="tile", dataset="tiles")


def nothing():
    return ArrayBatches({layer: value[:0] for layer, value in known().items()})


def made(**options):
    return AFCLIP(**{"layers": LAYERS, "radii": RADII, "checkpoint": "afclip-others", **options})


def one(features, place=0):
    return {layer: value[place, None] for layer, value in features.items()}


# --- neighbourhoods and layers ---


@pytest.mark.parametrize("radius", [1, 3, 5])
def test_a_neighbourhood_is_a_gaussian_mean_with_zeros_beyond_the_border(radius):
    maps = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(radius))
    found, reach = averaged(maps, radius, 4.0), radius // 2
    offsets = list(itertools.product(range(-reach, reach + 1), repeat=2))
    weight = {(down, right): torch.exp(torch.tensor(-(down**2 + right**2) / 32.0)) for down, right in offsets}
    for row, column in itertools.product(range(6), range(7)):
        inside = [(down, right) for down, right in offsets if 0 <= row + down < 6 and 0 <= column + right < 7]
        wanted = sum(weight[place] * maps[:, :, row + place[0], column + place[1]] for place in inside) / sum(weight.values())
        torch.testing.assert_close(found[:, :, row, column], wanted, atol=1e-6, rtol=1e-5)
    assert radius > 1 or found is maps


def test_twelve_sets_of_a_large_grid_and_the_class_token_is_left_as_it_is():
    sets = list(neighbourhoods(known(), quarters(4), (1, 3, 5), 4.0))
    assert [(layer, radius) for layer, radius, _ in sets] == list(itertools.product(quarters(4), (1, 3, 5)))
    for layer, _, maps in sets:
        tokens = as_tokens(maps, known()[f"{layer}_extra"])
        assert tokens.shape == (2, 65, 128) and torch.equal(tokens[:, 0], known()[f"{layer}_extra"][:, :, 0, 0])
        assert torch.equal(tokens[:, 1 + 8 * 2 + 5], maps[:, :, 2, 5])


@pytest.mark.parametrize(("grid", "kept"), [(37, [1, 3, 5]), (8, [1, 3, 5]), (7, [1, 3]), (4, [1]), (1, [1])])
def test_a_neighbourhood_as_wide_as_the_grid_is_left_out(grid, kept):
    sets = neighbourhoods({"a": torch.zeros(1, 1, grid, 40)}, ("a",), (1, 3, 5), 4.0)
    assert [radius for _, radius, _ in sets] == kept


def test_layers_stand_at_the_quarters_of_a_tower():
    assert quarters(24) == ("block5", "block11", "block17", "block23") == AFCLIP().layers
    assert quarters(2) == ("block0", "block1") and quarters(1) == ("block0",)
    assert quarters(12) == ("block2", "block5", "block8", "block11") and quarters(10) == ("block1", "block4", "block7", "block9")
    assert AFCLIP().needs.layers[:2] == ("block5", "block5_extra") and len(AFCLIP().needs.layers) == 8


# --- the adaptor ---


def test_the_adaptor_of_the_paper_has_two_million_parameters_and_nothing_else_is_trained():
    alignment = Alignment(1024, 768)
    trained_here = sum(parameter.numel() for parameter in alignment.parameters() if parameter.requires_grad)
    assert trained_here == 2 * 1024 + 3 * 1024 * 512 + 512 * 1024 + 1024 == 2_100_224
    assert [heads_for(width) for width in (256, 512, 640, 1024)] == [4, 8, 8, 8]


def test_the_adaptor_attends_as_torch_does_with_the_same_weights():
    """nn.MultiheadAttention of 512 over tokens of 512, the only width at which it can be had."""
    adaptor = Adaptor(512)
    torchs = nn.MultiheadAttention(512, 8, batch_first=True)
    with torch.no_grad():
        torchs.in_proj_weight.copy_(adaptor.query_key_value.weight)
        torchs.in_proj_bias.zero_()
        torchs.out_proj.load_state_dict(adaptor.out.state_dict())
        tokens = torch.randn(2, 9, 512, generator=torch.Generator().manual_seed(0))
        normed = F.layer_norm(tokens, (512,))
        torch.testing.assert_close(adaptor(tokens), torchs(normed, normed, normed)[0], atol=1e-5, rtol=1e-4)


def test_afclip_a_there_is_no_way_around_the_adaptor():
    """With the last layer's weights at zero its bias alone comes through; a residual would let tokens by."""
    alignment = Alignment(16, 8)
    nn.init.zeros_(alignment.adaptor.out.weight)
    tokens = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    found = alignment(tokens)
    torch.testing.assert_close(found, found[:, :1].expand(1, 5, 8))
    assert not torch.allclose(Alignment(16, 8)(tokens)[:, 0], Alignment(16, 8)(tokens)[:, 1])


# --- zero shots ---


def test_afclip_b_logits_are_added_and_not_probabilities_averaged(session):
    detector = made().fit(nothing(), None, session)
    learnt, image = trained()[0], one(fresh()[1])
    with torch.no_grad():
        sets = [
            learnt.alignment(as_tokens(maps, image[f"{layer}_extra"]))[0] for layer, _, maps in neighbourhoods(image, LAYERS, RADII, 4.0)
        ]
        logits = [vectors @ learnt.sentences().T / 0.07 for vectors in sets]
    wanted = sum(logits).softmax(dim=1)[:, 1]
    whole, patches = detector._anomalous(image, list(neighbourhoods(image, LAYERS, RADII, 4.0)))
    torch.testing.assert_close(torch.cat([whole[None], patches.flatten()]), wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(wanted, torch.stack([one.softmax(dim=1)[:, 1] for one in logits]).mean(dim=0), atol=1e-2)


def test_an_adaptor_of_other_objects_finds_a_defect_that_it_never_saw_on_this_one(session):
    """Zero shots: no image of the object was looked at."""
    good, bad = fresh()
    detector = made().fit(nothing(), None, session)
    assert detector.score(bad).image_score.min() > detector.score(good).image_score.max()
    inside = defect_mask(1)[0]
    for anomaly_map in detector.score(bad).anomaly_map:
        row, column = divmod(int(anomaly_map.argmax()), SIDE)
        assert inside[row, column] and anomaly_map[inside].mean() > 2 * anomaly_map[~inside].mean()


def test_zero_shots_see_no_image_and_no_other_image_changes_the_state(session):
    class Closed(ArrayBatches):
        def take(self, positions):
            raise AssertionError("an image was looked at")

    states = [
        made().fit(Closed(nothing().features), held_out, session).state_dict()
        for held_out in (None, Closed(known()), Closed({layer: value.flip(0) * 3 for layer, value in known().items()}))
    ]
    for state in states[1:]:
        assert list(state) == list(states[0]) and all(torch.equal(value, states[0][name]) for name, value in state.items())


def test_the_state_scores_without_the_checkpoint_and_without_clip(session, tmp_path, monkeypatch):
    fitted = made().fit(nothing(), None, session)
    monkeypatch.setattr(weights, "resolve", None)
    again = made(checkpoint="afclip-gone")
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again.score(fresh()[1]).anomaly_map, fitted.score(fresh()[1]).anomaly_map)
    assert {name.split(".")[0] for name in fitted.state_dict()} == {"alignment", "sentences", *(f"references_{layer}" for layer in LAYERS)}


# --- sentences ---


def test_afclip_c_learnt_words_stand_before_the_start_token_and_the_end_moves_on():
    """By the tower's own hooks: what it is given, and where it looks. Behind the start token the words would say something else."""
    text, heard = reader(), {}
    vectors = torch.randn(VECTORS, 64, generator=torch.Generator().manual_seed(3))

    class Listening:
        context, token_embedding, tokens = text.context, text.token_embedding, text.tokens

        def read(self, embedded, end):
            heard.update(embedded=embedded, end=end)
            return text.read(embedded, end)

    found = prompted(Listening(), vectors)
    tokens = text.tokens(SENTENCES)
    words = text.token_embedding(tokens)
    assert heard["embedded"].shape == (2, 77, 64)
    assert torch.equal(heard["embedded"][:, :12], vectors.expand(2, -1, -1)) and torch.equal(heard["embedded"][:, 12:], words[:, :65])
    assert torch.equal(heard["end"], tokens.argmax(dim=1) + 12) and (tokens == 49407).sum(dim=1).tolist() == [1, 1]
    behind = torch.cat([words[:, :1], vectors.expand(2, -1, -1), words[:, 1:65]], dim=1)
    assert not torch.allclose(found, F.normalize(text.read(behind, heard["end"]), dim=1), atol=1e-3)
    torch.testing.assert_close(prompted(text, vectors[:0]), F.normalize(text(SENTENCES), dim=1))


def test_the_gradient_of_the_loss_reaches_the_words_through_the_tower_and_the_tower_stays():
    fresh_learner = learner()
    assert fresh_learner.vectors.shape == (12, 64) and fresh_learner.vectors.std().item() == pytest.approx(0.01, rel=0.1)
    fresh_learner.loss(other_objects().take([0, 1, 2, 3]), torch.Generator()).backward()
    with_gradient = {name for name, parameter in fresh_learner.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    names = {"norm.weight", "norm.bias", "query_key_value.weight", "out.weight", "out.bias"}
    assert with_gradient == {"vectors", *(f"alignment.adaptor.{name}" for name in names)}
    assert all(parameter.grad is None for parameter in reader().parameters()) and not any(
        "text" in name for name in fresh_learner.state_dict()
    )


# --- few shots ---


def test_afclip_d_the_bank_is_of_raw_tokens_whatever_the_adaptor_says(session):
    """By brute force over all pairs of patches, and the same under another adaptor."""
    image = one(fresh()[1])
    distances = []
    for (_, _, maps), (_, _, references) in zip(
        neighbourhoods(image, LAYERS, RADII, 4.0), neighbourhoods(known(), LAYERS, RADII, 4.0), strict=True
    ):
        patches, bank = maps[0].flatten(1).T, references.permute(0, 2, 3, 1).flatten(0, 2)
        cosines = F.cosine_similarity(patches[:, None], bank[None], dim=2)
        distances.append(((1 - cosines) / 2).amin(dim=1).view(8, 8))
    memory = torch.stack(distances).mean(dim=0)
    few, zero = (made(alpha=0.25).fit(batches, None, session)._score(image) for batches in (ArrayBatches(known()), nothing()))
    torch.testing.assert_close(few[1], memory + 0.25 * zero[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(few[0], memory.max() + 0.25 * zero[0], atol=1e-5, rtol=1e-4)
    muted = made(alpha=0.0).fit(ArrayBatches(known()), None, session)
    before = muted.score(fresh()[1]).anomaly_map
    nn.init.normal_(muted.alignment.adaptor.out.weight, generator=torch.Generator().manual_seed(9))
    assert torch.equal(before, muted.score(fresh()[1]).anomaly_map)


def test_a_reference_image_is_nothing_new_and_more_references_never_make_a_patch_newer(session):
    alone = made(alpha=0.0).fit(ArrayBatches(known()), None, session)
    assert alone.score(known()).anomaly_map.abs().max() < 1e-5
    fewer = made(alpha=0.0).fit(ArrayBatches({layer: value[:1] for layer, value in known().items()}), None, session)
    less, more = fewer.score(fresh()[0]).anomaly_map, alone.score(fresh()[0]).anomaly_map
    assert (more <= less + 1e-6).all() and (more < less - 1e-5).any()


def test_the_adaptors_word_counts_a_tenth_where_there_are_references():
    assert AFCLIP().alpha == 0.1 and AFCLIP().blur_sigma == 4.0 and AFCLIP().temperature == 0.07


def test_references_are_kept_once_for_each_layer_and_banks_are_no_part_of_the_state(session):
    detector = made().fit(ArrayBatches(known()), None, session)
    before = list(detector.state_dict())
    detector.score(fresh()[0])
    assert list(detector.state_dict()) == before and len(detector._banks) == 4
    assert detector.references_block3.shape == (2, 128, 8, 8) and detector._banks["block3", 3].shape == (2 * 64, 128)
    torch.testing.assert_close(unit_rows(known()["block3"]).norm(dim=1), torch.ones(128))
    detector.fit(nothing(), None, session)
    assert len(detector.references_block3) == 0 and detector._banks == {}


# --- losses ---


def test_the_focal_loss_by_hand():
    """p = 0.5: 0.5^4 ln 2. p of the right answer 0.9 and of the wrong one 0.1."""
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1]]))
    each = [afclip_losses.focal(logits[place, None], torch.tensor([bad])) for place, bad in enumerate((True, False, True))]
    wanted = [0.5**4 * 0.693147, 0.1**4 * 0.105361, 0.9**4 * 2.302585]
    torch.testing.assert_close(torch.stack(each), torch.tensor(wanted), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(
        afclip_losses.focal(logits, torch.tensor([True, False, True])), torch.tensor(wanted).mean(), rtol=1e-4, atol=0
    )
    extra = afclip_losses.map_loss(logits[None], torch.tensor([[True, False, True]])) - torch.tensor(wanted).mean()
    torch.testing.assert_close(extra, torch.tensor((0.5 + 0.1 + 0.9) / 3), rtol=1e-4, atol=1e-6)


def test_patch_alignment_is_that_of_all_pairs():
    """The slow way: one matrix of cosines an image, pairs pooled over the batch; an image without a defect is among them. Bad patches are what good ones
    scatter around (unlike pairs are more alike, mostly), or the opposite."""
    generator, found = torch.Generator().manual_seed(0), {1.0: [], -1.0: []}
    for sign in 5 * [1.0, -1.0]:
        around = torch.tensor([sign, 0, 0, 0])
        marked = torch.rand(3, 11, generator=generator) < 0.2
        marked[0], marked[1, :2] = False, torch.tensor([True, False])
        good = torch.randn(3, 11, 4, generator=generator) + around.abs()
        vectors = F.normalize(torch.where(marked[..., None], around, good), dim=2)
        cosines, alike = vectors @ vectors.transpose(1, 2), marked[:, :, None] == marked[:, None, :]
        found[sign].append(afclip_losses.patch_alignment(vectors, marked))
        wanted = (cosines[~alike].mean() - cosines[alike].mean()).clamp(min=0)
        torch.testing.assert_close(found[sign][-1], wanted, atol=1e-6, rtol=1e-5)
    assert max(found[1.0]) > 0.02 and max(found[-1.0]) == 0


def test_patch_alignment_by_hand():
    """One bad patch at 0 degrees and four good ones at +60 and -60: unlike cosines are 0.5, like ones (1 + 16 * 0.25) / 17."""
    vectors = torch.tensor([[[1.0, 0.0], [0.5, 0.75**0.5], [0.5, -(0.75**0.5)], [0.5, 0.75**0.5], [0.5, -(0.75**0.5)]]])
    marked = torch.tensor([[True, False, False, False, False]])
    torch.testing.assert_close(afclip_losses.patch_alignment(vectors, marked), torch.tensor(0.5 - 5 / 17))


def test_without_an_anomalous_patch_or_a_normal_one_there_is_nothing_to_align():
    vectors = F.normalize(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)), dim=2)
    for marked in (torch.zeros(2, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)):
        assert afclip_losses.patch_alignment(vectors, marked) == 0


def test_masks_are_shrunk_to_the_grid_and_set_above_a_half():
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 4:8, 8:16], mask[0, 13, 2] = True, True
    found = afclip_losses.on_grid(mask, (4, 4)).view(4, 4)
    assert found.nonzero().tolist() == [[1, 2], [1, 3]]


def test_the_whole_loss_is_its_parts_with_weight_one():
    made_now, batch = learner(), other_objects().take([1, 2, 3])
    marked = afclip_losses.on_grid(batch.mask, (8, 8))
    with torch.no_grad():
        sets = [
            made_now.alignment(as_tokens(maps, batch.features[f"{layer}_extra"]))
            for layer, _, maps in neighbourhoods(batch.features, LAYERS, RADII, 4.0)
        ]
        logits = sum(vectors @ made_now.sentences().T for vectors in sets) / 0.07
        aligned = sum(afclip_losses.patch_alignment(vectors[:, 1:], marked) for vectors in sets) / 4
        wanted = afclip_losses.focal(logits[:, 0], batch.label == 1) + afclip_losses.map_loss(logits[:, 1:], marked) + aligned
        torch.testing.assert_close(made_now.loss(batch, torch.Generator()), wanted, atol=1e-5, rtol=1e-4)
    assert marked.any() and not marked[1].any() and aligned > 0


def test_the_loss_falls():
    losses = trained()[1]
    assert losses[-1] < 0.5 * losses[0] and all(later < earlier for earlier, later in itertools.pairwise(losses[:3]))


# --- what is refused ---


def test_afclip_e_a_checkpoint_names_its_data_set_and_is_refused_on_it(session):
    made().fit(nothing(), None, session)
    assert session.learnt_from == {"afclip": f"the test images and masks of others (checkpoint afclip-others, sha256 {digest(session)})"}
    session.dataset = "others"
    with pytest.raises(Refusal, match="afclip-others was trained on the test images of others and cannot be judged on them"):
        made().fit(nothing(), None, session)


def digest(session):
    return weights.resolve("afclip-others", session.backbones).sha256[:12]


def test_a_checkpoint_that_is_not_here_is_a_refusal_that_says_how_to_make_it(session):
    with pytest.raises(
        Refusal, match=r"E101 afclip-nuts is needed by AF-CLIP.*`assay train-afclip nuts --encoder NAME --name afclip-nuts`"
    ):
        made(checkpoint="afclip-nuts").fit(nothing(), None, session)
    with pytest.raises(Refusal, match=r"E101 afclip-visa .*`assay train-afclip visa --encoder NAME`"):
        made(checkpoint="afclip-visa").fit(nothing(), None, session)


def test_another_clip_than_the_checkpoints_is_refused_even_where_widths_agree(session):
    session.text = Text(network(seed=2))
    with pytest.raises(Refusal, match="afclip-others was trained on the backbone test-clip with the weights random"):
        made().fit(nothing(), None, session)
    session.text = read_aloud
    with pytest.raises(Refusal, match="the encoder here is another one"):
        made().fit(nothing(), None, session)
    session.text = None
    with pytest.raises(Refusal, match="its encoder reads none: pair it with an encoder of kind clip"):
        made().fit(nothing(), None, session)


def test_layers_of_another_width_are_refused_and_never_scored(session):
    narrow = {layer: value[:, :96] for layer, value in known().items()}
    with pytest.raises(Refusal, match="afclip-others is for tokens of width 128, block1 has 96: it belongs to another backbone"):
        made().fit(ArrayBatches(narrow), None, session)
    with pytest.raises(ValueError, match="knows tokens of width 128, these have 96"):
        made().fit(nothing(), None, session).score(narrow)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": ("block0", "block3")}, "layers"),
        ({"radii": (1, 3, 5)}, "radii"),
        ({"temperature": 0.01}, "temperature"),
        ({"sigma": 1.0}, "sigma"),
    ],
)
def test_a_model_that_reads_tokens_otherwise_than_its_checkpoint_is_refused(session, options, said):
    with pytest.raises(Refusal, match=f"afclip-others was trained with {said} .*, this model has .*: give it the same"):
        made(**options).fit(nothing(), None, session)


def test_a_file_of_something_else_is_refused(session, tmp_path):
    from stages import io

    io.write_model(tmp_path / "afclip-others.safetensors", {"x": torch.zeros(1)}, {})
    session.backbones = tmp_path
    with pytest.raises(weights.WeightsAltered, match="no checkpoint that `assay train-afclip` wrote"):
        made().fit(nothing(), None, session)


def test_a_random_checkpoint_needs_images_and_says_that_it_knows_nothing():
    with pytest.raises(Refusal, match="checkpoint random knows nothing"):
        made(checkpoint="random").fit(nothing(), None, Run(seed=0, quiet=True))
    with pytest.raises(NotFitted, match="AFCLIP"):
        made().score(known())
    run = Run(seed=0, quiet=True)
    AFCLIP(**SMALL).fit(ArrayBatches(features_of(normal_pixels(2))), None, run)
    assert run.learnt_from == {}


@pytest.mark.parametrize("options", [{"radii": (3, 5)}, {"radii": (1, 2)}, {"sigma": 0.0}, {"temperature": -1.0}])
def test_options_that_mean_nothing_are_errors(options):
    with pytest.raises(ValueError, match="must be"):
        AFCLIP(**options)


# --- miniCLIP ---


@pytest.mark.parametrize(("size", "sets"), [(112, 8), (128, 12)])
def test_miniclip_is_the_same_on_a_tinyclip_at_any_grid(size, sets):
    """TinyCLIP-ViT-8M-16: 256 wide, 10 blocks, 4 heads; on 7 x 7 patches r = 5 is left out."""
    backbone, layers = "TinyCLIP-ViT-8M-16-Text-3M", quarters(10)
    pixels = F.interpolate(normal_pixels(3).float(), (size, size)).to(torch.uint8)
    features = tower(backbone, size, 10)(pixels) | {"pixels": pixels}
    detector = AFCLIP(layers=layers, checkpoint="random").fit(ArrayBatches(one(features)), None, Run(seed=0, quiet=True))
    found = detector.score(features)
    assert detector.alignment.adaptor.heads == 4 and len(detector._banks) == sets
    assert found.anomaly_map.shape == (3, size, size) and found.image_score[0] < found.image_score[1:].min()


def test_a_checkpoint_says_what_it_is_and_where_it_is_from(checkpoint):
    found = weights.resolve("afclip-others", checkpoint)
    described = weights.described(found)
    assert described["auxiliary"] == {"dataset": "others"} and described["encoder"]["backbone"] == "test-clip"
    assert weights.records(checkpoint)["afclip-others.safetensors"]["sha256"] == found.sha256
    assert str(checkpoint) not in json.dumps(described) and found.row.made_by.startswith("assay train-afclip others")
