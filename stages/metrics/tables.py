"""Metrics of one model as tables: one row per category and a last one for the mean."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

MEAN = "mean"  # what the last row is called
Cells = dict[str, dict[str, Any]]  # {"image_auroc": {"value", "low", "high"} or {"value": None, "reason"}}


def metrics_csv(cells: Cells) -> str:
    """One metric a line: name, value, 95 % interval, and the reason where there is no value."""
    rows = [
        [name, *(cell.get(key, "") if cell.get(key) is not None else "" for key in ("value", "low", "high", "reason"))]
        for name, cell in cells.items()
    ]
    return _csv([["metric", "value", "low", "high", "reason"], *rows])


def summary_csv(categories: dict[str, Cells], mean: Cells) -> str:
    """Full precision, one row a category, empty where a metric is not available."""
    rows = [
        [name, *("" if cell["value"] is None else cell["value"] for cell in cells.values())]
        for name, cells in [*categories.items(), (MEAN, mean)]
    ]
    return _csv([["category", *mean], *rows])


def summary_pretty(categories: dict[str, Cells], mean: Cells) -> list[list[str]]:
    """Header and rows in percent with their intervals, for people."""
    rows = [[name, *(pretty(cell) for cell in cells.values())] for name, cells in [*categories.items(), (MEAN, mean)]]
    return [["category", *mean], *rows]


def pretty_csv(categories: dict[str, Cells], mean: Cells) -> str:
    return _csv(summary_pretty(categories, mean))


def pretty_markdown(categories: dict[str, Cells], mean: Cells) -> str:
    header, *rows = summary_pretty(categories, mean)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def pretty(cell: dict[str, Any]) -> str:
    """`95.7 [94.1, 97.0]` in percent, or n/a."""
    if cell["value"] is None:
        return "n/a"
    interval = f" [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]" if cell.get("low") is not None else ""
    return f"{100 * cell['value']:.1f}{interval}"


def rows_csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """The columns of the rows, full precision; empty where there is nothing."""
    return _csv([list(columns), *(["" if row[column] is None else row[column] for column in columns] for row in rows)])


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
