"""The linear forecast, against scikit-learn."""

import numpy as np
import torch
from sklearn.linear_model import Ridge as Reference

from stages.timeseries import build
from stages.training import Run
from tests.timeseries.series import segment, values

TRAIN, TEST = values(300), torch.from_numpy(values(80, seed=1))


def pairs(rows: torch.Tensor, lags: int) -> tuple[np.ndarray, np.ndarray]:
    past = [rows[step - lags : step].T.flatten().numpy() for step in range(lags, len(rows))]
    return np.stack(past), rows[lags:].numpy()


def test_the_error_is_that_of_scikit_learns_ridge_in_units_of_its_own_on_train():
    detector = build("classical.ridge", {"lags": 5, "alpha": 2.0}, at=())
    detector.fit([segment(TRAIN[:120]), segment(TRAIN[120:])], [], Run(seed=0, quiet=True))
    rows = detector.standardised(torch.from_numpy(TRAIN)).double()
    past, now = (np.concatenate(parts) for parts in zip(pairs(rows[:120], 5), pairs(rows[120:], 5)))
    reference = Reference(alpha=2.0, fit_intercept=False).fit(past, now)
    variance = ((now - reference.predict(past)) ** 2).mean(axis=0)
    past, now = pairs(detector.standardised(TEST).double(), 5)
    expected = ((now - reference.predict(past)) ** 2 / variance).mean(axis=1)
    np.testing.assert_allclose(detector.score(TEST)[5:], expected, rtol=1e-5)


def test_the_score_is_the_mean_of_what_the_variables_add():
    detector = build("classical.ridge", {}, at=()).fit([segment(TRAIN)], [], Run(seed=0, quiet=True))
    torch.testing.assert_close(detector.attribution(TEST).mean(dim=1), detector.score(TEST))


def test_a_series_that_follows_a_linear_law_is_no_surprise_and_a_break_of_it_is():
    law = np.cumsum(np.ones((400, 1)), axis=0)
    wave = np.concatenate([np.sin(law / 7), np.cos(law / 7)], axis=1).astype(np.float32)
    detector = build("classical.ridge", {"lags": 3, "alpha": 1e-6}, at=()).fit([segment(wave[:300])], [], Run(seed=0, quiet=True))
    test = torch.from_numpy(wave[300:].copy())
    assert detector.score(test)[3:].max() < 1e-6
    test[50] = -test[50]  # a value that is quite usual, at the wrong time
    assert detector.score(test)[50] > 100
