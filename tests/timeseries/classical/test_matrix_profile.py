"""The join of a series with its reference, against a plain loop over z-normalised windows."""

import numpy as np
import pytest
import torch

from stages.timeseries import build
from stages.timeseries.classical.matrix_profile import shapes
from stages.training import Run
from tests.timeseries.series import segment, values

TRAIN, TEST, WINDOW = values(90), values(40, seed=1), 8


def fit(train=TRAIN, **options):
    return build("classical.matrix_profile", {"window": WINDOW, **options}, at=()).fit([segment(train)], [], Run(seed=0, quiet=True))


def normal(row: np.ndarray) -> np.ndarray:
    return (row - row.mean()) / row.std()


def by_loop(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """(N, V) distances of the windows."""

    def cut(series, variable):
        return [normal(series[start : start + WINDOW, variable].astype(float)) for start in range(len(series) - WINDOW + 1)]

    columns = [[min(np.linalg.norm(query - row) for row in cut(train, variable)) for query in cut(test, variable)] for variable in range(3)]
    return np.array(columns).T


@pytest.mark.parametrize("across", ["mean", "max"])
def test_the_distances_are_those_of_a_plain_loop(across):
    merged = getattr(by_loop(TRAIN, TEST), across)(axis=1)
    expected = [np.mean([merged[start] for start in range(len(merged)) if start <= step < start + WINDOW]) for step in range(40)]
    np.testing.assert_allclose(fit(across=across).score(torch.from_numpy(TEST)), expected, rtol=1e-4)


def test_blocks_find_the_same_neighbours(monkeypatch):
    whole = fit().score(torch.from_numpy(TEST))
    monkeypatch.setattr("stages.timeseries.classical.matrix_profile.ROWS", 7)
    monkeypatch.setattr("stages.timeseries.classical.matrix_profile.QUERIES", 5)
    torch.testing.assert_close(fit().score(torch.from_numpy(TEST)), whole, rtol=1e-5, atol=1e-6)


def test_level_and_scale_of_a_window_do_not_count():
    shape = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shapes(4 * shape - 7), shapes(shape), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shapes(shape).square().sum(dim=1), torch.full((3,), 20.0))


def test_a_flat_window_is_the_root_of_its_length_from_any_other_and_at_no_distance_from_a_flat_one():
    flat = TEST.copy()
    flat[10:30] = flat[10]
    score = fit().score(torch.from_numpy(flat))
    torch.testing.assert_close(score[17:23], torch.full((6,), WINDOW**0.5))
    train = TRAIN.copy()
    train[20:40] = train[20]
    assert fit(train).score(torch.from_numpy(flat))[17:23].max() == 0


def test_a_window_of_the_reference_is_at_no_distance():
    assert fit().score(torch.from_numpy(TRAIN)).max() < 1e-3
