"""Any or all of the modalities over their own thresholds, against the rule by hand."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from stages import fusion
from stages.datasets.records import Records
from stages.fusion.classical.vote import Vote, over
from stages.metrics.conformal import conformal_quantile
from stages.training import Run
from tests.fusion.synthetic import records

TRAIN, VAL, TEST = (records(seed, count, missing=0.2) for seed, count in enumerate((150, 150, 200)))


def fit(rule: str, train: Records = TRAIN, val: Records = VAL, **options) -> Vote:
    return fusion.build("classical.vote", {"rule": rule} | options, at=()).fit(train, val, Run(seed=0, quiet=True))


def exceeding(detector: Vote, given: Records) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, M) whether a modality is over its own threshold, and whether it is there; modalities one by one."""
    rows = detector.pool(detector.fitting(given))
    return detector.regressions(rows) > detector.threshold, rows.present


def test_it_alarms_where_any_or_all_of_those_that_are_there_are_over_their_own_thresholds():
    for rule in ("any", "all"):
        detector = fit(rule)
        above, there = exceeding(detector, TEST)
        by_hand = (above & there).any(1) if rule == "any" else (above | ~there).all(1)
        assert torch.equal(detector.alarms(TEST), by_hand) and 0 < by_hand.sum() < TEST.samples


def test_the_score_keeps_the_order_of_the_rule_so_that_one_threshold_is_the_rule():
    for rule in ("any", "all"):
        detector = fit(rule)
        score, alarms = detector.score(TEST), detector.alarms(TEST)
        assert score[alarms].min() > score[~alarms].max()
        assert float(score[alarms].min()) > float(detector.offset) - 1e-6 > float(score[~alarms].max()) - 1e-3


def test_any_finds_what_one_modality_shows_alone_and_all_what_every_one_shows():
    lonely = [records(seed, 200, missing=0, faint=0.0) for seed in (3, 4, 5)]
    shared = [records(seed, 200, missing=0, faint=1.0, strength=3.0) for seed in (6, 7, 8)]
    area = {
        (name, rule): roc_auc_score(sets[2].label, fit(rule, *sets[:2]).score(sets[2]))
        for name, sets in (("lonely", lonely), ("shared", shared))
        for rule in ("any", "all")
    }
    assert area["lonely", "any"] > area["lonely", "all"] + 0.1
    assert area["shared", "all"] > 0.9


def test_false_alarms_of_any_are_more_than_those_of_one_and_those_of_all_are_fewer():
    normal = records(9, 400, missing=0, anomalous=0.0)
    rate = {rule: float(fit(rule).alarms(normal).float().mean()) for rule in ("any", "all")}
    each = exceeding(fit("any"), normal)[0].float().mean(0)
    assert rate["all"] < each.min() and rate["any"] > each.max() and 0.005 < each.mean() < 0.15


def test_the_threshold_is_the_conformal_one():
    scores = torch.randn(57, dtype=torch.float64)
    for rate in (0.005, 0.05, 0.29, 0.9):
        assert float(over(scores, rate)) == conformal_quantile(scores.numpy(), rate).value


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(Exception, match="false_alarm_rate"):
        fit("any", false_alarm_rate=1.0)
