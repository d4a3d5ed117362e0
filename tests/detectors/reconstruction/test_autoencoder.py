"""The autoencoder: what it shows is the error of its drawing, whatever the size of the image."""

import pytest
import torch

from stages.detectors.reconstruction.autoencoder import Autoencoder
from stages.detectors.reconstruction.maths.similarity import structural_similarity
from stages.training import Run
from tests.arrays import ArrayBatches, normal_pixels, plant_defect

SMALL = {"width": 8, "levels": 3, "latent_channels": 8, "steps": 60, "batch_size": 8, "learning_rate": 5e-3}  # for the contract test


class Drawn(torch.nn.Module):
    """In place of the network: gives back what it is shown, changed by `change`; remembers what it saw."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change, self.seen = change, []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        self.seen.append(images)
        return self.change(images)


def drawing(change, **options) -> Autoencoder:
    detector = Autoencoder(**{"levels": 3, **options})
    detector.network = Drawn(change)
    detector.steps_trained = torch.tensor([1])
    return detector.eval()


def pixels(count: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("error", ["mse", "ssim", "mse+ssim"])
def test_a_perfect_drawing_gives_a_zero_map(error):
    image_score, anomaly_map = drawing(lambda images: images, error=error).score({"pixels": pixels()})
    assert anomaly_map.abs().max() < 1e-5 and image_score.abs().max() < 1e-5


def test_the_map_is_the_mean_over_colours_of_the_squared_error_in_units_of_full_scale():
    """By hand: one colour of one pixel drawn 0.6 too high is 0.36 / 3 there, and the maximum is the score."""

    def change(images):
        drawn = images.clone()
        drawn[0, 1, 5, 7] += 0.6
        return drawn

    image_score, anomaly_map = drawing(change).score({"pixels": pixels()})
    assert anomaly_map[0, 5, 7].item() == pytest.approx(0.12, rel=1e-5) and (anomaly_map > 1e-9).sum() == 1
    assert image_score.tolist() == pytest.approx([0.12, 0.0])


def test_the_structural_map_is_one_minus_the_similarity_and_the_sum_is_the_sum():
    images, change = pixels(), lambda images: images.flip(3)
    seen = images / 255
    structural = 1 - structural_similarity(seen.flip(3), seen).mean(dim=1)
    squared = (seen.flip(3) - seen).square().mean(dim=1)
    torch.testing.assert_close(drawing(change, error="ssim").score({"pixels": images}).anomaly_map, structural)
    torch.testing.assert_close(drawing(change, error="mse+ssim").score({"pixels": images}).anomaly_map, structural + squared)


def test_the_network_sees_values_in_0_to_1_without_another_normalisation_padded_to_its_levels():
    images = pixels(1, 30, 19)
    detector = drawing(lambda images: images)
    assert detector.score({"pixels": images}).anomaly_map.shape == (1, 30, 19)
    (seen,) = detector.network.seen
    assert seen.shape == (1, 3, 32, 24)
    torch.testing.assert_close(seen[:, :, 1:31, 2:21], images / 255)


def test_the_score_is_the_mean_of_the_highest_share_of_the_map():
    detector = drawing(lambda images: images.flip(2), top_share=0.1)
    image_score, anomaly_map = detector.score({"pixels": pixels()})
    highest = anomaly_map.flatten(1).sort(dim=1, descending=True).values[:, :103]  # of 1024
    torch.testing.assert_close(image_score, highest.mean(dim=1))


def test_the_latent_is_a_grid_of_its_channels_and_the_drawing_is_in_0_to_1():
    detector = Autoencoder(width=4, levels=4, latent_channels=6)
    latent = detector.network[: detector.levels * 3 - 2](torch.rand(1, 3, 64, 32))
    assert latent.shape == (1, 6, 4, 2) and latent.min() < 0  # neither normalised nor rectified
    drawn = detector.network(torch.rand(1, 3, 64, 32))
    assert drawn.shape == (1, 3, 64, 32) and 0 < drawn.min() and drawn.max() < 1
    assert detector._channels() == [3, 4, 8, 16, 6]


def test_training_lowers_the_loss_below_that_of_the_mean_image():
    """A constant drawing of the mean image has the variance of the noise as its error; here all images show one pattern."""
    images = normal_pixels(16)
    detector = Autoencoder(**SMALL | {"steps": 150}).fit(ArrayBatches({"pixels": images}), None, Run(seed=0, quiet=True))
    flat = (images / 255 - (images / 255).mean(dim=(0, 2, 3), keepdim=True)).square().mean()
    assert detector._errors({"pixels": normal_pixels(4, seed=9)}).mean() < flat / 4


def test_the_state_with_the_lowest_val_loss_is_kept_and_patience_stops(run, monkeypatch):
    values = iter([3.0, 1.0, 2.0, 2.0, 0.5])
    monkeypatch.setattr(Autoencoder, "_mean_error", lambda self, batches: next(values))
    batches = ArrayBatches({"pixels": normal_pixels(8)})
    options = SMALL | {"steps": None, "epochs": 9, "patience": 2}
    detector = Autoencoder(**options).fit(batches, batches, run)
    assert [row["val_loss"] for row in run.history] == [3.0, 1.0, 2.0, 2.0] and detector.steps_trained.item() == 2


def test_the_mean_error_of_a_split_does_not_depend_on_its_batches():
    images, detector = plant_defect(normal_pixels(5)), drawing(lambda images: images.flip(2))
    expected = detector.score({"pixels": images}).anomaly_map.mean().item()
    assert detector._mean_error(ArrayBatches({"pixels": images}, batch_size=2)) == pytest.approx(expected, rel=1e-5)


def test_two_seeds_start_from_two_networks():
    batches = ArrayBatches({"pixels": normal_pixels(8)})
    one, other = (Autoencoder(**SMALL | {"steps": 1, "learning_rate": 1e-9}).fit(batches, None, Run(seed=s, quiet=True)) for s in (0, 1))
    assert not torch.allclose(one.network[0].weight, other.network[0].weight)


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        Autoencoder(levels=0)
    with pytest.raises(ValueError, match="top_share must be in 0..1"):
        Autoencoder(top_share=2)
