"""Logistic regressions alone, averaged and stacked, against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from stages import fusion
from stages.datasets.records import Records
from stages.fusion.classical.logistic import C
from stages.fusion.classical.stacking import balanced_folds
from stages.fusion.detector import RecordDetector
from stages.seed import torch_generator
from stages.training import Run
from stages.types import Refusal
from tests.fusion.synthetic import records

TRAIN, VAL, TEST = (records(seed, count) for seed, count in enumerate((90, 45, 40)))


def fit(name: str, train: Records = TRAIN, val: Records = VAL, seed: int = 0, **options) -> RecordDetector:
    return fusion.build(f"classical.{name}", options, at=()).fit(train, val, Run(seed=seed, quiet=True))


def means(given: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Of the records that have the modality their mean token (n, D) and their label."""
    there = given.tokens[name].lengths > 0
    rows = [part.mean(0).double().numpy() for part in given.tokens[name].values.split(given.tokens[name].lengths.tolist()) if len(part)]
    return np.stack(rows), given.label[there].numpy()


def by_scikit_learn(name: str, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of VAL and TEST, of those that have the modality."""
    train, label = means(TRAIN, name)
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(scaler.transform(train), label)
    return tuple(model.decision_function(scaler.transform(means(given, name)[0])) for given in (VAL, TEST))


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_one_modality_scores_the_logit_of_scikit_learn(c):
    there = TEST.tokens["text"].lengths > 0
    found = fit("unimodal", modality="text", c=[c]).score(TEST)
    np.testing.assert_allclose(found[there], by_scikit_learn("text", c)[1], atol=1e-3)


def test_the_penalty_is_the_one_of_least_loss_on_val():
    label = means(VAL, "text")[1]
    best = min(C, key=lambda c: log_loss(label, 1 / (1 + np.exp(-by_scikit_learn("text", c)[0]))))
    assert best != sorted(C)[len(C) // 2]  # else the next test could not tell choosing from not choosing
    assert fit("unimodal", modality="text").regression.chosen == {"text": best}


def test_without_both_labels_in_val_the_middle_penalty_is_taken():
    normal = VAL.take((VAL.label == 0).nonzero()[:, 0].tolist())
    assert fit("unimodal", val=normal, modality="text").regression.chosen == {"text": 0.01}


def test_a_record_without_the_modality_gets_the_share_of_anomalies():
    train = records(0, 80, anomalous=0.25)
    absent = TEST.tokens["text"].lengths == 0
    assert absent.any() and (fit("unimodal", train=train, modality="text").score(TEST)[absent] - math.log(20 / 60)).abs().max() < 1e-6


def test_a_modality_that_cannot_be_learnt_from_is_a_refusal_that_says_so():
    with pytest.raises(Refusal, match="no modality 'smell'; they have text, image, series"):
        fit("unimodal", modality="smell")
    none = TRAIN._replace(tokens=TRAIN.tokens | {"text": TRAIN.tokens["text"].emptied()})
    with pytest.raises(Refusal, match="no record to learn from has text"):
        fit("unimodal", train=none.take(none.present.any(1).nonzero()[:, 0].tolist()), modality="text")


def test_the_mean_is_over_the_logits_of_those_that_are_there():
    alone = torch.stack([fit("unimodal", modality=name).score(TEST) for name in TEST.tokens], dim=1)
    expected = (alone * TEST.present).sum(1) / TEST.present.sum(1)
    torch.testing.assert_close(fit("mean_logit").score(TEST), expected, rtol=1e-5, atol=1e-5)


def test_a_modality_that_was_never_seen_with_both_labels_is_not_asked():
    keep = (TRAIN.label == 0) | (TRAIN.tokens["text"].lengths == 0)  # text only with normal records
    train = TRAIN.take(keep.nonzero()[:, 0].tolist())
    for name in ("mean_logit", "stacking"):
        detector = fit(name, train=train)
        torch.testing.assert_close(detector.score(TEST.take([0, 1]).only(["text"])).diff(), torch.zeros(1))


def noise(widths: dict[str, int], seed: int = 7) -> Records:
    """Wide records whose labels mean nothing."""
    return records(seed, 80, widths=widths, missing=0, strength=0)


def test_stacking_does_not_trust_a_first_level_that_only_remembers():
    given = noise({"text": 300, "image": 300})
    options = {"c": [1.0], "val": given.take([])}
    assert roc_auc_score(given.label, fit("mean_logit", given, **options).score(given)) == 1
    first = fit("mean_logit", given, **options).score(given).std()
    assert fit("stacking", given, **options).score(given).std() < 0.2 * first


def test_stacking_trusts_the_modality_that_knows():
    train = records(3, 150, missing=0, strength=5, faint=1.0)
    blurred = train.tokens["image"]
    train = train._replace(tokens=train.tokens | {"image": blurred._replace(values=torch.randn(blurred.values.shape, generator=torch_generator(0)))})
    weight = fit("stacking", train).weight[:3]
    assert weight[0] > 5 * weight[1].abs() and weight[2] > 5 * weight[1].abs()


def test_folds_are_balanced_by_label_and_drawn_by_seed():
    label = torch.tensor([0] * 23 + [1] * 9)
    one, other = (balanced_folds(label, 4, torch_generator(seed)) for seed in (0, 1))
    assert sorted(torch.bincount(one[:23]).tolist()) == [5, 6, 6, 6] and sorted(torch.bincount(one[23:]).tolist()) == [2, 2, 2, 3]
    assert not torch.equal(one, other)


def test_stacking_with_one_anomaly_is_a_refusal():
    few = TRAIN.take([*(TRAIN.label == 0).nonzero()[:, 0].tolist(), int((TRAIN.label == 1).nonzero()[0])])
    with pytest.raises(Refusal, match="at least 2"):
        fit("stacking", train=few)
