"""Thresholds from steps that no fit saw: they hold on fresh normal data, for a detector that measures its score on held-out steps too."""

import numpy as np
import pytest
import torch

from stages.datasets.recordings import Segment
from stages.datasets.series_splits import Rule, split
from stages.metrics.series_judgement import fit_threshold
from stages.timeseries import build
from stages.timeseries.detector import SeriesDetector
from stages.training import Run
from tests.timeseries.series import segment, values

OPTIONS = {
    "classical.pca": {},
    "masked_autoencoder": {
        "seq_length": 20, "num_patches": 10, "d_model": 16, "dim_feedforward": 32, "num_encoder_layers": 1, "num_teacher_layers": 1,
        "steps": 80, "window_stride": 2, "learning_rate": 5e-3, "scoring": "centre", "score_mode": "multiscale", "look_again": 0.99,
    },
}  # fmt: skip
LEARNT, VARIABLES = 600, 8


def fitted(name: str, held_out: int, seed: int) -> tuple[SeriesDetector, float, np.ndarray]:
    """A detector, its threshold at 1 % and 10,000 fresh normal steps, split as the manifest does it."""
    signal, fixed = values(LEARNT + held_out + 10_000, VARIABLES, seed), LEARNT + held_out
    row = {"recording_id": "made-up/one", "category": "made-up", "steps": len(signal), "train_steps": fixed, "regions": [], "breaks": []}
    parts: dict[str, list[Segment]] = {"val": []}
    for part in split([row | {"content_hash": "x"}], Rule(0.5, held_out / fixed))[0]:
        parts.setdefault(part["split"], []).append(segment(signal[part["start"] : part["stop"]], start=part["start"]))
    detector = build(name, OPTIONS[name], at=("series", "models", name)).fit(parts["train"], parts["val"], Run(seed=0, quiet=True))
    normal = [scored(detector, one.values) for one in parts["threshold"]]
    return detector, fit_threshold(np.concatenate(normal), 0.01).value, parts["test"][0].values


def scored(detector: SeriesDetector, given: np.ndarray) -> np.ndarray:
    return detector.score(torch.from_numpy(given)).numpy()


@pytest.mark.parametrize(("name", "least"), [("classical.pca", 0.004), ("masked_autoencoder", 0.0005)])
def test_false_alarms_on_fresh_normal_steps_are_near_what_was_asked_for(name, least):
    """Scores that are means over dozens of steps rise and fall slowly: a single swell is most of 1 % of 2,000 steps, so that little is known."""
    detector, threshold, fresh = fitted(name, 4_000, seed=3)
    assert least < (scored(detector, fresh) > threshold).mean() < 0.02


@pytest.mark.parametrize("name", OPTIONS)
def test_with_a_hundred_held_out_steps_normal_ones_pass_and_a_shift_does_not(name):
    """Were the score measured on the steps of the threshold, the masked autoencoder would flag 94 to 99 % of the fresh steps here."""
    detector, threshold, fresh = fitted(name, 100, seed=4)
    assert (scored(detector, fresh) > threshold).mean() < 0.05
    shifted = fresh[:2_000].copy()
    shifted[1_000:1_040] += 3 * fresh.std(axis=0)
    assert (scored(detector, shifted)[1_000:1_040] > threshold).mean() > 0.5
