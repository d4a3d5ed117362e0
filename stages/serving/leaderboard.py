"""Every model of every data set, ranked, with intervals; the same table for the terminal and the report page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from stages import io
from stages.params import Params

COLUMNS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1 max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1 max",
    "aupro": "AUPRO 0.3",
    "aupro_005": "AUPRO 0.05",
}
NARROW, MEDIUM = ("image_auroc", "aupro"), ("image_auroc", "image_ap", "pixel_auroc", "aupro")  # what a terminal of that width has room for


class Row(NamedTuple):
    """One model on one data set; a refused one has its reason and no figures."""

    rank: int | None
    dataset: str
    model: str
    label: str
    weights: str
    metrics: dict[str, dict[str, Any]]  # {"image_auroc": {"value", "low", "high"} or {"value": None, "reason"}}
    latency_ms: float | None
    refused: str | None


def results(params: Params, folder: Path = Path("metrics")) -> list[dict[str, Any]]:
    """The contents of every metrics/<dataset>/<model>.json that the table `runs` asks for and that exists; groups give one each row."""
    found = []
    for run in params.runs.values():
        path = folder / run.dataset / f"{run.model}.json"
        if path.is_file():
            content = io.read_json(path)
            found += content["rows"].values() if "rows" in content else [content]
    return found


def leaderboard(params: Params, folder: Path = Path("metrics")) -> dict[str, list[Row]]:
    """Rows by data set, best mean image AUROC first, refused ones last."""
    tables: dict[str, list[Row]] = {}
    for result in results(params, folder):
        bench = folder / "bench" / f"{result['dataset']}.json"
        timing = io.read_json(bench)["models"].get(result["model"], {}) if bench.is_file() else {}
        tables.setdefault(result["dataset"], []).append(
            Row(None, result["dataset"], result["model"], result.get("label", ""), result.get("weights", ""), result.get("mean", {}),
                timing.get("latency_ms_p50"), result.get("refused"))
        )  # fmt: skip
    return {dataset: _ranked(rows) for dataset, rows in tables.items()}


def _ranked(rows: list[Row]) -> list[Row]:
    def key(row: Row) -> tuple[bool, float, str]:
        value = row.metrics.get("image_auroc", {}).get("value")
        return value is None, -(value or 0), row.model

    return [row._replace(rank=place + 1 if row.refused is None else None) for place, row in enumerate(sorted(rows, key=key))]


def cell(metric: dict[str, Any] | None) -> str:
    """`.957 [.941, .970]`, or n/a."""
    if not metric or metric["value"] is None:
        return "n/a"
    value = _short(metric["value"])
    return f"{value} [{_short(metric['low'])}, {_short(metric['high'])}]" if metric.get("low") is not None else value


def _short(value: float) -> str:
    text = f"{value:.3f}"
    return "1.00" if text == "1.000" else text.removeprefix("0")


def render(tables: dict[str, list[Row]], width: int | None = None) -> str:
    """The tables as plain text for a terminal."""
    import io as streams

    from rich.console import Console
    from rich.table import Table

    screen = streams.StringIO()
    console = Console(file=screen, width=width or Console().width)
    for dataset, rows in tables.items():
        shown = {name: title for name, title in COLUMNS.items() if any(row.metrics.get(name, {}).get("value") is not None for row in rows)}
        kept = NARROW if console.width < 110 else MEDIUM if console.width < 190 else COLUMNS
        shown = {name: title for name, title in shown.items() if name in kept}
        table = Table(title=f"{dataset}: mean over categories, 95 % interval", title_justify="left")
        for title in ("#", "model", *shown.values(), "ms/image"):
            table.add_column(
                title, justify="left" if title == "model" else "right", no_wrap=title != "model", min_width=min(len(title), 14)
            )
        for row in rows:
            if row.refused:
                table.add_row("", f"{_name(row)}: {row.refused}", *[""] * (len(shown) + 1))
                continue
            speed = f"{row.latency_ms:.1f}" if row.latency_ms is not None else ""
            table.add_row(str(row.rank), _name(row), *(cell(row.metrics.get(metric)) for metric in shown), speed)
        console.print(table)
    return screen.getvalue()


def markdown(tables: dict[str, list[Row]]) -> str:
    """The tables for a page of text, without timings: they are of one machine."""
    lines: list[str] = []
    for dataset, rows in tables.items():
        shown = {name: title for name, title in COLUMNS.items() if any(row.metrics.get(name, {}).get("value") is not None for row in rows)}
        lines += ["", f"**{dataset}**", "", f"| # | model | {' | '.join(shown.values())} |", "| ---: | --- |" + " ---: |" * len(shown)]
        for row in rows:
            cells = [row.refused] if row.refused else [cell(row.metrics.get(metric)) for metric in shown]
            lines.append(f"| {row.rank or ''} | {_name(row)} | {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"


def _name(row: Row) -> str:
    return row.model + (f" ({row.label})" if row.label else "") + (" RANDOM WEIGHTS" if row.weights == "random" else "")
