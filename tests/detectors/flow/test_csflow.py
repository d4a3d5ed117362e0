"""CS-Flow against its equations. The letters are those of the list of what implementations get wrong, in the order given there."""

import math

import pytest
import torch

from stages.detectors.flow import csflow
from stages.detectors.flow.csflow import Block, CrossScale, CSFlow, clipped_adam, soft_clamp
from stages.training import Run
from tests.arrays import LAYERS, SIZE, ArrayBatches, features_of, normal_pixels, plant_defect, upsampled

SMALL = {"layers": LAYERS, "kernels": (3, 1), "hidden": 12, "steps": 24, "batch_size": 4, "learning_rate": 2e-2}  # for the contract test
WIDTHS, GRIDS = [4, 5, 6], [(4, 6), (2, 3), (1, 2)]  # odd numbers too, and a grid that is not half of the one before


def make(**options) -> CSFlow:
    return CSFlow(**{**SMALL, "steps": 4, **options})


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, with gains and weights away from the identity."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.double().parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module.requires_grad_(False)


def scales(count: int = 2, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(WIDTHS, GRIDS, strict=True)
    return [torch.randn(count, width, *grid, generator=generator, dtype=torch.float64) for width, grid in pairs]


def built(features, **options) -> CSFlow:
    detector = make(**options)
    detector._build(torch.tensor([features[layer].shape[1] for layer in detector.needs.layers]), seed=0)
    return detector.eval()


def packed(values: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([scale.flatten() for scale in values])


def unpacked(vector: torch.Tensor) -> list[torch.Tensor]:
    sizes = [width * height * breadth for width, (height, breadth) in zip(WIDTHS, GRIDS, strict=True)]
    return [part.view(1, width, *grid) for part, width, grid in zip(vector.split(sizes), WIDTHS, GRIDS, strict=True)]


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_inverse_undoes_a_block(kernel):
    block = shaken(Block(WIDTHS, 5, kernel, 3.0))
    x = scales()
    for back, values in zip(block.inverse(block(x)[0]), x, strict=True):
        torch.testing.assert_close(back, values)


def test_the_log_determinant_of_the_scales_together_is_autograds():
    """One Jacobian of all scales at once, since each is changed by what the others hold."""
    block, x = shaken(Block(WIDTHS, 5, 3, 3.0)), scales()
    _, log_det = block(x)
    for image in range(2):
        vector = packed([values[image : image + 1] for values in x])
        jacobian = torch.autograd.functional.jacobian(lambda values: packed(block(unpacked(values))[0]), vector)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[image])
        assert jacobian[: 4 * 24, 4 * 24 :].abs().max() > 0 and jacobian[4 * 24 :, : 4 * 24].abs().max() > 0  # both ways across scales


def test_a_new_block_only_permutes_channels_so_training_starts_at_the_identity():
    block, x = Block(WIDTHS, 5, 3, 3.0).double(), scales()
    y, log_det = block(x)
    for scale, values in enumerate(x):
        order = getattr(block, f"order{scale}")
        assert torch.equal(y[scale], values[:, order]) and sorted(order.tolist()) == list(range(WIDTHS[scale]))
    assert torch.equal(log_det, torch.zeros(2))


def test_a_coupling_by_hand():
    """One scale of one position with channels 2 and 3, constant networks: s = 0.5 and t = 1 for the first, s = -0.25 and t = 2 for the
    second. 2 exp(clamp(0.5)) + 1 and 3 exp(clamp(-0.25)) + 2."""
    block = Block([2], 1, 1, 3.0)
    block.order0 = torch.tensor([0, 1])
    for network, constants in ((block.by_second, [0.5, 1.0]), (block.by_first, [-0.25, 2.0])):
        network.gain.data.fill_(1)
        network.outer[0].weight.data.zero_()
        network.outer[0].bias.data = torch.tensor(constants)
    (y,), log_det = block([torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)])
    s1, s2 = (6 / math.pi * math.atan(s / 3) for s in (0.5, -0.25))
    torch.testing.assert_close(y.flatten(), torch.tensor([2 * math.exp(s1) + 1, 3 * math.exp(s2) + 2]))
    torch.testing.assert_close(log_det, torch.tensor([s1 + s2]))


def test_the_second_half_is_moved_by_the_new_first_half():
    """A coupling by the old one could be undone too, but only the new one makes a block of two steps."""
    block = Block([2], 1, 1, 3.0)
    block.order0 = torch.tensor([0, 1])
    network = block.by_second
    network.gain.data.fill_(1)
    network.outer[0].weight.data.zero_()
    network.outer[0].bias.data = torch.tensor([0.0, 10.0])  # the first half becomes 2 + 10
    seen = []
    block.by_first.forward = lambda values: seen.append(values[0].item()) or [torch.zeros(1, 2, 1, 1)]
    block([torch.tensor([2.0, 3.0]).view(1, 2, 1, 1)])
    assert seen == [12.0]


def test_the_soft_clamp_has_slope_2_over_pi_and_never_reaches_alpha():
    values = torch.tensor([-1e9, -3.0, 0.0, 1e-4, 1e9], dtype=torch.float64)
    got = soft_clamp(values, 3.0)
    torch.testing.assert_close(got, torch.tensor([-3.0, -1.5, 0.0, 2 / math.pi * 1e-4, 3.0], dtype=torch.float64))


def test_what_crosses_scales_is_upsampled_before_and_strided_in_its_convolution():
    """Only the paths across are open: 1x1 convolutions of 1, so the coarse value arrives at all four fine cells, and the fine cell that a
    stride of 2 meets arrives at the coarse one."""
    network = CrossScale([1, 1], [1, 1], 1, 1)
    for name, parameter in network.named_parameters():
        parameter.data.fill_(1.0 if name.endswith("weight") or name == "gain" else 0.0)
    for outer in network.outer:
        outer.weight.data.zero_()
    fine, coarse = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None], torch.full((1, 1, 1, 1), 7.0)
    given = network([fine, coarse])
    assert torch.equal(given[0], torch.full((1, 1, 2, 2), 7.0)) and given[1].item() == 1.0
    assert network([-fine, coarse])[1].item() == pytest.approx(-0.1)  # the slope of the leaky ReLU


def test_csflow_a_the_log_determinant_is_each_images_own_so_the_loss_does_not_grow_with_the_batch():
    """anomalib subtracts the sum over the batch from every image, B times too much."""
    features = features_of(normal_pixels(3))
    detector = built(features)
    shaken(detector.blocks).float()
    batches = ArrayBatches(features)
    once = detector._loss(batches.take([0, 1, 2]), torch.Generator())
    torch.testing.assert_close(detector._loss(batches.take([0, 1, 2] * 4), torch.Generator()), once)
    alone = [detector._loss(batches.take([place]), torch.Generator()) for place in range(3)]
    torch.testing.assert_close(torch.stack(alone).mean(), once)


def test_csflow_a_the_loss_is_the_mean_negative_log_likelihood_for_each_dimension():
    """Against torch.distributions, the constant taken out."""
    features = {layer: values.float() for layer, values in zip(LAYERS, scales(), strict=True)}
    detector = built(features)
    shaken(detector.blocks).float()
    latents, log_det = detector._latents(features)
    size = sum(z[0].numel() for z in latents)
    log_p = sum(torch.distributions.Normal(0, 1).log_prob(z).sum() for z in latents) / 2 + log_det.mean()
    got = detector._loss(ArrayBatches({**features, "pixels": torch.zeros(2, 3, 8, 8)}).take([0, 1]), torch.Generator())
    torch.testing.assert_close(got, -log_p / size - 0.5 * math.log(2 * math.pi))


def test_csflow_b_any_image_size_will_do_also_one_that_is_no_multiple_of_128(run):
    """Grids of 4x6, 2x3 and 1x2, then other images with grids of 5x3, 3x2 and 2x1: fully convolutional."""
    features = {layer: values.float() for layer, values in zip(LAYERS, scales(6), strict=True)}
    detector = make().fit(ArrayBatches({**features, "pixels": torch.zeros(6, 3, 9, 13, dtype=torch.uint8)}), None, run)
    grids = zip(LAYERS, WIDTHS, [(5, 3), (3, 2), (2, 1)], strict=True)
    others = {layer: torch.zeros(2, width, *grid) for layer, width, grid in grids}
    image_score, anomaly_map = detector.score({**others, "pixels": torch.zeros(2, 3, 11, 7, dtype=torch.uint8)})
    assert anomaly_map.shape == (2, 11, 7) and image_score.isfinite().all()


def test_csflow_c_what_a_block_gives_is_bounded_so_a_strange_image_has_a_finite_score():
    features = features_of(normal_pixels(2))
    detector = built(features)
    shaken(detector.blocks).float()
    strange = {name: values if name == "pixels" else values * 1e30 for name, values in features.items()}
    image_score, anomaly_map = detector.score(strange)
    assert image_score.isfinite().all() and anomaly_map.isfinite().all()
    assert max(z.abs().max() for z in detector._latents(strange)[0]) == csflow.BOUND


def test_csflow_d_training_reads_stored_maps_and_never_looks_at_pixels():
    batches = ArrayBatches(features_of(normal_pixels(6)))
    one = make().fit(batches, None, Run(seed=0, quiet=True))
    batches.features["pixels"] = torch.zeros_like(batches.features["pixels"])
    other = make().fit(batches, None, Run(seed=0, quiet=True))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def test_the_score_is_the_mean_of_half_z_squared_over_all_dimensions_and_the_map_a_mean_over_scales():
    features = features_of(normal_pixels(3))
    detector = built(features)
    shaken(detector.blocks).float()
    latents, _ = detector._latents(features)
    image_score, anomaly_map = detector.score(features)
    sums, sizes = sum((z**2).sum(dim=(1, 2, 3)) / 2 for z in latents), sum(z[0].numel() for z in latents)
    torch.testing.assert_close(image_score, sums / sizes)
    torch.testing.assert_close(anomaly_map, sum(upsampled((z**2).mean(dim=1) / 2, SIZE) for z in latents) / 3)


def test_gradients_are_scaled_down_to_norm_1_before_adam_sees_them():
    """Of length 5, they become (3/5, 4/5), and the first step of Adam is lr g / (|g| + 1e-4). Shorter ones stay as they are."""
    for slope, used in (((3.0, 4.0), (0.6, 0.8)), ((0.003, 0.004), (0.003, 0.004))):
        value = torch.nn.Parameter(torch.zeros(2))
        optimiser = clipped_adam([value], lr=0.1, weight_decay=0.0, clip_norm=1.0)
        value.grad = torch.tensor(slope)
        optimiser.step()
        torch.testing.assert_close(value.detach(), torch.tensor([-0.1 * g / (g + 1e-4) for g in used]), rtol=1e-4, atol=0)


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path):
    features = features_of(normal_pixels(8))
    whole = make(steps=6).fit(ArrayBatches(features), None, Run(seed=0, quiet=True))
    dying = ArrayBatches(features)
    take = dying.take
    dying.take = lambda positions: take(positions) if dying.reads < 4 else exit()
    with pytest.raises(SystemExit):
        make(steps=6).fit(dying, None, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0))
    batches = ArrayBatches(features)
    resumed = make(steps=6).fit(batches, None, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0))
    assert batches.reads == 1 + 3
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_the_kept_state_is_the_one_with_the_lowest_loss_on_held_out_normals(run, monkeypatch):
    batches = ArrayBatches(features_of(normal_pixels(8)))
    two_epochs = make(steps=None, epochs=2).fit(batches, None, Run(seed=0, quiet=True))
    values = iter([5.0, 4.0, 4.5, 4.0, 3.0])
    monkeypatch.setattr(CSFlow, "_val_loss", lambda self, batches: next(values))
    stopped = make(steps=None, epochs=50, patience=2).fit(batches, batches, run)
    assert [row["val_loss"] for row in run.history] == [5.0, 4.0, 4.5, 4.0]
    assert all(torch.equal(value, stopped.state_dict()[key]) for key, value in two_epochs.state_dict().items())


def test_training_longer_makes_a_defect_stand_out():
    batches, held_out = ArrayBatches(features_of(normal_pixels(12))), normal_pixels(6, seed=4)
    ratios = []
    for steps in (1, 24):
        detector = make(steps=steps).fit(batches, None, Run(seed=0, quiet=True))
        normal, planted = (detector.score(features_of(pixels)).image_score for pixels in (held_out, plant_defect(held_out)))
        ratios.append((planted / normal).min())
    assert ratios[1] > 3 * ratios[0]


def test_the_papers_defaults_and_what_is_refused():
    model = CSFlow()
    assert (model.kernels, model.hidden, model.clamp, model.clip_norm) == ((3, 3, 3, 5), 1024, 3.0, 1.0)
    assert (model.epochs, model.batch_size, model.learning_rate, model.weight_decay) == (4 * 60, 16, 2e-4, 1e-5)
    with pytest.raises(ValueError, match=r"odd numbers, one for each block; got \[3, 4\]"):
        CSFlow(kernels=(3, 4))
    features = features_of(normal_pixels(2))
    detector = built(features)
    features["layer2"] = features["layer2"][:, :5]
    with pytest.raises(ValueError, match=r"channels were \[8, 12, 16\] in training and are \[8, 5, 16\]"):
        detector.score(features)
