"""The report's charts of signals: peaks survive thinning, curves have their areas, verdicts follow the threshold, bins count every step."""

import json

import numpy as np
import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from stages.plots import series_charts as charts

VARIABLES = ["cpu", "memory", "queue"]


def rows_of(spec: dict) -> list[dict]:
    return [row for layer in [spec, *spec.get("layer", [])] for row in layer.get("data", {}).get("values", [])]


@given(st.lists(st.floats(-1e3, 1e3, width=16), min_size=1, max_size=300), st.integers(1, 40))
def test_thinning_keeps_the_highest_peak_at_its_step(score, points):
    thinned = charts.peaks(score, points)
    best = max(thinned, key=lambda row: row["score"])
    assert len(thinned) <= points and best["score"] == float(f"{max(score):.4g}")
    assert float(f"{score[best['step']]:.4g}") == best["score"]
    assert [row["step"] for row in thinned] == sorted({row["step"] for row in thinned})


def test_an_event_is_found_when_one_step_reaches_the_threshold():
    score = [0, 0, 2, 0, 0, 1.9, 0, 5, 0]
    judged = charts.outcomes(score, [(1, 4, "spike"), (5, 7, "spike"), (7, 8, "leak")], 2.0)
    assert [row["outcome"] for row in judged] == ["found", "missed", "found"]
    assert {row["outcome"] for row in charts.outcomes(score, [(1, 4, "spike")], None)} == {"missed"}


def test_the_telling_events_are_the_surest_find_and_the_deepest_miss():
    regions = [(0, 2, "a"), (2, 4, "b"), (4, 6, "c"), (6, 8, "d")]
    assert charts.telling_events([3, 0, 9, 0, 1, 0, 0.5, 0], regions, 2.0) == {"found": (2, 4, "b"), "missed": (6, 8, "d")}
    assert charts.telling_events([9, 9], [(0, 2, "a")], 2.0) == {"found": (0, 2, "a")}


def test_curves_keep_the_areas_of_scikit_learn_where_anomalies_are_rare():
    rng = np.random.default_rng(0)
    label = rng.random(20_000) < 0.03
    score = rng.normal(2.0 * label, 1.0)
    points = charts.curve_points(score, label)
    roc, pr = (np.array([(point["x"], point["y"]) for point in points if point["curve"] == curve]).T for curve in ("ROC", "PR"))
    assert len(points) < 300
    assert auc(*roc) == pytest.approx(roc_auc_score(label, score), abs=2e-3)
    assert auc(*pr) == pytest.approx(average_precision_score(label, score), abs=1e-2)
    assert charts.curve_points(score, np.zeros(20_000)) == []


@pytest.mark.parametrize("stretch", [1.0, 1e4])
def test_every_step_is_in_one_bar_of_the_histogram_also_on_the_bent_axis(stretch):
    rng = np.random.default_rng(1)
    scores = {"normal": rng.gamma(2, 1, 500), "disturbing": rng.gamma(2, 2, 90), "anomaly": stretch * rng.gamma(2, 1, 40)}
    bars = [row for row in rows_of(charts.histogram(scores, 3.0)) if "steps" in row]
    assert {kind: sum(bar["steps"] for bar in bars if bar["kind"] == kind) / 2 for kind in scores} == {
        "normal": 500,
        "disturbing": 90,
        "anomaly": 40,
    }


def test_rows_stand_from_best_to_worst_and_one_without_a_value_stands_last():
    rows = [
        {"model": model, "category": "a", "value": value, "low": value, "high": value}
        for model, value in [("b", 0.2), ("a", 0.9), ("c", None)]
    ]
    assert charts.intervals(rows, "VUS-PR", ["a"])["layer"][0]["encoding"]["y"]["sort"] == ["a", "b", "c"]


def test_kinds_stand_from_the_hardest_to_the_easiest():
    cells = [
        {"model": "m", "kind": kind, "recall": recall, "events": 3} for kind, recall in [("easy_one", 1.0), ("hard", 0.0), ("none", None)]
    ]
    assert charts.by_kind(cells, ["m"])["layer"][0]["encoding"]["y"]["sort"] == ["hard", "easy one"]


def test_the_shares_of_a_strip_add_up_to_the_whole_score():
    rng = np.random.default_rng(2)
    weights = rng.random((50, 3))
    spec = charts.event(rng.normal(size=(50, 3)), weights.sum(1), weights, VARIABLES, (110, 120), 1.5, 100)
    shares = [(row["from"], row["share"]) for row in rows_of(spec) if "share" in row]
    for step in {step for step, _ in shares}:
        assert sum(share for at, share in shares if at == step) == pytest.approx(1, abs=1e-3)


def specifications() -> dict[str, dict]:
    rng = np.random.default_rng(3)
    score = rng.gamma(2, 1, 400)
    label = np.zeros(400, int)
    label[50:60] = 1
    cells = [{"model": "m", "kind": "spike", "recall": 0.5, "events": 2}]
    row = {"model": "m", "category": "easy", "value": 0.5, "low": 0.4, "high": 0.6}
    points = [{**point, "model": "m"} for point in charts.curve_points(score, label)]
    return {
        "timeline": charts.timeline(score, [(50, 60, "spike")], 4.0),
        "intervals": charts.intervals([row], "VUS-PR", ["easy"]),
        "by_kind": charts.by_kind(cells, ["m"]),
        "histogram": charts.histogram({"normal": score, "anomaly": score[50:60]}, 4.0),
        "roc": charts.curves(points, ["m"], "ROC", 0.025),
        "pr": charts.curves(points, ["m"], "PR", 0.025),
        "parts": charts.parts([{**row, "part": "combined"}], "VUS-PR", ["easy"]),
        "event": charts.event(rng.normal(size=(400, 3)), score, rng.random((400, 3)), VARIABLES, (50, 60), 4.0),
    }


def test_every_chart_fits_a_telephone_and_draws_marks():
    """No view is wider than its place, and Vega draws something else than axes."""
    for name, spec in specifications().items():
        assert spec["width"] == "container" and not {"hconcat", "vconcat", "facet"} & spec.keys(), name
        json.dumps(spec, allow_nan=False)
        svg = vl_convert.vegalite_to_svg({**spec, "width": 358})
        assert 'role="graphics-object"' in svg and "mark-" in svg and "NaN" not in svg, name


def test_a_long_series_weighs_little_in_the_page():
    spec = charts.timeline(np.random.default_rng(4).gamma(2, 1, 200_000), [], None)
    assert len(json.dumps(spec)) < 80_000
