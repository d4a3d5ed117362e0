import numpy as np
import pytest
import torch

from stages.datasets.media import Signal
from stages.datasets.samples import DataError
from stages.encoders import media
from stages.encoders.media.encoder import Place

PLACE = Place("cpu", 1, None)


def _tokens(values, **options):
    encoder = media.build("w", "windows", {"steps": 8, "frequencies": 3, **options}, PLACE)
    return encoder.encode([Signal(np.asarray(values, np.float32), np.arange(len(values)), ("a",))])[0]


def test_a_patch_by_hand():
    """A ramp 0..7 and a missing step: mean, deviation, least, greatest, slope (from -1 to 1), share missing."""
    ramp = _tokens(np.arange(8.0)[:, None]).values[0]
    np.testing.assert_allclose(ramp[:6], [3.5, np.sqrt(5.25), 0, 7, 3.5, 0], rtol=1e-6)
    gap = _tokens(np.array([0, 1, np.nan, 3, 4, 5, 6, 7.0])[:, None]).values[0]
    np.testing.assert_allclose(gap[:6], [26 / 7, np.std([0, 1, 3, 4, 5, 6, 7]), 0, 7, 3.5, 1 / 8], rtol=1e-6)


def test_amplitudes_are_those_of_the_waves():
    steps = np.arange(8)
    wave = 5 + 2 * np.sin(2 * np.pi * steps / 8) + 0.5 * np.cos(2 * np.pi * 3 * steps / 8)
    np.testing.assert_allclose(_tokens(wave[:, None]).values[0, 6:], [2, 0, 0.5], atol=1e-6)


def test_a_patch_without_values_is_zero_but_for_the_share_missing():
    token = _tokens(np.full((8, 1), np.nan)).values[0]
    assert token[5] == 1 and token.abs().sum() == 1


def test_a_short_rest_joins_the_patch_before_it_and_a_long_one_is_its_own():
    assert [len(_tokens(np.zeros((count, 1))).values) for count in (1, 8, 11, 12, 16, 19, 20)] == [1, 1, 1, 1, 2, 2, 2]
    assert len(_tokens(np.zeros((21, 1))).values) == 3


def test_nominal_figures_choose_order_and_scale(tmp_path):
    (tmp_path / "a.csv").write_text("heat,speed,spare\n" + "20,1500,0\n" * 8)
    (tmp_path / "b.csv").write_text("spare,speed,heat\n" + "0,1500,20\n" * 8)
    (tmp_path / "c.csv").write_text("speed\n" + "1500\n" * 8)
    encoder = media.build("w", "windows", {"steps": 8, "frequencies": 0, "nominal": {"speed": [1400, 50], "heat": [20, 5]}}, PLACE)
    first, second = encoder([tmp_path / "a.csv", tmp_path / "b.csv"])
    assert torch.equal(first.values, second.values) and first.values.shape == (1, 12)
    assert first.values[0].tolist() == [2, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"E434 .*c.csv has no column 'heat'; its columns: speed"):
        encoder.read(tmp_path / "c.csv")


def test_infinite_values_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    pa.parquet.write_table(pa.table({"a": [1.0, float("inf")]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="E434 .*infinite"):
        media.build("w", "windows", {}, PLACE).read(tmp_path / "a.parquet")
