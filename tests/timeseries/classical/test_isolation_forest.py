"""Trees walked as tensors, against scikit-learn's own walk."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest as Reference

from stages.seed import derive
from stages.timeseries import build
from stages.timeseries.classical.isolation_forest import expected_path
from stages.training import Run
from stages.types import Refusal
from tests.timeseries.series import segment, values

TEST = torch.from_numpy(np.concatenate([values(200, seed=1), 5 * values(50, seed=2)]))


@pytest.mark.parametrize(("steps", "samples"), [(600, 256), (30, 256), (2, 256), (600, 2)])
def test_the_score_is_scikit_learns_score_samples_with_the_sign_turned(steps, samples):
    train, run = values(steps), Run(seed=4, quiet=True)
    detector = build("classical.isolation_forest", {"trees": 30, "samples": samples}, at=()).fit([segment(train)], [], run)
    rows = detector.standardised(torch.from_numpy(train)).numpy()
    state = derive(4, "forest") % 2**32
    reference = Reference(n_estimators=30, max_samples=min(samples, steps), random_state=state).fit(rows)
    np.testing.assert_allclose(detector.score(TEST), -reference.score_samples(detector.standardised(TEST).numpy()), rtol=0, atol=1e-6)


def test_the_expected_path_is_that_of_a_failed_search_in_a_binary_tree():
    assert expected_path(1) == 0 and expected_path(2) == 1
    assert expected_path(256) == pytest.approx(2 * sum(1 / n for n in range(1, 256)) - 2 * 255 / 256, rel=1e-3)


def test_one_training_step_is_a_refusal():
    with pytest.raises(Refusal, match="at least 2 training steps"):
        build("classical.isolation_forest", {}, at=()).fit([segment(values(1))], [], Run(seed=0, quiet=True))


def test_a_value_at_the_limit_of_a_cut_goes_left():
    """One tree of one cut: left of it 1 step of 3, right of it 2."""
    detector = build("classical.isolation_forest", {}, at=()).fit([segment(values(10, variables=1))], [], Run(seed=0, quiet=True))
    detector.variable, detector.limit = torch.zeros(1, 3, dtype=torch.int64), torch.full((1, 3), 0.5, dtype=torch.float64)
    detector.child, detector.depth = torch.tensor([[[1, 2], [1, 1], [2, 2]]]), torch.tensor([1])
    detector.path, detector.typical = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([1.0])
    assert detector.rate(torch.tensor([[0.4], [0.5], [0.6]])).tolist() == [0.5, 0.5, 0.25]
