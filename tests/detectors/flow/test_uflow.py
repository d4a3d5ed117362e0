"""U-Flow against its equations. The letters are those of the list of what implementations get wrong, in the order given there."""

import math

import pytest
import torch
from torch import nn

from stages.detectors.flow.maths.a_contrario import block_log_nfa, tree_log_nfa
from stages.detectors.flow.maths.coupling import seeded
from stages.detectors.flow.uflow import UFlow, UShaped, doubled_grids
from stages.training import Run
from tests.arrays import LAYERS, SIZE, ArrayBatches, features_of, normal_pixels, plant_defect, upsampled

SMALL = {"steps": 20, "batch_size": 4, "learning_rate": 5e-3, "hidden_ratio": 0.7}  # for the contract test
CHANNELS, GRIDS = [3, 9], [(4, 2), (2, 1)]  # fine to coarse


def make(**options) -> UFlow:
    return UFlow(**{**SMALL, "steps": 4, **options})


def built(features, **options) -> UFlow:
    detector = make(**options)
    detector._build(torch.tensor([features[layer].shape[1:] for layer in detector.needs.layers]), seed=0)
    return detector.eval()


def shaken_flow() -> UShaped:
    with seeded(0):
        flow = UShaped(CHANNELS, 1.0, 2.0).double()
        for parameter in flow.parameters():
            parameter.data += 0.4 * torch.randn_like(parameter)
    return flow.requires_grad_(False)


def maps(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pairs = zip(CHANNELS, GRIDS, strict=True)
    return [torch.randn(count, width, *grid, generator=generator, dtype=torch.float64) for width, grid in pairs]


def test_the_inverse_undoes_the_u_shaped_flow():
    flow, x = shaken_flow(), maps()
    for back, values in zip(flow.inverse(flow(x)[0]), x, strict=True):
        torch.testing.assert_close(back, values)


def test_the_log_determinant_of_all_scales_together_is_autograds_so_bringing_channels_to_a_finer_grid_changes_no_volume():
    flow, x = shaken_flow(), maps()
    _, log_det = flow(x)
    fine = 3 * 8

    def packed(vector):
        latents, _ = flow([vector[:fine].view(1, 3, 4, 2), vector[fine:].view(1, 9, 2, 1)])
        return torch.cat([z.flatten() for z in latents])

    for image in range(2):
        jacobian = torch.autograd.functional.jacobian(packed, torch.cat([values[image].flatten() for values in x]))
        assert jacobian.shape == (fine + 18, fine + 18)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[image])


def test_ms_caits_two_scales_have_the_papers_sizes():
    """CaiT-S24's 384 x 14 x 14 is halved: z2 is 192 x 14 x 14; the rest comes as 48 x 28 x 28 to CaiT-M48's 768: z1 is 816 x 28 x 28."""
    flow = UShaped([768, 384], 0.02, 2.0)
    fine, coarse = flow([torch.zeros(1, 768, 28, 28), torch.zeros(1, 384, 14, 14)])[0]
    assert fine.shape == (1, 816, 28, 28) and coarse.shape == (1, 192, 14, 14)


def test_three_scales_of_a_cnn_pass_half_of_what_they_have_on():
    """ResNet-18: 256 -> 128 stay, 128 pass as 32; 128 + 32 -> 80 stay, 80 pass as 20; 64 + 20 = 84."""
    flow = UShaped([64, 128, 256], 0.1, 2.0)
    latents, _ = flow([torch.zeros(1, 64, 8, 8), torch.zeros(1, 128, 4, 4), torch.zeros(1, 256, 2, 2)])
    assert [tuple(z.shape[1:]) for z in latents] == [(84, 8, 8), (80, 4, 4), (128, 2, 2)]


def test_a_stage_is_four_coupling_layers_of_kernels_3_1_3_1():
    detector = built(features_of(normal_pixels(1)))
    for stage in detector.parts["flow"].stages:
        assert [layer.subnet[0].kernel_size for layer in stage.layers] == [(3, 3), (1, 1), (3, 3), (1, 1)]
        assert all(layer.clamp == 2.0 for layer in stage.layers)


def test_uflow_a_the_loss_sums_scales_and_averages_images():
    """anomalib sums half of z squared over the batch too."""
    features = features_of(normal_pixels(3))
    detector = built(features)
    latents, log_det = detector._latents(features)
    expected = sum(0.5 * (z**2).sum() for z in latents) / 3 - log_det.mean()
    batches = ArrayBatches(features)
    torch.testing.assert_close(detector._loss(batches.take([0, 1, 2]), torch.Generator()), expected)
    torch.testing.assert_close(detector._loss(batches.take([0, 1, 2] * 4), torch.Generator()), expected)


@pytest.mark.parametrize(("version", "threshold"), [("tree", tree_log_nfa), ("block", block_log_nfa)])
def test_uflow_b_the_threshold_is_below_0_at_a_defect_and_above_on_normal_images(version, threshold):
    """anomalib's mask is the complement. Latents as they should be: noise, and noise that is stronger in one place."""
    features = features_of(normal_pixels(2))
    detector = built(features)
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(2, width, *grid, generator=generator) for width, grid in ((30, (16, 16)), (20, (8, 8)), (16, (4, 4)))]
    latents[0][1, :, 9:14, 2:7] *= 4 * 4
    latents[1][1, :, 5:7, 1:3] *= 4
    detector._latents = lambda features: (latents, torch.zeros(2))
    log_nfa = detector.log_nfa(features, version)
    assert torch.equal(log_nfa, threshold(latents, (SIZE, SIZE)))
    assert (log_nfa[0] >= 0).all() and (log_nfa[1, :8, 24:] >= 0).all()
    assert (log_nfa[1, 20:26, 6:12] < 0).float().mean() > 0.7  # the most significant region may leave out the weakest cells of a defect


def test_uflow_c_another_image_size_is_refused_with_both_grids():
    features = features_of(normal_pixels(2))
    detector = built(features)
    features["layer3"] = features["layer3"][:, :, 1:]
    with pytest.raises(ValueError, match=r"layer3 was \[16, 4, 4\] in training and is \[16, 3, 4\]: give the model images of the size"):
        detector.score(features)


def test_grids_that_are_not_doubles_are_made_so_from_the_coarsest_up():
    assert doubled_grids([[8, 16, 14], [12, 8, 7], [16, 4, 4]]) == [[16, 16], [8, 8], [4, 4]]
    features = features_of(normal_pixels(2)[:, :, :, :28])
    detector = built(features)
    assert [tuple(z.shape[2:]) for z in detector._latents(features)[0]] == [(16, 16), (8, 8), (4, 4)]
    assert [tuple(norm.weight.shape) for norm in detector.parts["norms"]] == [(8, 16, 16), (12, 8, 8), (16, 4, 4)]


def test_the_map_is_1_minus_the_mean_likelihood_and_the_score_its_maximum():
    features = features_of(normal_pixels(2))
    detector = built(features)
    likelihoods = [upsampled((-0.5 * (z**2).mean(dim=1)).exp(), SIZE) for z in detector._latents(features)[0]]
    image_score, anomaly_map = detector.score(features)
    torch.testing.assert_close(anomaly_map, 1 - sum(likelihoods) / 3)
    assert torch.equal(image_score, anomaly_map.amax(dim=(1, 2)))


def test_each_layer_of_a_cnn_has_a_trainable_norm_and_a_transformers_has_none(run):
    batches = ArrayBatches(features_of(normal_pixels(8)))
    detector = make().fit(batches, None, run)
    assert all((norm.weight != 1).any() for norm in detector.parts["norms"])
    bare = built(batches.features, layers=("layer2", "layer3"), layer_norm=False)
    assert all(isinstance(norm, nn.Identity) for norm in bare.parts["norms"])
    assert len(bare._latents(batches.features)[0]) == 2


def test_the_learning_rate_falls_in_a_line_to_two_fifths(run):
    make(steps=10, learning_rate=1e-3).fit(ArrayBatches(features_of(normal_pixels(4))), None, run)
    assert [row["lr"] for row in run.history] == pytest.approx([1e-3 * (1 - 0.06 * step) for step in range(10)])


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
    values = iter([5.0, 4.0, 4.5, 4.0, 3.0])
    monkeypatch.setattr(UFlow, "_val_loss", lambda self, batches: next(values))
    make(steps=None, epochs=50, patience=2).fit(batches, batches, run)
    assert [row["val_loss"] for row in run.history] == [5.0, 4.0, 4.5, 4.0]


def test_training_longer_makes_normal_images_likelier_and_a_defect_stand_out():
    batches, held_out = ArrayBatches(features_of(normal_pixels(12))), normal_pixels(6, seed=4)
    margins, losses = [], []
    for steps in (1, 20):
        detector = make(steps=steps).fit(batches, None, Run(seed=0, quiet=True))
        losses.append(detector._val_loss(ArrayBatches(features_of(held_out))))
        normal, planted = (detector.score(features_of(pixels)) for pixels in (held_out, plant_defect(held_out)))
        margins.append((planted.anomaly_map[:, 20:26, 5:11].mean() - normal.anomaly_map.mean()).item())
    assert losses[1] < losses[0] - 500 and margins[1] > margins[0]


def test_the_loss_is_the_likelihood_of_all_scales_under_a_standard_normal_without_the_constant():
    features = {layer: values.float() for layer, values in zip(LAYERS, maps(), strict=False)}
    features["pixels"] = torch.zeros(2, 3, 8, 4)
    detector = built(features, layers=LAYERS[:2])
    latents, log_det = detector._latents(features)
    size = sum(z[0].numel() for z in latents)
    log_p = sum(torch.distributions.Normal(0, 1).log_prob(z).sum() for z in latents) / 2 + log_det.mean()
    got = detector._loss(ArrayBatches(features).take([0, 1]), torch.Generator())
    torch.testing.assert_close(got, -log_p - 0.5 * size * math.log(2 * math.pi), rtol=1e-4, atol=1e-3)


def test_defaults_and_too_few_channels():
    model = UFlow()
    assert (model.hidden_ratio, model.clamp, model.epochs, model.batch_size, model.weight_decay) == (1.0, 2.0, 200, 8, 1e-5)
    with pytest.raises(ValueError, match="at least 5; got 4"):
        UShaped([4, 4], 1.0, 2.0)
