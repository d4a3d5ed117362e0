"""Neighbours and Mahalanobis distance, against brute force, scikit-learn and SciPy."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf
from sklearn.metrics.pairwise import nan_euclidean_distances

from stages import fusion
from stages.datasets.records import Records
from stages.fusion.detector import RecordDetector
from stages.training import Run
from tests.fusion.synthetic import records

TRAIN, VAL, TEST = (records(seed, count) for seed, count in enumerate((60, 90, 30)))
NORMAL = TRAIN.take((TRAIN.label == 0).nonzero()[:, 0].tolist())


def fit(name: str, train: Records = TRAIN, val: Records = VAL, **options) -> RecordDetector:
    return fusion.build(f"classical.{name}", options, at=()).fit(train, val, Run(seed=0, quiet=True))


def rows(detector: RecordDetector, given: Records) -> tuple[list[np.ndarray], np.ndarray]:
    found = detector.pool(given)
    return [part.double().numpy() for part in found.parts.values()], found.present.numpy()


@pytest.mark.parametrize("neighbours", [1, 5, 1000])
def test_the_score_is_the_mean_distance_to_the_nearest_by_brute_force(neighbours):
    detector = fit("knn", neighbours=neighbours)
    (bank, bank_present), (parts, present) = rows(detector, NORMAL), rows(detector, TEST)
    expected = []
    for record in range(TEST.samples):
        distances = []
        for stored in range(NORMAL.samples):
            both = [m for m in range(3) if present[record, m] and bank_present[stored, m]]
            if both:
                distances.append(np.sqrt(np.mean([np.mean((parts[m][record] - bank[m][stored]) ** 2) for m in both])))
        expected.append(np.mean(sorted(distances)[:neighbours]))
    np.testing.assert_allclose(detector.score(TEST), expected, rtol=1e-5)


def test_with_equal_widths_the_distance_is_the_partial_one_of_scikit_learn():
    widths = {"text": 5, "image": 5}
    train, test = (records(seed, 40, widths=widths, anomalous=anomalous) for seed, anomalous in ((0, 0.0), (1, 0.5)))
    detector = fit("knn", train=train, neighbours=1)

    def flat(given: Records) -> np.ndarray:
        parts, present = rows(detector, given)
        return np.concatenate([np.where(present[:, [number]], part, np.nan) for number, part in enumerate(parts)], axis=1)

    expected = np.nanmin(nan_euclidean_distances(flat(test), flat(train)), axis=1) / np.sqrt(10)
    np.testing.assert_allclose(detector.score(test), expected, rtol=1e-5)


def test_a_record_that_shares_nothing_with_the_bank_is_typical():
    train = records(0, 40, missing=0).only(["text", "image"])
    detector = fusion.build("classical.knn", {}, at=()).open(train.widths)
    detector.learn(train.take((train.label == 0).nonzero()[:, 0].tolist()), train.take([]), Run(seed=0, quiet=True))  # `fit` would refuse it
    bank = train.take((train.label == 0).nonzero()[:, 0].tolist())
    left_out = [detector.score(bank.take([at])).item() for at in range(3)]
    score = detector.score(records(1, 4, missing=0).only(["series"]))
    assert (score == detector.typical.float()).all() and min(left_out) < score[0]  # a bank's record is at no distance from itself


def test_the_squared_distance_of_each_modality_is_that_of_scipy():
    detector = fit("mahalanobis")
    (bank, bank_present), (parts, present) = rows(detector, NORMAL), rows(detector, TEST)
    found = detector.squared(detector.pool(TEST)).numpy()
    for m in range(3):
        shrunk = LedoitWolf().fit(bank[m][bank_present[:, m]])
        for record in np.flatnonzero(present[:, m]):
            by_hand = mahalanobis(parts[m][record], shrunk.location_, np.linalg.inv(shrunk.covariance_)) ** 2
            assert found[record, m] == pytest.approx(by_hand, rel=1e-4)


def test_the_score_is_the_sum_of_standardised_distances_over_the_root_of_their_number():
    detector = fit("mahalanobis")
    normal = VAL.take((VAL.label == 0).nonzero()[:, 0].tolist())
    assert (normal.present.sum(0) >= 20).all()
    (held_out, there), (found, present) = (
        (detector.squared(detector.pool(given)).numpy(), given.present.numpy()) for given in (normal, TEST)
    )
    expected = []
    for record in range(TEST.samples):
        votes = [
            (found[record, m] - held_out[there[:, m], m].mean()) / held_out[there[:, m], m].std(ddof=1)
            for m in range(3)
            if present[record, m]
        ]
        expected.append(sum(votes) / np.sqrt(len(votes)))
    np.testing.assert_allclose(detector.score(TEST), expected, rtol=1e-5, atol=1e-5)


def test_normal_records_score_alike_however_many_modalities_they_have():
    """In deviations of a score: the median of records with one modality lies near that of records with all, and so does their spread."""
    train, val, test = (records(seed, 400, anomalous=0.0, missing=0) for seed in (3, 4, 5))
    detector = fit("mahalanobis", train=train, val=val)
    whole, one = detector.score(test), detector.score(test.only(["text"]))
    assert abs(whole.median() - one.median()) < 0.3 and 0.7 < whole.std() / one.std() < 1.4


def test_more_columns_than_records_are_no_hindrance():
    widths = {"text": 120, "image": 90}
    train, test = (records(seed, 40, widths=widths, strength=12.0) for seed in (0, 1))
    score = fit("mahalanobis", train=train, val=train.take([])).score(test)
    assert score.isfinite().all() and score[test.label == 1].median() > score[test.label == 0].median()


def test_anomalies_of_val_do_not_set_the_scale():
    normal = VAL.take((VAL.label == 0).nonzero()[:, 0].tolist())
    assert torch.equal(fit("mahalanobis", val=normal).score(TEST), fit("mahalanobis").score(TEST))
