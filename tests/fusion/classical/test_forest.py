"""The forest against scikit-learn's own, what it tells of faults, and what it gives away where it is shown the setting alone."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, roc_auc_score

from stages import fusion
from stages.datasets.records import Record, Records, Tokens, packed
from stages.fusion.classical.forest import Forest
from stages.fusion.detector import class_of
from stages.seed import derive
from stages.training import Run
from tests.fusion.synthetic import WIDTHS, records

TRAIN, TEST = records(0, 120), records(1, 70)


def fit(train: Records = TRAIN, seed: int = 0, **options) -> Forest:
    return fusion.build("classical.forest", {"trees": 30} | options, at=()).fit(train, train.take([]), Run(seed=seed, quiet=True))


def columns(detector: Forest, given: Records) -> np.ndarray:
    rows = detector.pool(detector.fitting(given))
    return torch.cat([rows.together, rows.present.float()], 1).numpy()


@pytest.mark.parametrize("leaf", [1, 6])
def test_it_is_the_forest_of_scikit_learn(leaf):
    ours = fit(leaf=leaf)
    theirs = RandomForestClassifier(30, min_samples_leaf=leaf, random_state=derive(0, "forest") % 2**32)
    theirs.fit(columns(ours, TRAIN), class_of(TRAIN, ours.classes))
    for given in (TRAIN, TEST):
        found = ours.probability(ours.fitting(given)).numpy()
        assert np.abs(found - theirs.predict_proba(columns(ours, given))).max() < 1e-9


def test_it_tells_the_faults_and_the_score_is_the_log_odds_of_what_it_tells():
    detector = fit()
    assert detector.classes == ["normal", *sorted(WIDTHS)]
    logits, features = detector.classify(TEST)
    assert accuracy_score(class_of(TEST, detector.classes), logits.argmax(1)) > 0.6
    torch.testing.assert_close(logits.exp().sum(1), torch.full((70,), 1 + 0.5 / 30))  # 30 trees, and half a one of no opinion
    torch.testing.assert_close(detector.score(TEST), logits[:, 1:].logsumexp(1) - logits[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(70))


def test_certainty_is_a_finite_logit_that_grows_with_the_number_of_trees():
    sure = [fit(trees=trees).score(TRAIN.take([0, 1, 2, 3])).abs().max() for trees in (5, 80)]
    assert all(one.isfinite() for one in sure) and sure[0] < sure[1]


def test_a_setting_that_goes_with_the_class_gives_it_away_and_one_that_does_not_gives_nothing():
    """Twelve settings; with the dial at 1 each belongs to one label, with 0 to none."""

    def welds(seed: int, dial: float) -> Records:
        random = np.random.default_rng(seed)
        found = []
        for number in range(240):
            label = int(random.random() < 0.5)
            setting = (2 * random.integers(6) + label) if random.random() < dial else random.integers(12)
            token = Tokens(torch.tensor([[float(setting % 4), float(setting // 4)]]), torch.zeros(1))
            found.append(Record(f"w{number}", {"setpoint": token}, label, fault="porosity" if label else ""))
        return packed(found, {"setpoint": 2})

    for dial, least, most in ((1.0, 0.99, 1.0), (0.0, 0.3, 0.7)):
        test = welds(1, dial)
        assert least <= roc_auc_score(test.label, fit(welds(0, dial)).score(test)) <= most


def test_as_a_control_it_says_what_it_does_not_look_at():
    assert fit(blind="sees the setting and not the weld").blind == "sees the setting and not the weld"
    assert fit().blind is None
