"""Sensors divided by what was set: nothing of the setting is left, and a deviation from it is."""

import numpy as np
import pytest
import torch

from stages.datasets.samples import DataError
from stages.encoders import media
from stages.encoders.media.encoder import Place
from stages.encoders.media.sensor_residual import commanded, residual
from tests.datasets.weld_trees import MANIFEST, log_rows, write_log
from tests.encoders.media.test_contract import holds

PLACE = Place("cpu", 1, None)


def weld(root, number: int, amperes: float, share: float = 1.0, volts: float = 24.0):
    """A log whose current is `share` of the amperes that were set."""
    rows = log_rows(3.0, (0.5, 2.5), seed=0)
    burning = rows[:, 4] > 5
    rows[:, 4] = np.where(burning, amperes * share * (1 + 0.01 * np.sin(rows[:, 0])), 0)
    rows[:, 6] = np.where(burning, volts, 0)
    place = root / "s0" / f"p{number}"
    place.mkdir(parents=True)
    return write_log(place / f"p{number}.csv", rows)


@pytest.fixture
def welds(tmp_path):
    """The same process at three settings, and one whose current is a fifth too low."""
    settings = ((120.0, 1.0, 20.0), (180.0, 1.0, 24.0), (260.0, 1.0, 28.0), (180.0, 0.8, 24.0))
    logs = [weld(tmp_path, number, *one) for number, one in enumerate(settings)]
    lines = [f"Good,fillet,7,Fe410,1,{amperes},{volts},1.8,30,s0,s0/p{number},TRAIN" for number, (amperes, _, volts) in enumerate(settings)]
    (tmp_path / "manifest.csv").write_text("\n".join([MANIFEST, *lines]) + "\n")
    return logs


def test_what_every_kind_promises(welds):
    encoder = media.build("w", "sensor_residual", {"kept": {"Pressure": [1.8, 0.5]}, "clock_s": 4.0}, PLACE)
    holds(encoder, {"series": [welds[0], welds[3], welds[1]]}, "series", 3)
    assert media.rebuild(encoder.identity, PLACE).identity == encoder.identity


def test_the_setting_cannot_be_told_and_a_deviation_from_it_can(welds):
    plain, divided = media.build("w", "sensor_steps", {}, PLACE)(welds), media.build("w", "sensor_residual", {}, PLACE)(welds)
    assert (plain[0].values[:10, 3] - plain[2].values[:10, 3]).abs().min() > 1
    for tokens in divided[1:3]:
        torch.testing.assert_close(tokens.values, divided[0].values, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(divided[3].values[:10, 0], divided[0].values[:10, 0] * 0.8 - 2.0, atol=1e-3, rtol=1e-3)  # a fifth is two spreads
    assert torch.equal(divided[3].time, plain[3].time)


def test_by_hand():
    assert residual([[90.0, 5.0], [np.nan, 5.0]], [180.0, np.nan]).tolist()[0] == [0.5, 5.0]
    assert np.isnan(residual([[np.nan]], [180.0]))
    with pytest.raises(ValueError, match="column 1"):
        residual([[1.0, 2.0]], [1.0, 0.0])
    with pytest.raises(ValueError, match="one setpoint for each"):
        residual([[1.0, 2.0]], [1.0])


def test_a_sensor_that_says_nothing_is_as_set_and_tells_nothing_of_the_setting(tmp_path, welds):
    rows = log_rows(3.0, (0.5, 2.5))
    rows[:, 6] = np.nan
    write_log(welds[0], rows)
    assert (media.build("w", "sensor_residual", {}, PLACE)(welds[:1])[0].values[:, 1] == 0).all()


def test_what_was_set_must_be_known(tmp_path, welds):
    assert commanded(welds[2], ["current_a", "voltage_v"]).tolist() == [260.0, 28.0]
    encoder = media.build("w", "sensor_residual", {"divided": {"Primary Weld Current": ["steel_type", 0.1]}}, PLACE)
    with pytest.raises(DataError, match="does not say steel_type"):
        encoder.read(welds[0])
    manifest = (tmp_path / "manifest.csv").read_text()
    (tmp_path / "manifest.csv").write_text(manifest.replace("s0/p1", "s0/p9"))
    with pytest.raises(DataError, match="no row for p1"):
        commanded(welds[1], ["current_a"])
    (tmp_path / "manifest.csv").unlink()
    with pytest.raises(DataError, match="there is no manifest.csv above"):
        commanded(welds[0], ["current_a"])
    with pytest.raises(DataError, match="no sensor 'heat'"):
        media.build("w", "sensor_residual", {"kept": {"heat": [0, 1]}}, PLACE).read(welds[0])
