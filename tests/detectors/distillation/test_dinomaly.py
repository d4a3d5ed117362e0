"""Dinomaly against its paper. The letters are those of the list of what implementations get wrong, in the order given there; letter g, the
position embeddings, is a matter of the encoder and lies in tests/encoders/test_vit.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.detectors.distillation.dinomaly import Dinomaly, blur, global_cosine, thin_out
from stages.detectors.distillation.maths.linear_attention import LinearBlock, Reconstruction, linear_attention
from stages.detectors.distillation.maths.stable_adamw import StableAdamW
from stages.training import Run
from tests.arrays import ArrayBatches, features_of, normal_pixels

SMALL = {"depth": 2, "head_width": 4, "steps": 50, "warmup": 5, "batch_size": 8, "easy_steps": 25, "map_size": 32, "learning_rate": 8e-3}
GROUPS = ("group1", "group2")


def make(**options) -> Dinomaly:
    return Dinomaly(**{**SMALL, "steps": 10, **options})


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Says(nn.Module):
    """A network that answers with prepared tokens and remembers what it was shown."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.shown = outputs, None
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, tokens):
        self.shown = tokens
        return self.outputs


def saying(outputs, **options) -> Dinomaly:
    detector = make(depth=len(outputs), **options)
    detector.network, detector.steps_trained = Says(outputs), torch.tensor([1])
    return detector.eval()


def tokens_of(features, group):
    return torch.cat([features[f"{group}_extra"].flatten(2), features[group].flatten(2)], dim=2).transpose(1, 2)


# the method


def test_a_perfect_reconstruction_has_a_zero_map_and_a_zero_loss():
    features = features_of(normal_pixels(3))
    shallow, deep = (tokens_of(features, group) for group in GROUPS)
    detector = saying([deep, deep, shallow, shallow])
    image_score, anomaly_map = detector.score(features)
    assert anomaly_map.abs().max() < 1e-12 and image_score.abs().max() < 1e-12
    assert detector._loss(ArrayBatches(features).take([0, 1, 2]), torch.Generator()).abs() < 1e-6


def test_the_first_decoder_block_answers_to_the_deepest_group_and_groups_are_means():
    """Blocks 1 and 2 of 4, here with the values 1 and 3, make the deep group (2); blocks 3 and 4, with 5 and 9, the shallow one (7)."""
    features = features_of(normal_pixels(1))
    shape = tokens_of(features, "group1").shape
    _, (shallow, deep) = saying([torch.full(shape, value) for value in (1.0, 3.0, 5.0, 9.0)])._rebuild(features)
    assert (shallow == 7).all() and (deep == 2).all() and shallow.shape == features["group1"].shape


def test_the_bottleneck_sees_the_mean_of_the_groups_with_the_tokens_of_no_patch_which_no_map_contains():
    features = features_of(normal_pixels(2))
    detector = saying([tokens_of(features, "group1")] * 2)
    _, rebuilt = detector._rebuild(features)
    expected = (tokens_of(features, "group1") + tokens_of(features, "group2")) / 2
    assert torch.equal(detector.network.shown, expected) and expected.shape[1] == 65  # 8 x 8 patches and one more
    assert torch.equal(rebuilt[0], features["group1"])  # in its place: the token in front is gone


def test_without_extra_tokens_the_patches_alone_are_rebuilt():
    detector = saying([tokens_of(features_of(normal_pixels(1)), "group1")[:, 1:]] * 2, extra=())
    detector._rebuild(features_of(normal_pixels(1)))
    assert detector.network.shown.shape == (1, 64, 12) and detector.needs.layers == GROUPS


def test_linear_attention_is_attention_with_the_weights_phi_q_phi_k_over_their_sum():
    """Against the attention matrix written out, which is what the trick avoids."""
    query, key, value = (draw(2, 3, 7, 4, seed=seed) for seed in range(3))
    expected = torch.zeros(2, 3, 7, 4)
    for row in range(7):
        weights = [((F.elu(query[:, :, row]) + 1) * (F.elu(key[:, :, place]) + 1)).sum(dim=-1) for place in range(7)]
        for place, weight in enumerate(weights):
            expected[:, :, row] += (weight / sum(weights))[..., None] * value[:, :, place]
    torch.testing.assert_close(linear_attention(query, key, value), expected, rtol=1e-4, atol=1e-5)


def test_a_decoder_block_is_pre_norm_with_residuals_and_separate_heads():
    """With all weights zero a block is the identity; two heads are two attentions on half of the channels each."""
    block, tokens = LinearBlock(8, heads=2), draw(2, 5, 8)
    assert block.attention_norm.eps == block.mlp_norm.eps == 1e-8
    for layer in (block.project, block.mlp[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert torch.equal(block(tokens), tokens)
    block.project.weight.data = torch.eye(8)
    query, key, value = block.qkv(block.attention_norm(tokens)).split(8, dim=2)
    halves = [linear_attention(query[..., part], key[..., part], value[..., part]) for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(block(tokens), tokens + torch.cat(halves, dim=2), rtol=1e-4, atol=1e-5)


def test_the_bottleneck_is_noisy_at_its_input_inside_and_at_its_output_in_training_only():
    network = Reconstruction(16, depth=1, heads=4, dropout=0.2)
    assert [type(layer).__name__ for layer in network.bottleneck] == ["Dropout", "Linear", "GELU", "Dropout", "Linear", "Dropout"]
    assert {layer.p for layer in network.bottleneck if isinstance(layer, nn.Dropout)} == {0.2}
    tokens = draw(1, 400, 16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert (network.train().bottleneck(tokens) == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(network.eval().bottleneck(tokens), network.bottleneck(tokens))


@pytest.mark.parametrize(("width", "heads", "millions"), [(384, 6, 15.4), (768, 12, 61.4), (1024, 16, 109.1)])
def test_small_base_and_large_have_heads_of_64_and_eight_blocks(width, heads, millions):
    """By hand: 8 blocks of 12 d^2 + 13 d weights, and 8 d^2 + 5 d of the bottleneck."""
    with torch.device("meta"):
        network = Reconstruction(width, 8, width // Dinomaly().head_width, 0.2)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == 8 * (12 * width**2 + 13 * width) + 8 * width**2 + 5 * width
    assert network.blocks[0].heads == heads and parameters / 1e6 == pytest.approx(millions, abs=0.2)


# what implementations get wrong


def test_dinomaly_a_targets_are_detached_so_no_gradient_reaches_the_encoder():
    target, rebuilt = draw(2, 4, 3, 3).requires_grad_(), draw(2, 4, 3, 3, seed=1).requires_grad_()
    thin_out(target, rebuilt, 0.5, 0.1)
    global_cosine([target], [rebuilt]).mean().backward()
    assert target.grad is None and rebuilt.grad.abs().sum() > 0


def test_dinomaly_b_the_decoders_gradient_is_cut_to_a_tenth_at_the_best_rebuilt_positions_of_the_batch():
    """Two images of 2 positions, of which 1 - cos is 0.1, 0.2 | 0.3, 0.4. Half of them, counted over the batch, are those of the first image.
    The loss and its value are untouched."""
    cosines = torch.tensor([0.9, 0.8, 0.7, 0.6])
    rebuilt = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1).view(2, 2, 2).transpose(1, 2).unsqueeze(2).contiguous()  # (2, 2, 1, 2)
    target = torch.zeros_like(rebuilt)
    target[:, 0] = 1
    gradients, losses = [], []
    for share in (0.0, 0.5):
        ours = rebuilt.clone().requires_grad_()
        thin_out(target, ours, share, 0.1)
        loss = global_cosine([target], [ours]).mean()
        loss.backward()
        gradients.append(ours.grad)
        losses.append(loss.item())
    assert losses[0] == losses[1] == pytest.approx(1 - (0.85 + 0.65) / 2)  # cosine of both positions together: their mean, lengths being 1
    torch.testing.assert_close(gradients[1][0], 0.1 * gradients[0][0])
    assert torch.equal(gradients[1][1], gradients[0][1])


def test_dinomaly_b_the_share_grows_linearly_to_nine_tenths_over_a_thousand_steps():
    loose = Dinomaly().loose
    assert [loose.share_at(step) for step in (0, 500, 1000, 4000)] == pytest.approx([0, 0.45, 0.9, 0.9])


def test_dinomaly_b_each_training_step_thins_out_more_and_the_step_is_part_of_the_model(monkeypatch):
    seen = []
    monkeypatch.setattr("stages.detectors.distillation.dinomaly.thin_out", lambda target, ours, share, factor: seen.append((share, factor)))
    detector = make(steps=4, easy_steps=2).fit(ArrayBatches(features_of(normal_pixels(8))), None, Run(seed=0, quiet=True))
    assert seen == [(share, 0.1) for share in (0.0, 0.0, 0.45, 0.45, 0.9, 0.9, 0.9, 0.9)]
    assert detector.state_dict()["network.steps"].item() == 4


def test_dinomaly_c_every_linear_starts_truncated_at_three_sigma_of_001_and_every_bias_at_zero():
    network = Reconstruction(32, depth=2, heads=4, dropout=0.2)
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 2 + 2 * 4
    for linear in linears:
        assert linear.weight.abs().max() <= 0.03 and linear.weight.std().item() == pytest.approx(0.00987, rel=0.1)
        assert (linear.bias == 0).all()


def test_dinomaly_d_both_layers_of_every_mlp_have_a_bias_that_is_trained():
    detector = make().fit(ArrayBatches(features_of(normal_pixels(8))), None, Run(seed=0, quiet=True))
    names = [
        name for name in detector.state_dict() if name.endswith(("bottleneck.1.bias", "bottleneck.4.bias", "mlp.0.bias", "mlp.2.bias"))
    ]
    assert len(names) == 2 + 2 * 2
    assert all(detector.state_dict()[name].abs().sum() > 0 for name in names)


def test_dinomaly_e_map_and_score_are_of_the_blurred_map():
    features = features_of(normal_pixels(2))
    detector = saying([draw(2, 65, 12, seed=seed) for seed in (0, 1)])
    targets, rebuilt = detector._rebuild(features)
    cosine = [1 - F.cosine_similarity(target, ours, dim=1)[:, None] for target, ours in zip(targets, rebuilt, strict=True)]
    raw = torch.stack([F.interpolate(one, (32, 32), mode="bilinear", align_corners=True)[:, 0] for one in cosine]).mean(dim=0)
    _, anomaly_map = detector.score(features)
    torch.testing.assert_close(anomaly_map, blur(raw), rtol=1e-4, atol=1e-5)
    assert (anomaly_map - raw).abs().max() > 1e-2


def test_dinomaly_e_the_blur_is_a_gaussian_of_sigma_4_on_5_taps():
    """By hand: a point spreads as the outer product of exp(-k^2 / 32), normalised; a constant stays, up to the border."""
    weights = torch.tensor([k**2 / -32 for k in (-2, -1, 0, 1, 2)]).exp()
    weights /= weights.sum()
    point = torch.zeros(1, 9, 9)
    point[0, 4, 4] = 1
    torch.testing.assert_close(blur(point)[0, 2:7, 2:7], torch.outer(weights, weights))
    torch.testing.assert_close(blur(torch.ones(1, 6, 8)), torch.ones(1, 6, 8))


def test_dinomaly_f_the_score_is_the_mean_of_the_top_percent_at_256_px_whatever_the_size_of_the_image():
    """2 x 2 cells, one of which is not rebuilt at all: 655 of 65536 pixels, all in its corner."""
    features = {"pixels": torch.zeros(1, 3, 40, 40, dtype=torch.uint8), **{group: torch.ones(1, 2, 2, 2) for group in GROUPS}}
    answer = torch.ones(1, 4, 2)
    answer[0, 3] = torch.tensor([1.0, -1.0])  # orthogonal: 1 - cos = 1
    detector = saying([answer, answer], extra=(), map_size=256)
    image_score, anomaly_map = detector.score(features)
    cells = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    at_40 = F.interpolate(cells[:, None], (40, 40), mode="bilinear", align_corners=True)
    at_256 = blur(F.interpolate(at_40, (256, 256), mode="bilinear", align_corners=False)[:, 0])
    expected = at_256.flatten().sort(descending=True).values[:655].mean().item()
    assert image_score.item() == pytest.approx(expected, rel=1e-5)
    assert anomaly_map.shape == (1, 40, 40) and anomaly_map.argmax() == 40 * 40 - 1
    assert Dinomaly().map_size == 256 and Dinomaly().top_share == 0.01


# training


def test_stable_adamw_is_adamw_with_amsgrad_while_gradients_do_not_surprise_it():
    """Oracle: torch. Gradients that only shrink are never above their own second moment."""
    ours, theirs = (nn.Parameter(draw(5, 3)) for _ in range(2))
    one = StableAdamW([ours], lr=0.01, eps=1e-10, weight_decay=0.1)
    other = torch.optim.AdamW([theirs], lr=0.01, eps=1e-10, weight_decay=0.1, amsgrad=True)
    for step in range(6):
        ours.grad = draw(5, 3, seed=1) * 0.5**step
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


def test_stable_adamw_shortens_the_step_of_a_surprised_tensor_by_its_rms():
    """By hand, one number: gradients 1, then 3. v = 0.001, then 0.009999, unbiased 5.002; 3 / sqrt(5.002) = 1.3414 divides the step."""
    number = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimiser = StableAdamW([number], lr=0.1, eps=0.0, weight_decay=0.0)
    number.grad = torch.ones_like(number)
    optimiser.step()
    assert number.item() == pytest.approx(1.9)  # a first step is lr times the sign
    number.grad = 3 * torch.ones_like(number)
    optimiser.step()
    scale = (0.009999 / (1 - 0.999**2)) ** 0.5
    mean = (0.9 * 0.1 + 0.1 * 3) / (1 - 0.9**2)
    assert number.item() == pytest.approx(1.9 - 0.1 / (3 / scale) * mean / scale)
    assert 3 / scale == pytest.approx(1.3414, abs=1e-4)


def test_stable_adamw_remembers_the_largest_second_moment():
    number = nn.Parameter(torch.zeros(1))
    optimiser = StableAdamW([number], lr=0.1)
    for gradient in (5.0, *[0.0] * 50):
        number.grad = torch.tensor([gradient])
        optimiser.step()
    state = optimiser.state[number]
    assert state["largest_square"].item() == pytest.approx(0.001 * 25) and state["square"] < state["largest_square"]


def test_the_learning_rate_rises_over_100_steps_and_falls_to_a_tenth_along_a_cosine():
    detector = Dinomaly()
    factors = [detector._rate(step, 5000) for step in (0, 33, 99, 100, 2550, 4999)]
    assert factors == pytest.approx([0, 1 / 3, 1, 1, 0.55, 0.1], abs=1e-6)
    assert detector._rate(7, 8) == pytest.approx(1)  # shorter than the warm-up: no division by zero


def test_the_gradient_of_all_tensors_together_is_shortened_to_a_tenth():
    detector, weights = make(), [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))]
    optimiser = detector._optimiser(weights)
    for weight, size in zip(weights, (3.0, 4.0), strict=True):
        weight.grad = torch.zeros_like(weight)
        weight.grad[0] = size
    optimiser.step()
    norms = [weight.grad.norm().item() for weight in weights]
    assert norms == pytest.approx([0.06, 0.08], rel=1e-4)  # 3, 4 of 5


def test_the_optimiser_is_the_papers():
    group = Dinomaly()._optimiser([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (2e-3, (0.9, 0.999), 1e-8, 1e-4)


def test_training_rebuilds_better_than_it_began(run):
    make(steps=60).fit(ArrayBatches(features_of(normal_pixels(16))), None, run)
    assert run.history[-1]["loss"] < 0.2 * run.history[0]["loss"]


def test_the_kept_state_has_the_lowest_loss_on_held_out_normals_measured_again_by_hand(run):
    held_out = ArrayBatches(features_of(normal_pixels(6, seed=3)), batch_size=4)
    detector = make(steps=12, learning_rate=0.3).fit(ArrayBatches(features_of(normal_pixels(16))), held_out, run)
    best = min(run.history, key=lambda row: row["val_loss"])
    assert detector.steps_trained.item() == best["step"] and len(run.history) == 6
    loss = global_cosine(*detector._rebuild(held_out.features)).mean().item()
    assert loss == pytest.approx(best["val_loss"], rel=1e-4)


def test_training_stops_after_patience_epochs_without_a_better_one_and_not_by_itself(run, monkeypatch):
    values = iter([5.0, 4.0, 4.5, 4.2, 3.0])
    monkeypatch.setattr(Dinomaly, "_mean_loss", lambda self, batches, run: next(values))
    batches = ArrayBatches(features_of(normal_pixels(8)))
    detector = make(steps=5, patience=2).fit(batches, batches, run)
    assert len(run.history) == 4 and detector.steps_trained.item() == 2
    assert Dinomaly().patience is None


def test_without_held_out_images_every_step_is_run(run):
    nothing = ArrayBatches({key: value[:0] for key, value in features_of(normal_pixels(2)).items()})
    detector = make(steps=3).fit(ArrayBatches(features_of(normal_pixels(8))), nothing, run)
    assert detector.steps_trained.item() == 3 and "val_loss" not in run.history[0]


def test_pixels_play_no_part_in_fitting(run):
    features = features_of(normal_pixels(8))
    blank = {**features, "pixels": torch.zeros_like(features["pixels"])}
    one, other = (make().fit(ArrayBatches(given), None, Run(seed=0, quiet=True)) for given in (features, blank))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_interrupted_in_the_middle_it_ends_bit_for_bit_the_same(tmp_path):
    """The share of thinned out positions depends on the step, so the count must survive too."""
    batches, held_out = (ArrayBatches(features_of(normal_pixels(count, seed))) for count, seed in ((16, 1), (4, 2)))
    expected = make().fit(batches, held_out, Run(seed=0, quiet=True))

    class Breaks(ArrayBatches):
        def take(self, positions):
            if self.reads == 7:
                raise KeyboardInterrupt
            return super().take(positions)

    with pytest.raises(KeyboardInterrupt):
        make().fit(Breaks(batches.features), held_out, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0.0))
    resumed = make().fit(batches, held_out, Run(seed=0, quiet=True, resume=tmp_path))
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in expected.state_dict().items())


# options


def test_one_model_over_all_categories_is_asked_for_by_name():
    assert make().scope == "category" and make(multi_class=True).scope == "dataset" and Dinomaly.scope == "category"


def test_outside_of_what_the_encoder_saw_the_map_is_zero_and_inside_it_is_the_map():
    """The paper's 448 px, of which 392 are seen, in small: 32 and 28."""
    whole = features_of(normal_pixels(2))
    answer = [draw(2, 65, 12, seed=seed) for seed in (0, 1)]
    cropped = {**whole, "pixels": whole["pixels"][:, :, 2:30, 2:30]}
    inside, outside = saying(answer).score(cropped), saying(answer, seen=0.875).score(whole)
    assert torch.equal(outside.image_score, inside.image_score) and outside.anomaly_map.shape == (2, 32, 32)
    assert torch.equal(outside.anomaly_map[:, 2:30, 2:30], inside.anomaly_map)
    border = outside.anomaly_map.clone()
    border[:, 2:30, 2:30] = 0
    assert (border == 0).all() and inside.anomaly_map.min() > 0


def test_what_cannot_be_is_refused_with_what_would_do(run):
    with pytest.raises(ValueError, match=r"the groups must have one width and one grid, got \(12, 8, 8\), \(16, 4, 4\)"):
        make(layers=("layer2", "layer3"), extra=()).fit(ArrayBatches(features_of(normal_pixels(4))), None, run)
    with pytest.raises(ValueError, match="features are 12 wide, which heads of 64 do not divide; set head_width"):
        make(head_width=64).fit(ArrayBatches(features_of(normal_pixels(4))), None, run)
    with pytest.raises(ValueError, match="2 layers need as many extra ones, or none"):
        make(extra=("group1_extra",))
    with pytest.raises(ValueError, match="a depth that they divide"):
        make(depth=3)
    with pytest.raises(ValueError, match=r"seen must be in 0\.\.1"):
        make(seen=1.2)


@pytest.mark.slow
def test_with_a_real_dinov2_of_random_weights_the_whole_way_works(run):
    """The encoder kind vit, ViT-S with registers, as the configuration asks for it."""
    from stages.encoders.vit import ViT

    groups = {"group1": [2, 3, 4, 5], "group2": [6, 7, 8, 9]}
    network = ViT(
        backbone="vit_small_patch14_reg4_dinov2.lvd142m", layers=Dinomaly().needs.layers, weights="random", image_size=56, groups=groups
    )
    pixels = torch.nn.functional.interpolate(normal_pixels(4), (56, 56))
    features = {**network(pixels), "pixels": pixels}
    detector = Dinomaly(steps=2, batch_size=2).fit(ArrayBatches(features), None, run)
    image_score, anomaly_map = detector.score(features)
    assert len(detector.network.blocks) == 8 and detector.network.blocks[0].heads == 6
    assert image_score.isfinite().all() and anomaly_map.shape == (4, 56, 56)
