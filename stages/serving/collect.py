"""`assay leaderboard --collect DIR`: all result trees below a folder as one table, one file of each kind and one picture.

Reads what outputs.py and experiment.py write, `<dataset>/<method>/<experiment>/summary_metrics.csv`: the row of the mean; latency.json and
experiment.json beside it where they are there. Nothing is computed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages import io
from stages.errors import Missing
from stages.metrics import tables
from stages.metrics.tables import MEAN
from stages.plots import comparison
from stages.serving.experiment import ABOUT

SUMMARY = "summary_metrics.csv"
METRICS = {  # column of the table -> column of a summary
    "image_auroc": "image_auroc",
    "image_f1": "image_f1_max",
    "pixel_auroc": "pixel_auroc",
    "pixel_f1": "pixel_f1_max",
    "pro": "aupro",
}
TITLES = {"image_auroc": "image AUROC", "image_f1": "image F1", "pixel_auroc": "pixel AUROC", "pixel_f1": "pixel F1", "pro": "PRO"}
COST = {"latency_ms": "ms (batch 1)", "throughput_fps": "FPS (batch 16)", "vram_peak_mb": "VRAM MB"}
NAMES = ("dataset", "method", "experiment")
COLUMNS = (*NAMES, "k_shot", "weights", "categories", *METRICS, *COST)
NARROW = (*NAMES, "image_auroc", "pixel_auroc", "pro", "latency_ms")  # what a terminal of less than 140 columns has room for


def collect(folder: Path) -> list[dict[str, Any]]:
    """One row for each result tree, by data set, the best image AUROC first; what a tree does not have is None. Raises Missing for none at all."""
    if not folder.is_dir():
        raise Missing(f"{folder} is no folder; name the one that holds results, e.g. results")
    found = [path for path in sorted(folder.rglob(SUMMARY)) if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not found:
        raise Missing(f"no {SUMMARY} lies in {folder}. `assay run CONFIG` writes one, and so does `assay evaluate RUN --output-dir DIR`")
    return sorted(map(_row, found), key=_order)


def write(rows: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """comparison.csv (full precision), comparison.md (percent) and comparison.png in `out`."""
    drawn = [{**row, "experiment": f"{row['method']} / {row['experiment']}"} for row in rows]
    titles = {name: title for name, title in TITLES.items() if any(row[name] is not None for row in rows)}
    files = {
        "comparison.csv": tables.rows_csv(rows, COLUMNS).encode(),
        "comparison.md": markdown(rows).encode(),
        "comparison.png": comparison.picture(comparison.bars(drawn, titles)),
    }
    for name, content in files.items():
        io.write_bytes(out / name, content)
    return [out / name for name in files]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Metrics in percent; columns that no row has anything in are left out."""
    shown = _shown(rows)
    lines = [list(map(_title, shown)), ["---" if column in NAMES else "---:" for column in shown]]
    lines += [[_text(column, row[column]) for column in shown] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def render(rows: Sequence[dict[str, Any]], width: int | None = None) -> str:
    """The same as plain text for a terminal."""
    import io as streams

    from rich.console import Console
    from rich.table import Table

    screen = streams.StringIO()
    console = Console(file=screen, width=width or Console().width)
    shown = [column for column in _shown(rows) if console.width >= 140 or column in NARROW]
    table = Table(title="mean over categories, in percent", title_justify="left")
    for column in shown:
        table.add_column(_title(column), justify="left" if column in NAMES else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_text(column, row[column]) for column in shown))
    console.print(table)
    return screen.getvalue()


def _shown(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [column for column in COLUMNS if any(row[column] is not None for row in rows)]


def _row(path: Path) -> dict[str, Any]:
    """The last three folders name what it is of, where no experiment.json does."""
    experiment, method, dataset = (*(folder.name for folder in path.resolve().parents), "", "")[:3]
    about = _json(path.with_name(ABOUT))
    asked, cost = about.get("configuration", {}), _json(path.with_name("latency.json"))
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    mean = next((line for line in lines if line["category"] == MEAN), {})
    return {
        "dataset": asked.get("data", {}).get("dataset", dataset),
        "method": asked.get("model", {}).get("name", method),
        "experiment": asked.get("experiment", {}).get("name", experiment),
        "k_shot": _shots(asked),
        "weights": about.get("weights"),
        "categories": len(lines) - bool(mean),
        **{name: float(mean[column]) if mean.get(column) else None for name, column in METRICS.items()},
        **{name: cost.get(name) for name in COST},
    }


def _shots(asked: dict[str, Any]) -> int | str | None:
    if "data" not in asked:
        return None
    return "all" if asked["data"]["k_shot"] is None else asked["data"]["k_shot"]


def _json(path: Path) -> dict[str, Any]:
    return io.read_json(path) if path.is_file() else {}


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    score = row["image_auroc"]
    return row["dataset"], score is None, -(score or 0), row["method"], row["experiment"]


def _title(column: str) -> str:
    return {**TITLES, **COST}.get(column, column)


def _text(column: str, value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.1f}" if column in METRICS else f"{value:.1f}" if column in COST else str(value)
