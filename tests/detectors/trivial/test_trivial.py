import numpy as np
import pytest
import torch

from stages.detectors.trivial.brightness import Brightness
from stages.detectors.trivial.local_contrast import LocalContrast
from stages.detectors.trivial.mean_image import MeanImage
from stages.detectors.trivial.random_score import RandomScore
from stages.training import Run
from tests.arrays import ArrayBatches, normal_pixels


def of(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"pixels": pixels}


def test_mean_image_equals_numpy(run):
    train, query = normal_pixels(7), normal_pixels(3, seed=2)
    detector = MeanImage().fit(ArrayBatches(of(train)), None, run)
    difference = np.abs(query.numpy() / 255 - train.numpy().mean(axis=0) / 255)
    image_score, anomaly_map = detector.score(of(query))
    np.testing.assert_allclose(image_score, difference.mean(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(anomaly_map, difference.mean(axis=1), rtol=1e-4, atol=1e-7)


def test_brightness_is_how_far_the_mean_level_is_in_either_direction(run):
    """Training images of level 51 (0.2); images of level 102 and 0 are both 0.2 away."""
    level = lambda value: torch.full((2, 3, 8, 8), value, dtype=torch.uint8)  # noqa: E731
    detector = Brightness().fit(ArrayBatches(of(level(51))), None, run)
    assert detector.score(of(level(102))).image_score.tolist() == pytest.approx([0.2, 0.2])
    assert detector.score(of(level(0))).image_score.tolist() == pytest.approx([0.2, 0.2])
    assert detector.score(of(level(51))).image_score.tolist() == pytest.approx([0, 0], abs=1e-7)


def test_brightness_weighs_images_alike_whatever_the_batches(run):
    pixels = normal_pixels(5)
    detectors = [Brightness().fit(ArrayBatches(of(pixels), batch_size=size), None, run) for size in (1, 4)]
    torch.testing.assert_close(detectors[0].brightness, detectors[1].brightness)
    assert detectors[0].brightness.item() == pytest.approx(pixels.double().mean().item() / 255)


def test_local_contrast_is_the_largest_standard_deviation_within_a_patch():
    """Half of one 16x16 patch is white, everything else is black: std 0.5 there, 0 elsewhere."""
    pixels = torch.zeros(1, 3, 40, 36, dtype=torch.uint8)
    pixels[:, :, 16:32, 16:24] = 255
    image_score, anomaly_map = LocalContrast().score(of(pixels))
    assert image_score.item() == pytest.approx(0.5)
    expected = torch.zeros(40, 36)
    expected[16:32, 16:32] = 0.5
    torch.testing.assert_close(anomaly_map[0], expected)


def test_local_contrast_sees_the_border_that_is_no_whole_patch():
    pixels = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    pixels[:, :, 16:20, 16:18] = 255  # half of the 4x4 corner
    image_score, anomaly_map = LocalContrast().score(of(pixels))
    assert image_score.item() == pytest.approx(0.5) and anomaly_map[0, 19, 19].item() == pytest.approx(0.5)


def test_random_scores_depend_on_content_and_seed_alone():
    pixels = normal_pixels(200)
    one, again, other = (RandomScore().fit(ArrayBatches(of(pixels)), None, Run(seed=seed, quiet=True)) for seed in (3, 3, 4))
    scores = one.score(of(pixels)).image_score
    assert torch.equal(scores, again.score(of(pixels)).image_score) and len(scores.unique()) == 200
    correlation = np.corrcoef(scores, other.score(of(pixels)).image_score)[0, 1]
    assert abs(correlation) < 0.2 and 0.4 < scores.mean() < 0.6 and scores.min() >= 0 and scores.max() < 1
