"""What the sample table says of a record, as a token."""

from importlib import import_module

import pytest
import torch

from stages.datasets.record_store import RecordStore
from stages.datasets.samples import DataError
from stages.encoders.media.facts import pack
from stages.params import ParamsError, options

ROWS = [
    {"record_id": "a", "label": 0, "group": "", "fault": "", "split": None, "fact_current_a": 150.0, "fact_steel": "S235"},
    {"record_id": "b", "label": 1, "group": "", "fault": "burr", "split": None, "fact_current_a": 210.0, "fact_steel": "other"},
    {"record_id": "c", "label": 1, "group": "", "fault": "burr", "split": None, "fact_current_a": None, "fact_steel": "S235"},
]


def test_numbers_are_scaled_by_the_engineers_figures_and_names_are_columns(tmp_path):
    told = pack(ROWS, tmp_path, "setpoint", {"control": True}, nominal={"current_a": (180.0, 30.0)}, levels={"steel": ["S235", "S355"]})
    store = RecordStore(tmp_path)
    assert told == 2 and store.record_ids == ["a", "b"] and store.about["control"] is True
    values = store.tokens(["b", "a"])["setpoint"].values
    torch.testing.assert_close(values, torch.tensor([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"nominal": {"curent_a": (1.0, 1.0)}}, "no fact 'curent_a'; did you mean 'current_a'"), ({}, "names no fact. Known: current_a, steel")],
)
def test_a_fact_that_the_table_has_not_is_named(tmp_path, options, said):
    with pytest.raises(ParamsError, match=said):
        pack(ROWS, tmp_path, "setpoint", {}, **options)


def test_facts_that_no_record_has_together_are_no_empty_control(tmp_path):
    with pytest.raises(DataError, match="E436 no record has all of current_a"):
        pack(ROWS[2:], tmp_path, "setpoint", {}, nominal={"current_a": (180.0, 30.0)})


@pytest.mark.parametrize("kind", ["facts", "sensor_steps", "windows"])
def test_a_spread_of_nothing_is_refused(kind):
    build = pack if kind == "facts" else import_module(f"stages.encoders.media.{kind}").build
    with pytest.raises(ParamsError, match="nominal.feed.1: Input should be greater than 0"):
        options(build, {"nominal": {"feed": [10.0, 0.0]}}, at=())


def test_what_can_be_anything_is_one_of_some_columns_the_same_for_the_same(tmp_path):
    rows = [row | {"record_id": f"{number}", "fact_session": f"s{number // 2}"} for number, row in enumerate([ROWS[0]] * 40)]
    assert pack(rows, tmp_path, "session", {}, hashed={"session": 64}) == 40
    values = RecordStore(tmp_path).tokens([row["record_id"] for row in rows])["session"].values
    assert values.shape == (40, 64) and (values.sum(1) == 1).all()
    columns = values.argmax(1)
    assert torch.equal(columns[::2], columns[1::2]) and len(columns.unique()) > 14
