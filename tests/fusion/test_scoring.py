"""Scores with modalities left out: equal to scoring each record alone, with the belief about any record where nothing is left."""

import numpy as np
import pytest
import torch

from stages.fusion.detector import RecordDetector
from stages.fusion.scoring import scores, subset_scores, subsets
from stages.metrics.shapley import shapley
from tests.fusion import synthetic

WEIGHT = {"text": 1.0, "image": 10.0, "series": 100.0}
PRIOR = 0.25


class Sum(RecordDetector):
    """The sum of all tokens, each modality with its weight; counts how many records it was given."""

    supervised, drawn = True, False

    def prepare(self, widths, seed):
        self.seen = 0

    def rate(self, records):
        self.seen += records.samples
        total = torch.zeros(records.samples)
        for name, ragged in records.tokens.items():
            owner = torch.repeat_interleave(torch.arange(records.samples), ragged.lengths)
            total = total.index_add(0, owner, WEIGHT.get(name, 1.0) * ragged.values.mean(1))
        return total


@pytest.fixture
def detector() -> Sum:
    return Sum().open(synthetic.WIDTHS)


def test_every_subset_once_fewest_modalities_first_and_beyond_five_the_telling_ones():
    assert [len(subsets(count)) for count in (1, 2, 3, 5)] == [1, 3, 7, 31]
    assert sorted(subsets(5)) == list(range(1, 32)) and [mask.bit_count() for mask in subsets(3)] == [1, 1, 1, 2, 2, 2, 3]
    assert len(subsets(7)) == 7 + 7 + 1 and subsets(7)[-1] == 127


def test_a_subset_is_scored_as_if_each_record_came_alone_with_it(detector):
    records = synthetic.records(0, 300)  # more than one batch
    found = subset_scores(detector, records, subsets(3), PRIOR)
    names = list(records.tokens)
    for mask, value in found.items():
        left = [name for member, name in enumerate(names) if mask >> member & 1]
        for place in range(0, 300, 37):
            alone = records.take([place]).only(left)
            expected = float(detector.score(alone)[0]) if bool(alone.present.any()) else PRIOR
            assert value[place] == pytest.approx(expected, abs=1e-4), (mask, place)
    assert np.allclose(found[7], scores(detector, records), atol=1e-5)


def test_no_record_is_scored_twice_with_the_same_modalities(detector):
    records = synthetic.records(0, 80)
    detector.seen = 0
    subset_scores(detector, records, subsets(3), PRIOR)
    assert detector.seen == int((2 ** records.present.sum(1) - 1).sum()) < 7 * 80


def test_contributions_add_up_to_the_score_less_the_belief_and_an_absent_modality_adds_nothing(detector):
    records = synthetic.records(1, 50)
    names = list(records.tokens)
    found = subset_scores(detector, records, subsets(3), PRIOR)
    value = {frozenset(name for member, name in enumerate(names) if mask >> member & 1): one for mask, one in found.items()}
    shares = shapley({frozenset(): PRIOR, **value}, names)
    assert np.allclose(shares.sum(1), found[7] - PRIOR, atol=1e-6)
    assert np.abs(shares[~records.present.numpy()]).max() == 0


def test_nothing_to_score_is_no_error(detector):
    assert scores(detector, synthetic.records(0, 6).take([])).shape == (0,)
