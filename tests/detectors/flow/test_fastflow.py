"""FastFlow against its equations. The letters are those of the list of what implementations get wrong, in the order given there."""

import math

import pytest
import torch
from torch import nn

from stages.detectors.flow.fastflow import FastFlow
from stages.training import Run
from tests.arrays import LAYERS, SIZE, ArrayBatches, features_of, grid_features, normal_pixels, plant_defect, upsampled

SMALL = {"depth": 3, "steps": 24, "batch_size": 4, "learning_rate": 5e-3}  # for the contract test


def make(**options) -> FastFlow:
    return FastFlow(**{**SMALL, "steps": 4, **options})


def built(features, **options) -> FastFlow:
    """With weights as they are drawn, which is enough for what follows from the equations."""
    detector = make(**options)
    detector._build(torch.tensor([features[layer].shape[1:] for layer in detector.needs.layers]), seed=0)
    return detector.eval()


def as_density(detector: FastFlow, features) -> torch.Tensor:
    """-log p of each image by torch.distributions and the Jacobian of autograd, of all layers together."""
    total = torch.zeros(len(features["pixels"]))
    for layer, part in zip(detector.needs.layers, detector.flows, strict=True):
        values = part["norm"](features[layer])
        for place, image in enumerate(values):
            forward = lambda x, flow=part["flow"]: flow(x[None])[0][0]  # noqa: E731
            jacobian = torch.autograd.functional.jacobian(forward, image.detach()).reshape(image.numel(), -1)
            log_p = torch.distributions.Normal(0, 1).log_prob(forward(image)).sum() + torch.linalg.slogdet(jacobian).logabsdet
            total[place] -= log_p.detach()
    return total


def test_the_loss_is_the_negative_log_likelihood_of_the_maps_without_the_constant():
    """Change of variables: checked against torch.distributions and autograd's Jacobian."""
    features = grid_features(3, width=4, grid=(3, 2))
    detector = built(features, layers=("layer2",))
    expected = as_density(detector, features).mean() - 4 * 3 * 2 / 2 * math.log(2 * math.pi)
    got = detector._loss(ArrayBatches(features).take([0, 1, 2]), torch.Generator())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_the_loss_sums_layers_and_averages_images():
    features = features_of(normal_pixels(3))
    detector = built(features)
    parts = [(0.5 * z.square()).sum() / 3 - log_det.mean() for z, log_det in detector._latents(features)]
    batches = ArrayBatches(features)
    torch.testing.assert_close(detector._loss(batches.take([0, 1, 2]), torch.Generator()), sum(parts))
    torch.testing.assert_close(detector._loss(batches.take([0, 1, 2, 0, 1, 2]), torch.Generator()), sum(parts))


def test_the_map_is_minus_the_mean_likelihood_and_the_score_its_maximum():
    features = features_of(normal_pixels(2))
    detector = built(features)
    maps = [upsampled(-(-0.5 * (z**2).mean(dim=1)).exp(), SIZE) for z, _ in detector._latents(features)]
    image_score, anomaly_map = detector.score(features)
    torch.testing.assert_close(anomaly_map, sum(maps) / 3)
    assert torch.equal(image_score, anomaly_map.amax(dim=(1, 2))) and anomaly_map.min() >= -1 and anomaly_map.max() <= 0


def test_the_likelihood_by_hand():
    """z of 1 and 3 at one position: the mean square is 5, so the map is -exp(-2.5) everywhere, whatever the size."""
    features = grid_features(1, width=2, grid=(1, 1))
    detector = built(features, layers=("layer2",))
    detector._latents = lambda features: [(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1), torch.zeros(1))]
    image_score, anomaly_map = detector.score(features)
    torch.testing.assert_close(anomaly_map, torch.full((1, SIZE, SIZE), -math.exp(-2.5)))
    assert image_score.item() == pytest.approx(-math.exp(-2.5))


def test_fastflow_a_depth_and_width_are_options_so_a_transformer_has_20_steps_of_ratio_0_16():
    """anomalib keeps 8 steps of ratio 1 for all backbones. 50 of 100 channels pass; 0.16 of them are 8."""
    features = grid_features(2, width=100, grid=(3, 3))
    detector = built(features, layers=("layer2",), depth=20, hidden_ratio=0.16, layer_norm=False)
    steps = detector.flows[0]["flow"].layers
    assert len(steps) == 20 and {step.subnet[0].out_channels for step in steps} == {8}
    assert isinstance(detector.flows[0]["norm"], nn.Identity)
    assert (FastFlow().depth, FastFlow().hidden_ratio, FastFlow().clamp) == (8, 1.0, 2.0)


@pytest.mark.parametrize(("only_3x3", "kernels"), [(False, [3, 1, 3, 1, 3]), (True, [3] * 5)])
def test_fastflow_a_kernels_of_3_and_1_alternate_unless_only_3x3_is_asked_for(only_3x3, kernels):
    detector = built(features_of(normal_pixels(1)), depth=5, only_3x3=only_3x3)
    for part in detector.flows:
        assert [convolution.kernel_size[0] for step in part["flow"].layers for convolution in step.subnet[::2]] == [
            kernel for kernel in kernels for _ in range(2)
        ]


def test_fastflow_b_each_layer_passes_a_trainable_norm_over_channels_rows_and_columns(run):
    features = features_of(normal_pixels(8))
    detector = make().fit(ArrayBatches(features), None, run)
    for layer, part in zip(LAYERS, detector.flows, strict=True):
        assert part["norm"].weight.shape == features[layer].shape[1:]
        assert (part["norm"].weight != 1).any() and (part["norm"].bias != 0).any()
    untouched = built(features)
    louder = {**features, **{layer: 5 * features[layer] for layer in LAYERS}}  # the norm takes out what a whole map is scaled by
    torch.testing.assert_close(untouched.score(louder).anomaly_map, untouched.score(features).anomaly_map, rtol=0, atol=5e-3)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_fastflow_b_another_image_size_is_refused_with_both_grids(layer_norm):
    features = features_of(normal_pixels(2))
    detector = built(features, layer_norm=layer_norm)
    features["layer2"] = features["layer2"][:, :, :-1]
    with pytest.raises(ValueError, match=r"layer2 was \[12, 8, 8\] in training and is \[12, 7, 8\]: give the model images of the size"):
        detector.score(features)


def test_fastflow_c_tokens_are_a_map_like_any_other_so_one_layer_without_a_norm_trains(run):
    """What the encoder gives for a transformer: patch tokens alone, on their grid."""
    features = grid_features(12, width=16, grid=(4, 4))
    options = {"layers": ("layer2",), "depth": 6, "hidden_ratio": 0.4, "layer_norm": False}
    detector = make(**options, steps=40, batch_size=12).fit(ArrayBatches(features), None, run)
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 10
    strange = {**features, "layer2": features["layer2"] + 3}
    assert detector.score(strange).image_score.min() > detector.score(features).image_score.max()


def test_the_optimiser_is_adam_with_the_papers_rate_and_decay():
    """One step of Adam moves every parameter by the rate times the sign of its slope, weight decay included in the slope."""
    features = features_of(normal_pixels(4))
    options = {"learning_rate": 1e-3, "weight_decay": 1e-5}
    trained = make(**options, steps=1, batch_size=4).fit(ArrayBatches(features), None, Run(seed=0, quiet=True))
    start = make(**options)
    from stages.seed import derive

    start._build(trained.shapes, derive(0, "flows"))
    start._loss(ArrayBatches(features).take([0, 1, 2, 3]), torch.Generator()).backward()
    defaults = FastFlow()
    assert (defaults.learning_rate, defaults.weight_decay, defaults.epochs, defaults.batch_size) == (1e-3, 1e-5, 500, 32)
    for name, value in start.flows.named_parameters():
        slope = value.grad + 1e-5 * value.detach()
        expected = value.detach() - 1e-3 * slope / (slope.abs() + 1e-8)
        sure = slope.abs() > 1e-3  # where rounding cannot turn the sign
        torch.testing.assert_close(trained.flows.get_parameter(name).detach()[sure], expected[sure], rtol=0, atol=1e-5)


def test_the_kept_state_is_the_one_with_the_lowest_loss_on_held_out_normals_and_training_stops_early(run, monkeypatch):
    """The best is that of the second epoch, so the state is the one that a training of two epochs ends with."""
    batches = ArrayBatches(features_of(normal_pixels(8)))
    two_epochs = make(steps=None, epochs=2).fit(batches, None, Run(seed=0, quiet=True))
    values = iter([5.0, 4.0, 4.5, 4.0, 3.0])
    monkeypatch.setattr(FastFlow, "_val_loss", lambda self, batches: next(values))
    stopped = make(steps=None, epochs=50, patience=2).fit(batches, batches, run)
    assert [row["val_loss"] for row in run.history] == [5.0, 4.0, 4.5, 4.0]
    assert all(torch.equal(value, stopped.state_dict()[key]) for key, value in two_epochs.state_dict().items())


def test_the_held_out_loss_is_a_mean_over_images_whatever_the_batches():
    features = features_of(normal_pixels(5))
    detector = built(features)
    expected = detector._loss(ArrayBatches(features).take([0, 1, 2, 3, 4]), torch.Generator()).item()
    assert detector._val_loss(ArrayBatches(features, batch_size=3)) == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path):
    batches = ArrayBatches(features_of(normal_pixels(8)))
    whole = make(steps=6).fit(batches, None, Run(seed=0, quiet=True))

    class Killed(Exception):
        pass

    class Dying(ArrayBatches):
        def take(self, positions):
            if self.reads == 4:
                raise Killed
            return super().take(positions)

    with pytest.raises(Killed):
        make(steps=6).fit(Dying(batches.features), None, Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0))
    run = Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0)
    batches.reads = 0
    resumed = make(steps=6).fit(batches, None, run)
    assert batches.reads == 1 + 3  # the shapes, then the steps that were left
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_training_longer_makes_normal_images_likelier_and_a_defect_stand_out():
    batches, held_out = ArrayBatches(features_of(normal_pixels(12))), normal_pixels(6, seed=4)
    margins, losses = [], []
    for steps in (1, 24):
        detector = make(steps=steps).fit(batches, None, Run(seed=0, quiet=True))
        losses.append(detector._val_loss(ArrayBatches(features_of(held_out))))
        normal, planted = (detector.score(features_of(pixels)) for pixels in (held_out, plant_defect(held_out)))
        margins.append((planted.anomaly_map[:, 20:26, 5:11].mean() - normal.anomaly_map.mean()).item())
    assert losses[1] < losses[0] - 1000 and margins[1] > margins[0]


def test_no_coupling_layers_are_refused():
    with pytest.raises(ValueError, match="depth must be at least 1 coupling layer, got 0"):
        FastFlow(depth=0)
