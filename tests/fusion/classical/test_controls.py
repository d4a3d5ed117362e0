"""What must not be able to see content, and what it can see."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from stages import fusion
from stages.datasets.records import Record, Records, packed
from stages.fusion.detector import RecordDetector
from stages.training import Run
from tests.fusion.synthetic import WIDTHS, records, samples


def fit(name: str, train: Records, seed: int = 0, **options) -> RecordDetector:
    return fusion.build(f"classical.{name}", options, at=()).fit(train, train, Run(seed=seed, quiet=True))


def betraying(seed: int) -> Records:
    """Records whose anomalies lack the text three times in four, normal ones one in four."""
    given = samples(seed, 200, missing=0, strength=0)
    drawn = np.random.default_rng(seed).random(len(given))
    return packed([without(one, "text") if chance < (0.75 if one.label else 0.25) else one for one, chance in zip(given, drawn)], WIDTHS)


def without(record: Record, name: str) -> Record:
    return record._replace(modalities={key: one for key, one in record.modalities.items() if key != name})


def test_presence_finds_out_that_anomalies_lack_a_modality():
    detector = fit("presence", betraying(0))
    test = betraying(1)
    by_absence = roc_auc_score(test.label, ~test.present[:, 0])
    assert roc_auc_score(test.label, detector.score(test)) == pytest.approx(by_absence) and by_absence > 0.65


def test_presence_sees_no_value_and_no_length_unless_lengths_are_told():
    normal, anomalous = samples(0, 60, missing=0, tokens=3, anomalous=0.0), samples(1, 60, missing=0, tokens=40, anomalous=1.0)
    train = packed([*normal, *anomalous], WIDTHS)  # all have everything, anomalies have more of it
    assert len(fit("presence", train).score(train).unique()) == 1
    assert roc_auc_score(train.label, fit("presence", train, lengths=True).score(train)) > 0.9


def test_the_prevalence_is_the_share_of_anomalies_in_train():
    score = fit("prevalence", records(0, 80, anomalous=0.25)).score(records(1, 7))
    torch.testing.assert_close(score.sigmoid(), torch.full((7,), 0.25))


def test_chance_is_uniform_and_goes_by_the_name_and_the_seed_alone():
    given = records(0, 800)
    detector = fit("random_score", given)
    score = detector.score(given)
    assert 0 <= score.min() and score.max() <= 1 and abs(score.mean() - 0.5) < 0.03 and abs(score.std() - 12**-0.5) < 0.02
    renamed = records(5, 800, strength=9.0)._replace(record_id=given.record_id)
    assert torch.equal(detector.score(renamed), score)
    assert abs(torch.corrcoef(torch.stack([score, fit("random_score", given, seed=1).score(given)]))[0, 1]) < 0.1
