"""The report's charts of records: means are those of the subsets, bars sum, faults go from hard to easy, every specification compiles."""

import json

import numpy as np
import pytest
import vl_convert

from stages.plots import record_charts as charts

MODALITIES = ["text", "image", "audio"]
SUBSETS = [
    {"modalities": "text", "present": 1, "roc_auc": 0.6, "low": 0.5, "high": 0.7},
    {"modalities": "image", "present": 1, "roc_auc": 0.8, "low": 0.7, "high": 0.9},
    {"modalities": "text+audio", "present": 2, "roc_auc": 0.9, "low": 0.85, "high": 0.95},
    {"modalities": "text+image+audio", "present": 3, "roc_auc": None, "low": None, "high": None},
]


def rows_of(spec: dict) -> list[dict]:
    return [row for layer in [spec, *spec.get("layer", [])] for row in layer.get("data", {}).get("values", [])]


def test_the_line_of_missing_modalities_goes_through_the_mean_of_each_number_of_them():
    rows = [{"model": model, **one} for model in ("a", "b", "unnamed") for one in SUBSETS]
    spec = charts.missing(rows, ["a", "b"])
    means = {(row["model"], round(row["at"])): row["mean"] for row in rows_of(spec) if "mean" in row}
    assert means == {("a", 1): 0.7, ("a", 2): 0.9, ("b", 1): 0.7, ("b", 2): 0.9}
    dots = [row for row in rows_of(spec) if "roc_auc" in row]
    assert len(dots) == 6 and {row["at"] for row in dots if row["model"] == "a"}.isdisjoint(
        row["at"] for row in dots if row["model"] == "b"
    )


def test_each_subset_stands_over_dots_that_say_which_modalities_it_had_best_first():
    spec = charts.subsets(SUBSETS, MODALITIES)
    given = [row for row in rows_of(spec) if "given" in row]
    by_place = {place: [row["given"] for row in given if row["place"] == place] for place in range(3)}
    assert by_place == {0: [True, False, True], 1: [False, True, False], 2: [True, False, False]}
    assert max(row["y"] for row in given) < 0.5  # never among the intervals


def test_the_axis_below_names_the_modalities_also_where_its_places_are_below_zero():
    """Vega writes a minus that is no hyphen: a label is found by its place and not by its text."""
    rows = [
        {"modalities": "text", "roc_auc": 0.2, "low": 0.11, "high": 0.4},
        {"modalities": "image", "roc_auc": 0.9, "low": 0.8, "high": 1.0},
    ]
    svg = vl_convert.vegalite_to_svg(charts.subsets(rows, MODALITIES) | {"width": 330})
    assert [name for name in MODALITIES if f">{name}</text>" in svg] == MODALITIES and ">1.0</text>" in svg and ">−" not in svg


def test_bins_of_few_records_are_put_together_and_keep_their_means():
    made = [{"predicted": 0.1 * place, "observed": float(place % 2), "records": 3} for place in range(15)]
    rows = [row for row in rows_of(charts.reliability(made, [])) if row.get("which") == "as learnt"]
    rows = rows[: len(rows) // 2]  # the lines and the marks have the same ones
    assert len(rows) == 8 and sum(row["records"] for row in rows) == 45
    assert sum(row["records"] * row["observed"] for row in rows) == pytest.approx(21)
    assert rows[0] == {"which": "as learnt", "predicted": 0.05, "observed": 0.5, "records": 6}


def test_faults_go_from_the_hardest_to_the_easiest_and_what_has_no_figure_is_left_out():
    cells = [
        {"model": "a", "fault": "loose_belt", "roc_auc": 0.95, "records": 3},
        {"model": "a", "fault": "crack", "roc_auc": 0.612, "records": 3},
        {"model": "a", "fault": "dust", "roc_auc": None, "records": 0},
    ]
    spec = charts.by_fault(cells, ["a"])
    assert spec["layer"][0]["encoding"]["x"]["sort"] == ["crack", "loose belt"]
    assert {row["fault"]: row["percent"] for row in rows_of(spec)} == {"crack": 61, "loose belt": 95}


def test_contributions_are_red_or_blue_by_sign_and_what_is_missing_says_so():
    rows = {row["modality"]: row for row in rows_of(charts.contribution({"text": -0.5, "image": 1.25, "audio": None})) if "modality" in row}
    assert (rows["text"]["side"], rows["text"]["said"]) == ("normal", "-0.50")
    assert (rows["image"]["side"], rows["image"]["said"]) == ("anomalous", "+1.25")
    assert (rows["audio"]["value"], rows["audio"]["said"]) == (0.0, "missing")


def test_spreads_leave_out_records_that_lack_the_modality():
    values = {"text": np.array([1.0, 3.0, np.nan, 5.0]), "image": np.array([0.0, 0.0, 7.0, 0.0])}
    rows = {
        (row["modality"], row["kind"]): row
        for row in rows_of(charts.spreads(values, np.array([False, False, True, True])))
        if "kind" in row
    }
    assert rows["text", "normal"]["middle"] == 2.0 and rows["text", "anomalous"]["records"] == 1
    assert rows["image", "anomalous"]["most"] == pytest.approx(6.65)


def test_the_ranking_keeps_the_order_and_tells_kinds_apart_by_colour_and_shape():
    rows = [
        {"model": name, "value": value, "low": None, "high": None, "kind": kind}
        for name, value, kind in (("b", 0.9, "supervised"), ("a", 0.5, "control"))
    ]
    marks = charts.ranking(rows)["layer"][-1]["encoding"]
    assert marks["y"]["sort"] == ["b", "a"]
    assert marks["color"]["scale"]["domain"] == marks["shape"]["scale"]["domain"] == ["supervised", "control"]


def bins(*observed: float) -> list[dict]:
    return [{"predicted": 0.2 * place, "observed": value, "records": 5} for place, value in enumerate(observed)]


@pytest.mark.parametrize("spec", [
    charts.ranking([{"model": "a", "value": 0.8, "low": 0.7, "high": 0.9, "kind": "unsupervised"}]),
    charts.missing([{"model": "a", **one} for one in SUBSETS], ["a"]),
    charts.subsets(SUBSETS, MODALITIES),
    charts.by_fault([{"model": "a", "fault": "crack", "roc_auc": 0.6, "records": 3}], ["a"]),
    charts.reliability(bins(0.1, 0.3), bins()),
    charts.contribution({"text": 0.0, "image": None}),
    charts.spreads({"text": np.array([1.0, 2.0])}, np.array([True, False])),
    charts.experts([[0.25, 0.75], [0.5, 0.5]]),
])  # fmt: skip
def test_every_chart_is_plain_json_that_vega_lite_draws_and_fits_its_place(spec):
    json.dumps(spec, allow_nan=False)
    assert spec["width"] == "container" and spec["autosize"]["type"] == "fit-x"
    assert "<path" in vl_convert.vegalite_to_svg(spec | {"width": 330})
