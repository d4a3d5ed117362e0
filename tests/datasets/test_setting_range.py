"""Ranges of settings: by hand, what lies outside, and which facts are settings at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import io
from stages.datasets import setting_range

KNOWN = {"current_a": {"least": 172.0, "most": 219.0}, "steel": {"levels": ["BSK46", "FE410"]}}


def test_numbers_have_a_least_and_a_greatest_and_words_a_set():
    values = {"current_a": [190.0, 172.0, 219.0], "steel": ["FE410", "BSK46", "FE410"], "gas_bar": []}
    assert setting_range.ranges(values) == KNOWN


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"current_a": 172.0, "steel": "FE410"}, []),
        ({"current_a": 219.1, "steel": "FE410"}, ["current_a"]),
        ({"current_a": 171.9, "steel": "St37"}, ["current_a", "steel"]),
        ({"current_a": None, "gas_bar": 99.0}, []),  # not told, not known
        ({"current_a": "much"}, ["current_a"]),
        ({}, []),
    ],
)
def test_what_lies_outside(facts, said):
    assert [one.fact for one in setting_range.outside(KNOWN, facts)] == said


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.integers(-99, 99)), min_size=1), st.floats(0.001, 10))
def test_what_was_seen_is_never_outside_and_what_is_beyond_always(values, more):
    known = setting_range.ranges({"x": values})
    assert all(not setting_range.outside(known, {"x": float(value)}) for value in values)
    assert all(setting_range.outside(known, {"x": beyond}) for beyond in (max(values) + more, min(values) - more))


def test_records_are_counted_by_fact_and_told_in_one_line_each():
    rows = [{"current_a": 190.0, "steel": "St37"}, {"current_a": 260.0, "steel": "St37"}, {"current_a": 240.0}, {}]
    counts = setting_range.counted(KNOWN, rows)
    assert [(one["fact"], one["records"], one["of"]) for one in counts] == [("current_a", 2, 3), ("steel", 2, 2)]
    assert setting_range.warnings(counts) == [
        "current_a is 240 to 260 in 2 of 3 records; in training it was 172 to 219",
        "steel is St37 in 2 of 2 records; in training it was one of BSK46, FE410",
    ]


@pytest.fixture
def dataset(tmp_path):
    """Three records; controls name a number, two words and the session, and one fact is named by none."""
    rows = [
        {"record_id": f"r{at}", "group": f"s{at}", "fact_current_a": 180.0 + at, "fact_steel": steel, "fact_kind": kind}
        | {"fact_session": f"s{at}", "fact_inspector": "A"}
        for at, (steel, kind) in enumerate([("FE410", "Lap"), ("BSK46", "Lap"), ("FE410", "Butt")])
    ]
    io.write_table(tmp_path / "data/weld/samples.parquet", {name: [row[name] for row in rows] for name in rows[0]})
    io.write_json(tmp_path / "data/weld/manifest.json", {"samples": [{"record_id": row["record_id"], "group": row["group"], "split": "train"} for row in rows]})
    entries = {
        "setpoint": {"kind": "facts", "nominal": {"current_a": [190, 60]}, "levels": {"steel": ["FE410"]}, "hashed": {"kind": 16}},
        "session": {"kind": "facts", "nominal": None, "hashed": {"session": 64}},
        "series": {"kind": "windows", "nominal": {"inspector": [0, 1]}},
    }
    for name, entry in entries.items():
        io.write_json(tmp_path / "features/weld" / name / "records.json", {"entry": entry, "modalities": {}})
    return tmp_path


def test_settings_are_what_controls_name_and_no_name_of_a_group(dataset):
    assert setting_range.setting_names("weld", dataset) == ["current_a", "steel", "kind"]


def test_the_range_is_that_of_the_records_asked_for(dataset):
    assert setting_range.seen("weld", ["r0", "r1"], dataset) == {
        "current_a": {"least": 180.0, "most": 181.0},
        "steel": {"levels": ["BSK46", "FE410"]},
        "kind": {"levels": ["Lap"]},
    }


def test_a_data_set_without_facts_has_no_ranges(tmp_path):
    io.write_json(tmp_path / "data/weld/manifest.json", {"samples": []})
    assert setting_range.seen("weld", ["r0"], tmp_path) == {} == setting_range.facts_of("weld", tmp_path)
