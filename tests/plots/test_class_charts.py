"""Charts of classes: shares are those of a row, the hardest class comes first, training and validation are told apart, every specification compiles."""

import json

import pytest
import vl_convert

from stages.plots import class_charts as charts

NAMES = ["normal", "lack_of_fusion"]
CURVE = [{"model": "a", "epoch": epoch, "train": 1 / (epoch + 1), "val": 0.5, "kept": epoch == 3} for epoch in range(400)]
CELLS = [
    {"model": "a", "class": "normal", "f1": 0.9, "records": 9},
    {"model": "a", "class": "lack_of_fusion", "f1": 0.4, "records": 2},
    {"model": "a", "class": "overlap", "f1": None, "records": 0},
]


def rows_of(spec: dict) -> list[dict]:
    return [row for layer in [spec, *spec.get("layer", [])] for row in layer.get("data", {}).get("values", [])]


def test_a_cell_is_coloured_by_its_share_of_what_records_are():
    rows = {(row["is"], row["told"]): row for row in rows_of(charts.confusion(NAMES, [[6, 2], [0, 0]]))}
    assert rows["normal", "lack of fusion"]["share"] == 0.25 and rows["normal", "normal"]["records"] == 6
    assert rows["lack of fusion", "normal"]["share"] == 0


def test_the_hardest_class_comes_first_and_one_without_records_is_left_out():
    spec = charts.by_class(CELLS, ["a"])
    assert spec["layer"][0]["encoding"]["x"]["sort"] == ["lack of fusion", "normal"]
    assert {row["percent"] for row in rows_of(spec)} == {90, 40}


def test_curves_are_thinned_but_begin_and_end_where_training_did_and_the_kept_state_has_a_mark():
    rows = rows_of(charts.learning(CURVE, "loss"))
    own = [row["epoch"] for row in rows if row.get("part") == "training"]
    assert len(own) == charts.MOST_POINTS and (own[0], own[-1]) == (0, 399)
    assert [row for row in rows if "part" not in row] == [{"model": "a", "epoch": 3, "value": 0.5}]
    dash = charts.learning(CURVE, "loss")["layer"][0]["encoding"]["strokeDash"]["scale"]
    assert dash["domain"] == ["training", "validation"] and dash["range"][0] != dash["range"][1] == [1, 0]


@pytest.mark.parametrize("spec", [charts.confusion(NAMES, [[8, 2], [1, 3]]), charts.by_class(CELLS, ["a"]), charts.learning(CURVE, "loss")])
def test_every_chart_is_plain_json_that_vega_lite_draws_and_fits_its_place(spec):
    json.dumps(spec, allow_nan=False)
    assert spec["width"] == "container" and "<path" in vl_convert.vegalite_to_svg(spec | {"width": 330})


def test_the_picture_for_a_page_of_text_has_both_panels_and_says_in_words_what_it_shows():
    import xml.etree.ElementTree as tree

    drawn = charts.picture({"loss": CURVE, "accuracy": CURVE}, "a & b <over-fit>")
    root = tree.fromstring(drawn)
    assert root.get("role") == "img" and root[0].text == "a & b <over-fit>"
    assert b">loss<" in drawn and b">accuracy<" in drawn and float(root.get("width")) > 2 * charts.WIDTH
    assert b"http://" not in drawn.replace(b"http://www.w3.org", b"")
