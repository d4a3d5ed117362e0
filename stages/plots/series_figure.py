"""One figure of the series task: a picture and, beside it, the very numbers that are drawn.

A figure is a Vega-Lite specification that carries its data; the PNG is drawn from it and the CSV is taken out of it, so the two cannot differ. Names
and folders are fixed here: `assay plots series` writes visualization/<group>/<name>.png and .csv.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stages.plots.series_palette import QUIET

NAMES = {
    "data": (
        "sample_types", "feature_examples", "anomaly_generation_rules", "feature_correlations", "normal_complexity_features",
        "complexity_vs_anomaly", "experiment_settings",
    ),
    "architecture": (
        "model_pipeline", "patchify_modes", "masking_visualization", "self_distillation_concept", "margin_types", "loss_components",
    ),
    "stage1": (
        "heatmaps_<metric>", "parallel_coordinates", "parameter_importance", "top_k_comparison", "metric_distributions", "patchify_mode_comparison",
        "margin_type_comparison", "stage1_summary_dashboard",
    ),
    "stage2": (
        "quick_vs_full", "selection_criterion", "learning_curves", "hyperparam_<factor>", "hyperparameter_interactions", "best_config_summary",
        "stage2_summary_dashboard",
    ),
    "best_model": (
        "roc_curve", "pr_curve", "score_distribution", "confusion_matrix", "score_components", "teacher_student_comparison", "reconstruction",
        "detection_examples", "pure_vs_disturbing_normal", "discrepancy_trend", "loss_by_anomaly_type", "performance_by_anomaly_type",
        "loss_scatter_by_anomaly_type", "sample_type_analysis", "case_study_gallery", "anomaly_type_case_studies", "feature_contribution",
        "hardest_samples", "hypothesis_verification", "summary",
    ),
    "training_progress": (
        "score_evolution", "sample_trajectories", "metrics_evolution", "late_bloomers", "anomaly_type_learning", "reconstruction_evolution",
        "decision_boundary_evolution",
    ),
}  # fmt: skip
INK, SOFT, LINE = "#1d2429", "#55626a", "#dde3e7"
FONT = "sans-serif"  # the one that every drawer brings along
DRAWN_AT = 2  # pixels a point
OWN_SCALES = {"scale": dict.fromkeys(("color", "shape", "size", "strokeDash"), "independent")}


class Figure(NamedTuple):
    group: str  # a key of NAMES
    name: str
    spec: dict[str, Any]

    def png(self) -> bytes:
        """Drawn offline."""
        import vl_convert

        return vl_convert.vegalite_to_png(self.spec, scale=DRAWN_AT, config=look())

    def csv(self) -> str:
        """All rows that are drawn; `table` says of which part of the picture where there are several."""
        tables = self.tables()
        columns = list(dict.fromkeys(column for rows in tables.values() for row in rows for column in row))
        file = io.StringIO()
        writer = csv.DictWriter(file, (["table"] if len(tables) > 1 else []) + columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"table": name, **row} for name, rows in tables.items() for row in rows)
        return file.getvalue()

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each table of the figure, by name, in the order in which they are drawn."""
        return {name: rows for name, rows in _tables(self.spec)}


def figure(group: str, name: str, chart: Any, title: str, subtitle: str | Sequence[str] = "") -> Figure:
    """chart: altair's, or a specification. title: what the picture shows or says; subtitle: how to read it, with units."""
    words = {"text": title, "anchor": "start", "frame": "bounds", "offset": 14} | ({"subtitle": subtitle} if subtitle else {})
    return Figure(group, name, {**_specification(chart), "title": words, "padding": 14})


def table(rows: Iterable[Mapping[str, Any]], name: str) -> Any:
    """Rows to draw; each table of a figure has a name of its own. Numbers are cut to five digits, what is not finite is left empty."""
    import altair as alt

    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    return alt.Data(values=json.dumps(plain), name=name)  # as text: altair would go through every value of a list, twice


def wrapped(panels: Sequence[Any], columns: int) -> dict[str, Any]:
    """Charts of one thing side by side, in as many rows as it takes, with one legend."""
    rows = [list(panels[start : start + columns]) for start in range(0, len(panels), columns)]
    return {"vconcat": [{"hconcat": [_specification(panel) for panel in row]} for row in rows]}


def beside(*charts: Any) -> dict[str, Any]:
    """Charts of different things in one row, each with colours and a legend of its own."""
    return {"hconcat": [_specification(chart) for chart in charts], "resolve": OWN_SCALES}


def beneath(*charts: Any) -> dict[str, Any]:
    """Charts of different things in one column, each with colours and a legend of its own."""
    return {"vconcat": [_specification(chart) for chart in charts], "resolve": OWN_SCALES}


def look() -> dict[str, Any]:
    """The report page's, on white paper."""
    text = {"labelColor": SOFT, "titleColor": SOFT, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": 500}
    return {
        "background": "#ffffff", "font": FONT, "view": {"stroke": None}, "text": {"color": INK}, "range": {"category": [QUIET]},
        "title": {"color": INK, "anchor": "start", "fontSize": 17, "subtitleColor": SOFT, "subtitleFontSize": 13, "subtitlePadding": 6, "offset": 10},
        "axis": {**text, "gridColor": LINE, "domainColor": LINE, "tickColor": LINE}, "axisQuantitative": {"labelOverlap": "greedy"},
        "legend": {**text, "orient": "top", "symbolOpacity": 1},
        "header": {"labelColor": INK, "labelFontSize": 12, "labelFontWeight": 600, "titleColor": SOFT}, "concat": {"spacing": 26},
    }  # fmt: skip


def _tables(part: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    if isinstance(part, dict):
        data = part.get("data", {})
        if data.get("values"):
            yield data["name"], data["values"]
        for key, inner in part.items():
            if key != "data":
                yield from _tables(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _tables(inner)


def _specification(chart: Any) -> dict[str, Any]:
    """Plain dicts, one chart at a time: altair copies all of a composition each time that it grows."""
    if isinstance(chart, dict):
        return chart
    drawn = chart.to_dict(validate=False)
    return {key: _unpacked(part) for key, part in drawn.items() if key not in ("$schema", "config")}


def _unpacked(part: Any) -> Any:
    """The rows of `table` as rows again."""
    if isinstance(part, list):
        return [_unpacked(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    if isinstance(part.get("values"), str):
        return {**part, "values": json.loads(part["values"])}
    return {key: _unpacked(inner) for key, inner in part.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.5g}") if value - value == 0 else None
    return value
