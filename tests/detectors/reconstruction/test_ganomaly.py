"""GANomaly against its paper. The letters are those of the list of what implementations get wrong, in the order given there."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.detectors.reconstruction.ganomaly import GANomaly, Generator, Rivals, decoder, encoder
from stages.detectors.reconstruction.maths.unet import initialised
from stages.training import Run
from tests.arrays import ArrayBatches, normal_pixels

SMALL = {"latent": 16, "width": 4, "steps": 100, "batch_size": 6, "learning_rate": 5e-3}  # for the contract test
TINY = SMALL | {"width": 2, "latent": 3, "steps": 3}


def images_of(count: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) - 1


def rivals_of(side: int = 32, seed: int = 0) -> Rivals:
    return initialised(lambda: Rivals(side, 3, 2), seed, scale=0.2).train()


def started(**options) -> GANomaly:
    detector = GANomaly(**TINY | options)
    detector.side = torch.tensor([32])
    return detector


def batch_of(pixels: torch.Tensor):
    return ArrayBatches({"pixels": pixels}).take(list(range(len(pixels))))


class Fixed(nn.Module):
    """A generator that answers with what it is given here."""

    def __init__(self, drawn, code, second_code) -> None:
        super().__init__()
        self.answer, self.weight, self.seen = (drawn, code, second_code), nn.Parameter(torch.zeros(1)), []

    def forward(self, images):
        self.seen.append(images)
        return self.answer


def test_the_score_is_the_mean_squared_difference_of_the_codes_and_there_is_no_map():
    """By hand: differences 1, 2 and 3 give 14 / 3; equal codes give 0."""
    code = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    second = torch.tensor([[0.0, 4.0, 6.0], [5.0, 5.0, 5.0]])
    detector = started()
    detector.generator, detector.steps_trained = Fixed(None, code, second), torch.tensor([1])
    image_score, anomaly_map = detector.score({"pixels": normal_pixels(2)})
    assert image_score.tolist() == pytest.approx([14 / 3, 0.0]) and anomaly_map is None


def test_ganomaly_a_the_adversarial_loss_compares_features_not_verdicts():
    """With weight on it alone, the generator's part of the loss is the mean squared difference of the last features but one."""
    detector, rivals = started(adversarial=1.0, contextual=0.0, encoding=0.0), rivals_of()
    pixels = normal_pixels(4)
    loss = detector._loss(rivals, batch_of(pixels), torch.Generator())
    images = pixels / 127.5 - 1
    drawn = rivals.generator(images)[0]
    features = [rivals.features(shown) for shown in (images, drawn)]
    expected = (features[0] - features[1]).square().mean() + rivals.discriminator_loss(images, drawn)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert features[0].shape == (4, 8, 4, 4)  # 4 x 4 positions, not one number


def test_ganomaly_a_the_codes_are_compared_by_squares_and_the_pixels_by_absolute_values():
    """By hand: pixels half a unit off at weight 50, codes 3 apart at weight 1: 25 + 9. A smooth L1 would give 2.5 for the codes."""
    images, zero = torch.zeros(2, 3, 32, 32), torch.zeros(2, 3)
    errors = started()._errors(images, images + 0.5, zero, zero + 3)
    assert errors.tolist() == pytest.approx([34.0, 34.0])


def test_ganomaly_a_the_first_convolution_pads_by_one_so_the_grid_is_halved_exactly():
    layers = encoder(64, 7, 2)
    value, sides = images_of(side=64), []
    for layer in layers:
        value = layer(value)
        if isinstance(layer, nn.Conv2d):
            sides.append(value.shape[-1])
    assert sides == [32, 16, 8, 4, 1] and value.shape == (3, 7, 1, 1)


def test_ganomaly_a_a_discriminator_that_has_won_starts_anew():
    rivals = rivals_of()
    before = rivals.verdict.weight.clone()
    for loss, changes in ((1e-4, False), (0.9e-5, True)):
        rivals.last_loss = torch.tensor([loss])
        rivals.restart_if_exhausted(torch.Generator().manual_seed(0))
        assert torch.equal(before, rivals.verdict.weight) is not changes
    assert rivals_of(side=256).verdict.weight.std() > 0.1  # as it was made here; the paper's 0.02 is what it starts anew with:
    assert rivals.features[2].weight.std().item() == pytest.approx(0.02, rel=0.25)
    kept = rivals_of().generator.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in rivals.generator.state_dict().items())


def test_ganomaly_a_the_loss_of_the_last_step_is_remembered_in_the_state_that_a_checkpoint_keeps():
    detector, rivals = started(), rivals_of()
    detector._loss(rivals, batch_of(normal_pixels(4)), torch.Generator())
    images = normal_pixels(4) / 127.5 - 1
    expected = rivals.discriminator_loss(images, rivals.generator(images)[0])
    torch.testing.assert_close(rivals.state_dict()["last_loss"][0], expected.detach(), rtol=1e-5, atol=1e-6)


def test_ganomaly_b_black_is_minus_one_and_white_is_one_as_the_drawing_can_be():
    detector = started()
    detector.generator, detector.steps_trained = Fixed(None, torch.zeros(1, 3), torch.zeros(1, 3)), torch.tensor([1])
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[:, :, :, 16:] = 255
    detector.score({"pixels": pixels})
    (seen,) = detector.generator.seen
    assert seen.min() == -1 and seen.max() == 1 and isinstance(decoder(32, 3, 2)[-1], nn.Tanh)


def test_ganomaly_c_weights_start_as_the_papers():
    made = initialised(lambda: Rivals(32, 16, 16), seed=0)
    parts = list(made.modules())
    weights = torch.cat([part.weight.flatten() for part in parts if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)])
    norms = torch.cat([part.weight for part in parts if isinstance(part, nn.BatchNorm2d)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02) and norms.mean().item() == pytest.approx(1, abs=0.01)
    assert norms.std().item() == pytest.approx(0.02, rel=0.2)
    assert all(part.bias is None for part in parts if isinstance(part, nn.Conv2d | nn.ConvTranspose2d))


@pytest.mark.parametrize(("size", "side"), [((32, 28), 32), ((33, 20), 64), ((9, 5), 16)])
def test_ganomaly_d_an_image_is_padded_to_the_square_of_the_next_power_of_two(size, side):
    pixels = torch.randint(0, 256, (4, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    detector = GANomaly(**TINY | {"steps": 1}).fit(ArrayBatches({"pixels": pixels}), None, Run(seed=0, quiet=True))
    assert detector.side.item() == side and detector._images({"pixels": pixels}).shape == (4, 3, side, side)
    assert detector.score({"pixels": pixels}).image_score.isfinite().all()


def test_ganomaly_d_larger_images_than_it_was_built_for_are_refused():
    detector = GANomaly(**TINY | {"steps": 1}).fit(ArrayBatches({"pixels": normal_pixels(4)}), None, Run(seed=0, quiet=True))
    with pytest.raises(ValueError, match=r"built for 32 pixels a side, but these images have \(40, 32\)"):
        detector.score({"pixels": torch.zeros(1, 3, 40, 32, dtype=torch.uint8)})


def test_each_rival_gets_the_gradients_of_its_own_loss_alone():
    """One backward pass through the sum equals two passes through each rival's own loss."""
    detector, pixels = started(), normal_pixels(4)
    images = pixels / 127.5 - 1
    rivals = rivals_of()
    detector._loss(rivals, batch_of(pixels), torch.Generator()).backward()
    alone = rivals_of()
    drawn, code, second = alone.generator(images)
    own = alone.generator.parameters()
    deceives = F.mse_loss(alone.features(drawn), alone.features(images))
    gradients = torch.autograd.grad(deceives + detector._errors(images, drawn, code, second).mean(), list(own))
    for parameter, expected in zip(rivals.generator.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    judges = [*alone.features.parameters(), *alone.verdict.parameters()]
    gradients = torch.autograd.grad(alone.discriminator_loss(images, drawn.detach()), judges)
    for parameter, expected in zip([*rivals.features.parameters(), *rivals.verdict.parameters()], gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_discriminators_loss_is_half_of_both_cross_entropies():
    rivals, images, drawn = rivals_of(), images_of(seed=1), images_of(seed=2)
    real, false = (torch.sigmoid(rivals.verdict(rivals.features(shown))).flatten() for shown in (images, drawn))
    expected = (F.binary_cross_entropy(real, torch.ones(3)) + F.binary_cross_entropy(false, torch.zeros(3))) / 2
    torch.testing.assert_close(rivals.discriminator_loss(images, drawn), expected)


def test_the_channels_double_down_to_4_by_4_and_the_decoder_is_the_mirror():
    down = [layer.out_channels for layer in encoder(256, 100, 4) if isinstance(layer, nn.Conv2d)]
    up = [layer.out_channels for layer in decoder(256, 100, 4) if isinstance(layer, nn.ConvTranspose2d)]
    assert down == [4, 8, 16, 32, 64, 128, 100] and up == [128, 64, 32, 16, 8, 4, 3]
    drawn, code, second = Generator(64, 5, 2)(images_of(side=64))
    assert drawn.shape == (3, 3, 64, 64) and code.shape == second.shape == (3, 5)


def test_a_state_brings_the_generator_of_its_side_into_a_detector_of_another():
    fitted = [
        GANomaly(**TINY | {"steps": 1}).fit(ArrayBatches({"pixels": pixels}), None, Run(seed=0, quiet=True))
        for pixels in (normal_pixels(4), normal_pixels(4).repeat(1, 1, 2, 2))
    ]
    fitted[0].load_state_dict(fitted[1].state_dict())
    pixels = normal_pixels(2, seed=8).repeat(1, 1, 2, 2)
    assert fitted[0].side.item() == 64
    assert torch.equal(fitted[0].score({"pixels": pixels}).image_score, fitted[1].score({"pixels": pixels}).image_score)


def test_the_discriminator_is_not_part_of_the_model():
    detector = GANomaly(**TINY).fit(ArrayBatches({"pixels": normal_pixels(4)}), None, Run(seed=0, quiet=True))
    assert {name.split(".")[0] for name in detector.state_dict()} == {"generator", "side", "steps_trained"}


def test_the_state_with_the_lowest_val_loss_is_kept_and_it_counts_pixels_and_codes(run, monkeypatch):
    values = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    batches = ArrayBatches({"pixels": normal_pixels(4)})
    with monkeypatch.context() as patch:
        patch.setattr(GANomaly, "_held_out_loss", lambda self, batches: next(values))
        detector = GANomaly(**TINY | {"steps": None, "epochs": 9, "patience": 2}).fit(batches, batches, run)
    assert [row["val_loss"] for row in run.history] == [3.0, 1.0, 2.0, 2.0] and detector.steps_trained.item() == 2
    images = detector._images(batches.take([0, 1, 2, 3]).features)
    expected = detector._errors(images, *detector.generator(images)).mean().item()
    assert detector._held_out_loss(ArrayBatches({"pixels": normal_pixels(4)}, batch_size=3)) == pytest.approx(expected, rel=1e-5)


def test_interrupted_and_resumed_it_ends_in_the_same_state(tmp_path, monkeypatch):
    """Each step leaves an exhausted discriminator behind: the second process must know that of the step before it."""
    batches, losses, calls = ArrayBatches({"pixels": normal_pixels(6)}), Rivals.discriminator_loss, []

    def won(self, *given):
        value = losses(self, *given)
        self.last_loss = self.last_loss * 0  # as if it were 0 at each step
        return value

    monkeypatch.setattr(Rivals, "discriminator_loss", won)
    options, step = TINY | {"steps": 5}, GANomaly._loss
    clean = GANomaly(**options).fit(batches, None, Run(seed=0, quiet=True)).state_dict()

    def dies(self, *given):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(GANomaly, "_loss", dies)
    for attempt in range(2):
        fit = GANomaly(**options)
        session = Run(seed=0, quiet=True, resume=tmp_path, checkpoint_s=0.0)
        if attempt == 0:
            with pytest.raises(KeyboardInterrupt):
                fit.fit(batches, None, session)
        else:
            fit.fit(batches, None, session)
    assert len(calls) == 6 and all(torch.equal(value, fit.state_dict()[key]) for key, value in clean.items())


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="latent must be at least 1, got 0"):
        GANomaly(latent=0)
