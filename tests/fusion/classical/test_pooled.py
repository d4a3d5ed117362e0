"""Pooling, against a plain loop over records in numpy."""

import numpy as np
import pytest
import torch

from stages.datasets.records import batches
from stages.fusion.classical.pooled import Pool
from tests.fusion.synthetic import WIDTHS, records, samples


def by_loop(seed: int, count: int, name: str, spread: bool) -> np.ndarray:
    """(B, D) or (B, 2D) float64, NaN where absent."""
    rows = []
    for record in samples(seed, count):
        values = record.modalities[name].values.double().numpy() if name in record.modalities else np.full((1, WIDTHS[name]), np.nan)
        rows.append(np.concatenate([values.mean(0), values.std(0)]) if spread else values.mean(0))
    return np.stack(rows)


@pytest.mark.parametrize("spread", [False, True])
def test_rows_are_mean_and_deviation_over_tokens_in_units_of_the_training_records(spread):
    pool = Pool(WIDTHS, spread)
    pool.learn(batches(records(0, 50), size=7))
    found = pool(records(1, 30))
    for name in WIDTHS:
        train, test = by_loop(0, 50, name, spread), by_loop(1, 30, name, spread)
        expected = np.nan_to_num((test - np.nanmean(train, 0)) / np.nanstd(train, 0))
        np.testing.assert_allclose(found.parts[name], expected, atol=1e-5)


def test_training_records_have_mean_0_and_deviation_1_and_what_they_lack_is_0():
    rows = Pool(WIDTHS).learn([records(0, 50)])
    for number, part in enumerate(rows.parts.values()):
        seen = part[rows.present[:, number]].numpy()
        np.testing.assert_allclose(seen.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(seen.std(0), 1, atol=1e-5)
        assert (part[~rows.present[:, number]] == 0).all() and (~rows.present[:, number]).any()


def test_a_record_is_pooled_the_same_alone_and_among_others_to_the_last_bit():
    pool, given = Pool(WIDTHS, spread=True), records(2, 20)
    pool.learn([given])
    whole = pool(given).together
    assert all(torch.equal(pool(given.take([at])).together[0], whole[at]) for at in range(20))


def test_a_column_that_never_varies_keeps_its_units():
    given = records(0, 20, missing=0)
    text = given.tokens["text"]
    text.values[:, 0] = 7.0
    pool = Pool(WIDTHS)
    assert (pool.learn([given]).parts["text"][:, 0] == 0).all()
    text.values[:, 0] = 9.0
    assert (pool(given).parts["text"][:, 0] == 2).all()


def test_a_modality_that_no_training_record_has_and_no_record_at_all_are_no_error():
    pool = Pool(WIDTHS)
    pool.learn([records(0, 20, missing=0).only(["image", "series"])])
    assert pool(records(1, 5, missing=0)).together.isfinite().all()
    assert pool.rows([]).together.shape == (0, sum(WIDTHS.values()))
