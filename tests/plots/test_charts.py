"""Plots as data: the front is what nothing beats, curves are scikit-learn's, histograms count every image."""

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from stages.plots.charts import PLACES, by_category, cost_against_quality, curve_points, curves, scores


def values_of(spec: dict) -> list[dict]:
    return [value for layer in spec["layer"] for value in layer.get("data", spec.get("data", {})).get("values", [])]


def test_the_front_holds_the_models_that_no_other_beats_at_both():
    rows = [
        {"model": model, "latency_ms": latency, "auroc": auroc, "low": auroc, "high": auroc}
        for model, latency, auroc in [("fast", 1.0, 0.7), ("slow", 9.0, 0.9), ("worse", 5.0, 0.6), ("twin", 9.0, 0.9), ("late", 10.0, 0.9)]
    ]
    front = {value["model"]: value["front"] for value in values_of(cost_against_quality(rows))}
    assert front == {"fast": True, "slow": True, "worse": False, "twin": True, "late": False}


def test_names_of_crowded_models_cover_neither_each_other_nor_a_point():
    """A model far from all others has its name above its point; twins at one place do not have theirs at one place."""
    at = {"alone": (1.0, 0.5), "one": (10.0, 0.9), "another": (10.5, 0.9), "below": (10.0, 0.87), "twin": (30.0, 0.7), "twin again": (30.0, 0.7)}
    rows = [{"model": name, "latency_ms": x, "auroc": y, "low": y, "high": y} for name, (x, y) in at.items()]
    spec = cost_against_quality(rows)
    place = {value["model"]: value["place"] for value in values_of(spec)}
    assert place["alone"] == 0 and place["one"] is not None and len({place["one"], place["another"]}) == 2
    assert place["one"] != 1 and place["twin"] != place["twin again"]  # 1 would be on the point below
    drawn = [layer["mark"] for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    assert [(mark["align"], mark["dx"], mark["dy"]) for mark in drawn] == [PLACES[one] for one in sorted({*place.values()} - {None})]


def test_a_curve_is_drawn_in_the_order_of_its_points():
    points = [{"model": "a", "curve": curve, "x": x, "y": y, "order": n} for curve in ("ROC", "PR") for n, (x, y) in enumerate([(0, 0), (0, 1), (1, 1)])]
    spec = curves(points, ["a"])
    for panel in spec["hconcat"]:
        assert panel["data"]["values"] == [{"model": "a", "x": [0, 0, 1], "y": [0, 1, 1]}]
        assert panel["transform"] == [{"flatten": ["x", "y"]}] and panel["encoding"]["order"] == {"value": None}


def test_curves_have_the_areas_of_scikit_learn():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 70)  # fewer distinct scores than points: nothing is thinned
    score = np.round(rng.normal(label, 1.0), 1)
    points = curve_points(score, label)
    roc = [(point["x"], point["y"]) for point in points if point["curve"] == "ROC"]
    assert auc(*np.array(roc).T) == pytest.approx(roc_auc_score(label, score), abs=1e-3)
    recall, precision = np.array([(point["x"], point["y"]) for point in points if point["curve"] == "PR"]).T
    assert np.sum(np.diff(recall, prepend=0) * precision) == pytest.approx(average_precision_score(label, score), abs=2e-3)


def test_thinned_curves_keep_their_ends_and_a_single_class_has_none():
    rng = np.random.default_rng(1)
    points = curve_points(rng.normal(size=1000), np.arange(1000) % 2)
    roc = [point for point in points if point["curve"] == "ROC"]
    assert len(roc) == 81 and (roc[0]["x"], roc[0]["y"], roc[-1]["x"], roc[-1]["y"]) == (0, 0, 1, 1)
    assert curve_points(np.ones(3), np.ones(3, dtype=int)) == []


def test_every_image_is_in_one_bar_of_the_histogram_even_where_all_scores_are_equal():
    for good, bad, held_out in [([1.0, 2.0, 2.0], [3.0], [1.5]), ([1.0] * 4, [1.0], [])]:
        bars = [value for value in values_of(scores(good, bad, held_out, {"conformal": 1.2})) if "share" in value]
        for kind in {bar["kind"] for bar in bars}:
            assert sum(bar["share"] for bar in bars if bar["kind"] == kind) == pytest.approx(1)


def test_the_heat_map_keeps_the_order_of_the_leaderboard():
    cells = [{"model": model, "category": "a", "auroc": 0.5} for model in ("b", "a")]
    assert by_category(cells, ["b", "a"])["layer"][0]["encoding"]["y"]["sort"] == ["b", "a"]
