"""What the best possible model of each subset of modalities reaches on the folds of a study, where a generated data set says so; else nothing.

The generator writes the exact likelihood ratio of each weld (media/oracle.parquet). Under P4 the bound is that of a model which knows the fault that was
left out, as no model that looks for any fault is sure to be below the ratio of all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages import io
from stages.datasets.samples import root_of
from stages.metrics.ranking import auroc
from stages.serving.weld_rows import HEADLINE
from stages.serving.weld_study import Plan

FILE = "oracle.parquet"
PREFIX, OF_FAULT, WHOLE = "log_ratio_", "log_ratio_of_", "log_ratio_all"


def ratios(planned: Plan) -> dict[str, dict[str, Any]]:
    """By record id its row of the oracle; empty where the data set has none."""
    about = Path("data", planned.asked.dataset, "dataset.json")
    path = root_of(about) / FILE if about.is_file() else Path()
    if not path.is_file():
        return {}
    by_place = {row["place"]: row for row in io.read_table(path)}
    return {row["record_id"]: by_place[place] for row in planned.table if (place := _place(row)) in by_place}


def _place(row: Mapping[str, Any]) -> str:
    """session/part, from where any of its files lies."""
    path = next(value for name, value in row.items() if name.endswith("_path") and value)
    return "/".join(path.split("/")[:2])


def auroc_by_protocol(planned: Plan) -> dict[str, float]:
    """By column of the main table, the mean over folds."""
    known = ratios(planned)
    if not known:
        return {}
    found = {}
    for protocol, parted in planned.folds.items():
        if parted.folds:
            columns = [f"{OF_FAULT}{fold.name}" if protocol == "P4" else WHOLE for fold in parted.folds]
            kind = "O" if protocol == "P4" else "S"
            values = [_auroc(planned, known, fold.test, column) for fold, column in zip(parted.folds, columns, strict=True)]
            found[f"{protocol}_auroc_{kind}"] = float(np.mean(values))
    return found


def auroc_by_subset(planned: Plan) -> dict[frozenset[str], float]:
    """By subset of modalities, the mean over the folds of P2."""
    known = ratios(planned)
    if not known or HEADLINE not in planned.folds:
        return {}
    columns = [name for name in next(iter(known.values())) if name.startswith(PREFIX) and not name.startswith(OF_FAULT)]
    every = {name for column in columns for name in column.removeprefix(PREFIX).split("+")} - {"all"}
    found = {}
    for name in columns:
        subset = frozenset(every if name == WHOLE else name.removeprefix(PREFIX).split("+"))
        found[subset] = float(np.mean([_auroc(planned, known, fold.test, name) for fold in planned.folds[HEADLINE].folds]))
    return found


def _auroc(planned: Plan, known: Mapping[str, Mapping[str, Any]], test: tuple[str, ...], column: str) -> float:
    label = {row["record_id"]: row["label"] for row in planned.table}
    return auroc([known[one][column] for one in test], [label[one] for one in test])
