"""EfficientAD against its equations. The letters are those of the list of what implementations get wrong, in the order given there."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.detectors.distillation.efficientad import EfficientAD, colour_jitter, hard_feature_loss, penalty_view, quantile
from stages.detectors.distillation.maths.autoencoder import Autoencoder
from stages.encoders.pdn import PDN
from stages.training import Run
from stages.types import Refusal
from tests.arrays import ArrayBatches, noise_pixels, normal_pixels

SMALL = {"teacher_weights": "random", "width": 0.06, "padding": True, "steps": 20, "batch_size": 2, "learning_rate": 5e-3}
PENALTY = {"penalty": ArrayBatches({"pixels": noise_pixels(6)})}


def make(**options) -> EfficientAD:
    return EfficientAD(**{**SMALL, **options})


def session(seed: int = 0, **more) -> Run:
    return Run(seed=seed, quiet=True, **{"aux": PENALTY, **more})


def images(count: int = 8, seed: int = 0) -> ArrayBatches:
    return ArrayBatches({"pixels": normal_pixels(count, seed)})


@pytest.fixture(scope="module")
def fitted() -> EfficientAD:
    return make().fit(images(), images(6, seed=3), session())


def test_a_student_equal_to_its_normalised_teacher_has_a_zero_map(fitted):
    """The identity behind the method: copy the teacher, with mean and deviation folded into its last layer, into the student's first half."""
    detector = make()
    detector.load_state_dict({key: value.clone() for key, value in fitted.state_dict().items()})
    state = {key: value.clone() for key, value in detector.teacher.state_dict().items()}
    state["conv4.weight"] = torch.cat([state["conv4.weight"] / detector.std[:, None, None, None]] * 2)
    state["conv4.bias"] = torch.cat([(state["conv4.bias"] - detector.mean) / detector.std] * 2)
    detector.student.load_state_dict(state)
    student_map, autoencoder_map = detector.maps(normal_pixels(2))
    assert student_map.abs().max() < 1e-8 and autoencoder_map.min() > 1e-3


def test_channels_of_the_teacher_have_mean_zero_and_deviation_one_over_the_training_images(fitted):
    target = fitted._target(normal_pixels(8)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(target.mean(dim=1), torch.zeros(len(target)), atol=1e-4, rtol=0)
    torch.testing.assert_close(target.std(dim=1, correction=0), torch.ones(len(target)), atol=1e-4, rtol=0)


def test_hard_features_are_those_that_reach_the_quantile():
    """By hand: of 0..1999 the 0.999 quantile is 1997.001, so 1998 and 1999 count; with torch.quantile as oracle for other sizes."""
    assert hard_feature_loss(torch.arange(2000.0).view(1, 2, 10, 100)).item() == 1998.5
    for shape in ((1, 3, 7, 11), (1, 5, 20, 20), (1, 1, 1, 1)):
        values = torch.rand(shape, generator=torch.Generator().manual_seed(7)).round(decimals=2)  # with ties
        expected = values[values >= values.flatten().quantile(0.999)].mean()
        torch.testing.assert_close(hard_feature_loss(values), expected)


def test_the_map_is_the_mean_of_both_normalised_maps_and_a_quantile_is_where_the_paper_puts_it(fitted):
    """0.9 quantile -> 0, 0.995 quantile -> 0.1; upsampled from the grid, with no blur, its maximum the score."""
    pixels = normal_pixels(3, seed=5)
    parts = []
    for one, (low, high) in zip(fitted.maps(pixels), fitted.quantiles, strict=True):
        up = F.interpolate(one[:, None], (32, 32), mode="bilinear")[:, 0]
        parts.append(0.1 * (up - low) / (high - low))
    image_score, anomaly_map = fitted.score({"pixels": pixels})
    torch.testing.assert_close(anomaly_map, (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-5)
    assert torch.equal(image_score, anomaly_map.amax(dim=(1, 2)))


def test_without_padding_a_map_has_a_margin_of_zeros_before_it_is_normalised():
    """64 pixels: a grid of 8, with 4 cells around it 16 = 64 / 4, as the teacher's patches lie. Away from them the map knows nothing."""
    detector = make(padding=False, steps=1).fit(
        ArrayBatches({"pixels": torch.cat([noise_pixels(4)] * 4, dim=3)[:, :, :, :64].repeat(1, 1, 2, 1)}), None, session()
    )
    pixels = noise_pixels(1).repeat(1, 1, 2, 2)
    assert detector.maps(pixels)[0].shape == (1, 8, 8)
    corner = detector.score({"pixels": pixels}).anomaly_map[0, 0, 0]
    low, high = detector.quantiles.unbind(dim=1)
    torch.testing.assert_close(corner, (0.1 * -low / (high - low)).mean())


def test_efficientad_a_normalisation_is_inside_and_happens_once():
    """Levels 0..255 of the ImageNet mean give the network zeros, so only its biases are left; uint8 and float levels mean the same."""
    network = PDN(outputs=5, width=0.03)
    seen = []
    network.conv1.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    levels = torch.randint(256, (1, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(levels), network(levels.float()))
    expected = (levels / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(seen[0], expected)


def test_efficientad_b_batches_are_of_one_image_and_the_loss_of_more_is_the_mean_of_their_losses(fitted):
    assert EfficientAD(width=0.03).batch_size == 1
    levels, others = normal_pixels(4).float(), noise_pixels(4).float()
    together = torch.stack(fitted.losses(levels, levels, others))
    each = torch.stack([torch.stack(fitted.losses(*(part[place : place + 1] for part in (levels, levels, others)))) for place in range(4)])
    torch.testing.assert_close(together, each.mean(dim=0), rtol=1e-4, atol=1e-6)


def test_efficientad_c_quantiles_take_more_values_than_torch_quantile_does():
    values = torch.rand(1001, generator=torch.Generator().manual_seed(1))
    for q in (0.0, 0.9, 0.995, 1.0):
        assert quantile(values, q).item() == pytest.approx(np.quantile(values.numpy(), q), rel=1e-6)
    many = torch.zeros(2**24 + 8, dtype=torch.bool)
    many[-(2**21) :] = True  # an eighth
    assert quantile(many.float(), 0.9) == 1


def test_efficientad_d_quantiles_are_of_the_maps_of_held_out_images_before_they_are_normalised():
    """Not of the training images, and not of maps that old quantiles have touched: a second fit gives the same."""
    held_out = images(6, seed=3)
    detector = make(steps=3).fit(images(), held_out, session())
    maps = detector.maps(held_out.features["pixels"])
    expected = torch.stack([torch.stack([one.flatten().quantile(q) for q in (0.9, 0.995)]) for one in maps])
    torch.testing.assert_close(detector.quantiles, expected, rtol=1e-4, atol=1e-6)
    again = detector.quantiles.clone()
    assert torch.equal(detector.fit(images(), held_out, session()).quantiles, again)
    assert not torch.allclose(make(steps=3).fit(images(), None, session()).quantiles, again)


def test_efficientad_e_the_teacher_stays_frozen_and_is_given_no_gradient():
    detector = make(steps=3)
    before = {key: value.clone() for key, value in detector.teacher.state_dict().items()}
    detector.fit(images(), None, session())
    assert all(torch.equal(value, detector.teacher.state_dict()[key]) for key, value in before.items())
    assert not any(parameter.requires_grad for parameter in detector.teacher.parameters()) and not detector.training
    levels = normal_pixels(1)
    assert not detector._target(levels).requires_grad


def test_efficientad_e_the_autoencoder_learns_from_the_teacher_and_from_the_student(fitted):
    """No detach between autoencoder and student: each gets its gradient of the third loss, as in the paper's algorithm."""
    levels = normal_pixels(2).float()
    _, _, third = fitted.losses(levels, levels)
    of_autoencoder, of_student = torch.autograd.grad(third, [fitted.autoencoder.last.bias, fitted.student.conv4.bias])
    half = fitted.outputs
    assert of_autoencoder.abs().sum() > 0 and of_student[half:].abs().sum() > 0 and of_student[:half].abs().sum() == 0


def test_efficientad_f_without_padding_each_output_sees_one_whole_patch_of_33_pixels():
    """Off by default. 256 pixels give 56 outputs a side; the gradient of one output reaches 33 x 33 pixels of the image."""
    assert not EfficientAD(width=0.03).padding
    with torch.device("meta"):
        assert PDN()(torch.empty(1, 3, 256, 256)).shape == PDN(size="medium")(torch.empty(1, 3, 256, 256)).shape == (1, 384, 56, 56)
        assert (
            PDN(padding=True)(torch.empty(1, 3, 256, 256)).shape
            == PDN(size="medium", padding=True)(torch.empty(1, 3, 256, 256)).shape
            == (1, 384, 64, 64)
        )
    levels = torch.rand(1, 3, 65, 65, generator=torch.Generator().manual_seed(0)).mul(255).requires_grad_()
    network = PDN(outputs=4, width=0.1)
    torch.nn.init.constant_(network.conv1.bias, 50.0)  # every ReLU lets through
    torch.nn.init.constant_(network.conv2.bias, 50.0)
    torch.nn.init.constant_(network.conv3.bias, 50.0)
    [slope] = torch.autograd.grad(network(levels)[0, :, 4, 4].sum(), levels)
    rows = slope.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert (rows.min().item(), rows.max().item()) == (16, 16 + 33 - 1)
    with pytest.raises(ValueError, match="needs 33 pixels a side, these images have 32: give larger ones, or set padding"):
        network(torch.zeros(1, 3, 64, 32))


def test_efficientad_g_the_penalty_holds_the_student_back_where_images_are_of_other_things():
    """The loss includes the mean square of its first half there, and one run with it ends lower there than one without."""
    detector = make(steps=25)
    ends = []
    for weight in (1.0, 0.0):
        losses = detector.losses
        detector.losses = lambda levels, jittered, penalty, losses=losses, weight=weight: losses(
            levels, jittered, penalty if weight else None
        )
        detector.fit(images(), None, session())
        ends.append(detector._student(noise_pixels(6))[0].square().mean().item())
        del detector.losses
    assert ends[0] < 0.6 * ends[1]


def test_efficientad_g_without_penalty_images_it_is_refused_by_name():
    with pytest.raises(Refusal, match="run.aux has no images under 'penalty'"):
        make().fit(images(), None, session(aux={}))


def test_efficientad_g_a_penalty_image_is_the_middle_of_an_enlarged_one_grey_three_times_in_ten():
    view = penalty_view(noise_pixels(1).expand(400, -1, -1, -1), (32, 48), torch.Generator().manual_seed(0))
    assert view.shape == (400, 3, 32, 48)
    grey = (view[:, 0] - view[:, 2]).abs().amax(dim=(1, 2)) < 1e-3
    assert 0.22 < grey.float().mean() < 0.38
    large = F.interpolate(noise_pixels(1).float(), (64, 96), mode="bilinear")
    torch.testing.assert_close(view[~grey][0], large[0, :, 16:48, 24:72], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("side", "sizes"), [(256, [3, 8, 15, 32, 63, 127, 56]), (128, [1, 4, 7, 16, 31, 63, 24])])
def test_efficientad_h_the_decoder_grows_through_the_papers_sizes_and_scales_with_the_image(side, sizes):
    network = Autoencoder(6, 0.1, Autoencoder.bottleneck(torch.empty(1, 3, side, side))).eval()
    entered, seen = [], []
    for layer in network.decoder:
        layer.register_forward_pre_hook(lambda _module, inputs: entered.append(inputs[0].shape[2]))
    network.encoder[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape[2:])))
    assert network(torch.zeros(1, 3, side, side), (side // 4 - 8,) * 2).shape == (1, 6, side // 4 - 8, side // 4 - 8)
    assert entered == sizes and seen == [(1, 1)]


def test_jitter_is_one_of_three_by_hand():
    """Of one pixel (200, 100, 0) with grey 118.48 beside one of (0, 0, 0): brightness scales, contrast moves to the mean grey, saturation
    to the pixel's own."""
    image = torch.tensor([200.0, 100.0, 0.0]).view(3, 1, 1).repeat(1, 1, 2)
    image[:, :, 1] = 0
    grey = 0.2989 * 200 + 0.587 * 100
    seen = set()
    for seed in range(40):
        changed = colour_jitter(image[None], torch.Generator().manual_seed(seed))[0]
        assert changed.min() >= 0 and changed.max() <= 255
        red, green, blue = changed[:, 0, 0].tolist()
        if changed[0, 0, 1] > 0 or (blue > 0 and changed[2, 0, 1] > 0):
            factor = 1 - blue / (grey / 2)
            seen.add("contrast")
            assert red == pytest.approx(200 * factor + (1 - factor) * grey / 2, rel=1e-4)
        elif green == pytest.approx(red / 2, rel=1e-4) and blue == 0:
            seen.add("brightness")
            assert 0.8 <= red / 200 <= 1.2
        elif blue > 0:
            seen.add("saturation")
            assert (red - grey) / (200 - grey) == pytest.approx((green - grey) / (100 - grey), rel=1e-3)
    assert seen == {"contrast", "brightness", "saturation"}


def test_with_patience_the_kept_state_is_the_one_with_the_lowest_loss_on_held_out_images():
    held_out, run = images(5, seed=3), session()
    detector = make(steps=12, patience=100).fit(images(), held_out, run)
    rows = [row for row in run.history if "val_loss" in row]
    best = min(rows, key=lambda row: row["val_loss"])
    assert len(rows) == 3 and detector.steps_trained.item() == best["step"]
    assert detector._val_loss(held_out) == pytest.approx(best["val_loss"], rel=1e-5)


def test_the_learning_rate_falls_to_a_tenth_after_95_percent_of_the_steps():
    run = session()
    make(steps=20, batch_size=8, learning_rate=1e-3).fit(images(), None, run)
    assert [row["lr"] for row in run.history if "lr" in row] == [1e-3] * 19 + [pytest.approx(1e-4)]


def test_a_run_that_is_killed_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole = make(steps=6).fit(images(), None, session())
    detector = make(steps=6)
    taken, losses = [], detector.losses

    def killed(*args):
        taken.append(0)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return losses(*args)

    monkeypatch.setattr(detector, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        detector.fit(images(), None, session(resume=tmp_path, checkpoint_s=0))
    resumed = make(steps=6).fit(images(), None, session(resume=tmp_path, checkpoint_s=0))
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_missing_weights_of_the_teacher_are_a_refusal_that_says_how_to_make_them(tmp_path):
    detector = EfficientAD(width=0.25, teacher_weights="pdn-small-quarter")
    with pytest.raises(Refusal, match="assay weights distill-pdn pdn-small-quarter"):
        detector.fit(images(), None, session(backbones=tmp_path))


def test_the_medium_network_fits_and_scores():
    """PDN-M has six layers; everything else is the same."""
    detector = make(size="medium", steps=2).fit(images(4), None, session())
    assert len(list(detector.teacher.children())) == 6 and detector.score({"pixels": normal_pixels(2)}).image_score.isfinite().all()
