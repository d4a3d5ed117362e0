"""Every model of every data set, ranked, with intervals and ties; the same table for the terminal, README and the report page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import io
from stages.metrics.result import result_folder
from stages.params import ENSEMBLE, Params
from stages.serving.verdict import group_of, test_scores, tied_with

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
SERIES_COLUMNS = {
    "vus_pr": "VUS-PR",
    "pr_auc": "PR AUC",
    "vus_roc": "VUS-ROC",
    "roc_auc": "ROC AUC",
    "f1": "F1",
    "f1_oracle": "F1 oracle",
    "event_f1": "event F1",
    "range_f1": "range F1",
    "affiliation_f": "affiliation F",
    "pa_k_auc": "PA%K AUC",
    "delay": "delay, steps",
    "false_alarms_per_10k": "false alarms / 10k steps",
    "pa_f1": "PA-F1 (inflated)",  # never ranked: luck reaches as much
}
RECORD_COLUMNS = {
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC",
    "missing_auc": "AUC with modalities missing",
    "f1": "F1",
    "f1_oracle": "F1 oracle",
    "recall": "recall",
    "precision": "precision",
    "balanced_accuracy": "balanced accuracy",
    "false_alarm_rate": "false-alarm rate",
    "fnr_at_fpr_05": "missed at 5 % false alarms",
    "accuracy": "accuracy by class",
    "macro_f1": "macro F1",
    "knn_accuracy": "accuracy of neighbours",
    "knn_macro_f1": "macro F1 of neighbours",
    "ece": "ECE",
    "ece_before": "ECE before temperature",
    "brier": "Brier",
    "nll": "NLL",
    "f1_at_half": "F1 at probability .5",
}


class Task(NamedTuple):
    """How the models of one kind of data are compared."""

    ranked_by: str
    columns: dict[str, str]
    narrow: tuple[str, ...]  # what a terminal of less than 110 columns has room for
    medium: tuple[str, ...]  # of less than `wide`
    wide: int
    unit: str  # what one answer is given for
    written: tuple[str, ...]  # on a page of text


TASKS = {
    "image": Task("image_auroc", COLUMNS, ("image_auroc", "aupro"), ("image_auroc", "image_ap", "pixel_auroc", "aupro"), 190, "image", tuple(COLUMNS)),
    "series": Task(
        "vus_pr", SERIES_COLUMNS, ("vus_pr", "pr_auc"), ("vus_pr", "pr_auc", "f1", "pa_f1"), 300, "step",
        ("vus_pr", "pr_auc", "f1", "event_f1", "delay", "false_alarms_per_10k", "pa_f1"),
    ),
    "records": Task(
        "roc_auc", RECORD_COLUMNS, ("roc_auc", "missing_auc"), ("roc_auc", "pr_auc", "missing_auc", "f1"), 300, "record",
        ("roc_auc", "pr_auc", "missing_auc", "macro_f1", "f1", "false_alarm_rate", "fnr_at_fpr_05", "ece"),
    ),
}  # fmt: skip


class Row(NamedTuple):
    """One model on one data set; a refused one has its reason and no figures."""

    rank: int | None  # None where refused, and where transductive: there it stands for comparison, out of competition
    dataset: str
    model: str
    label: str
    weights: str
    metrics: dict[str, dict[str, Any]]  # {"image_auroc": {"value", "low", "high"} or {"value": None, "reason"}}
    cost: dict[str, Any]  # of the bench: latency_ms_p50, throughput_per_s, parameters, flops, peak_rss_mb ...; empty before it ran
    refused: str | None
    folder: Path  # metrics/<dataset>/<model>[/<row>]
    tied: bool | None = None  # with the best, by paired bootstrap; None where that is not known
    members: tuple[str, ...] = ()  # of an ensemble, which is a row but no model that could be shipped
    candidate: bool = False  # the best single model, or tied with it
    transductive: bool = False  # scores a set of images, so it cannot be shipped to judge one
    task: str = "image"
    kind: str = ""  # of records: "supervised", "unsupervised", or "control", which knows nothing of what the record shows

    @property
    def shown(self) -> str:
        """The name in plots, which have no room for labels."""
        return f"{self.model} (transductive)" if self.transductive else self.model

    @property
    def latency_ms(self) -> float | None:
        return self.cost.get("latency_ms_p50")


def results(params: Params, project: Path = Path()) -> dict[Path, dict[str, Any]]:
    """The contents of every metrics/<dataset>/<model>.json that the tables of runs ask for and that exists, by the folder beside it.

    Groups give one for each row. The ensemble of a data set comes last; there is none where there are too few models for it.
    """
    found = {}
    tasks = [params, *(task for task in (params.series, params.records) if task)]
    for run in (run for task in tasks for run in task.runs.values()):
        path = project / "metrics" / run.dataset / f"{run.model}.json"
        if path.is_file():
            content = io.read_json(path)
            for result in content["rows"].values() if "rows" in content else [content]:
                found[project / result_folder(run.dataset, run.model, result["model"])] = result
    for dataset in dict.fromkeys(run.dataset for run in params.runs.values()):
        folder = project / "metrics" / ENSEMBLE / dataset
        path = folder.with_name(f"{dataset}.json")
        if path.is_file() and "refused" not in (result := io.read_json(path)):
            found[folder] = result | {"label": f"mean of {len(result['members'])} models"}
    return found


def leaderboard(params: Params, project: Path = Path()) -> dict[str, list[Row]]:
    """Rows by data set, best first, refused ones last; transductive ones stand in this order and are not counted.

    Images are ranked by mean image AUROC, signals by mean VUS-PR, those of each regime of training in a table of their own, records by ROC AUC.
    """
    tables: dict[str, list[Row]] = {}
    for folder, result in results(params, project).items():
        bench = project / "metrics" / "bench" / f"{result['dataset']}.json"
        cost = io.read_json(bench)["models"].get(result["model"], {}) if bench.is_file() else {}
        task = _task(params, result)
        kind = kind_of(result) if task == "records" else ""
        label = ", ".join(text for text in (result.get("label", ""), "" if kind == "supervised" else kind) if text)
        tables.setdefault(_table(result), []).append(
            Row(None, result["dataset"], result["model"], label, result.get("weights", ""), result.get("mean", {}), cost, result.get("refused"),
                folder, members=tuple(result.get("members", ())), transductive=result.get("transductive", False), task=task, kind=kind)
        )  # fmt: skip
    return {dataset: _with_ties(_ranked(rows), project) for dataset, rows in tables.items()}


def _task(params: Params, result: dict[str, Any]) -> str:
    if params.records and result["dataset"] in params.records.datasets:
        return "records"
    return "series" if "regime" in result else "image"


def kind_of(result: dict[str, Any]) -> str:
    """Of a result of records, what its model is: see Row."""
    if "blind" in result:  # what can be had without looking at what a record shows
        return "control"
    return "supervised" if result.get("supervised", True) else "unsupervised"


def _table(result: dict[str, Any]) -> str:
    return f"{result['dataset']}, {result['regime']}" if "regime" in result else result["dataset"]


def _with_ties(rows: list[Row], project: Path) -> list[Row]:
    """The rows with `tied` and `candidate` filled in, as far as predictions and manifest are here."""
    alone = [row for row in rows if row.rank and not row.members]
    if not alone:
        return rows
    single = next((row for row in alone if row.kind != "control"), alone[0])  # a control that does best is a finding, and no model to take
    best = next(row for row in rows if row.rank)
    if single.task != "image":
        return [_tied_by_draws(row, single) for row in rows]
    scores = {row.model: test_scores(row.folder) for row in rows if row.rank}
    if not scores[best.model]:
        return [row._replace(candidate=row is single) for row in rows]
    groups = group_of(single.dataset, project)

    def tied(row: Row, first: Row) -> bool | None:
        return row is first or tied_with(scores[first.model], scores[row.model], groups)

    with_best = {row.model: tied(row, best) for row in rows if row.rank}
    with_single = with_best if single is best else {row.model: tied(row, single) for row in rows if row.rank and not row.members}
    return [row._replace(tied=with_best[row.model], candidate=not row.members and bool(with_single[row.model])) if row.rank else row for row in rows]


def _tied_by_draws(row: Row, best: Row) -> Row:
    """A row of signals or records beside the best one: the models of a data set are resampled alike, so their draws can be subtracted."""
    from stages.metrics.series_result import tied_with

    tied = (row is best or tied_with(best.folder, row.folder, TASKS[row.task].ranked_by)) if row.rank else None
    return row._replace(tied=tied, candidate=bool(tied) and row.kind != "control")


def columns(rows: Sequence[Row]) -> dict[str, str]:
    """The metrics that any of the rows has a value of, with their titles."""
    known = TASKS[rows[0].task].columns if rows else {}
    return {name: title for name, title in known.items() if any(row.metrics.get(name, {}).get("value") is not None for row in rows)}


def _ranked(rows: list[Row]) -> list[Row]:
    def key(row: Row) -> tuple[bool, float, str]:
        value = row.metrics.get(TASKS[row.task].ranked_by, {}).get("value")
        return value is None, -(value or 0), row.model

    rows = sorted(rows, key=key)
    places = {row.model: place for place, row in enumerate((row for row in rows if row.refused is None and not row.transductive), start=1)}
    return [row._replace(rank=places.get(row.model)) for row in rows]


def cell(metric: dict[str, Any] | None) -> str:
    """`.957 [.941, .970]`, or n/a."""
    if not metric or metric["value"] is None:
        return "n/a"
    value = _short(metric["value"])
    return f"{value} [{_short(metric['low'])}, {_short(metric['high'])}]" if metric.get("low") is not None else value


def _short(value: float) -> str:
    if value > 1:
        return f"{value:.1f}"
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
        task = TASKS[rows[0].task]
        kept = task.narrow if console.width < 110 else task.medium if console.width < task.wide else task.columns
        shown = {name: title for name, title in columns(rows).items() if name in kept}
        averaged = "" if rows[0].task == "records" else "mean over categories, "
        table = Table(title=f"{dataset}: {averaged}95 % interval; = tied with the best", title_justify="left")
        for title in ("#", "model", *shown.values(), f"ms/{task.unit}"):
            table.add_column(
                title,
                justify="left" if title == "model" else "right",
                no_wrap=title != "model",
                overflow="fold",
                min_width=min(len(title), 14),
            )
        for row in rows:
            if row.refused:
                table.add_row("", f"{_name(row)}: {row.refused}", *[""] * (len(shown) + 1))
                continue
            speed = f"{row.latency_ms:.1f}" if row.latency_ms is not None else ""
            table.add_row(
                f"{'=' if row.tied and row.rank != 1 else ''}{row.rank or ''}",
                _name(row),
                *(cell(row.metrics.get(metric)) for metric in shown),
                speed,
            )
        console.print(table)
    return screen.getvalue()


def markdown(tables: dict[str, list[Row]]) -> str:
    """The tables for a page of text, without timings: they are of one machine."""
    lines: list[str] = []
    for dataset, rows in tables.items():
        shown = {name: title for name, title in columns(rows).items() if name in TASKS[rows[0].task].written}
        lines += ["", f"**{dataset}**", "", f"| # | model | {' | '.join(shown.values())} |", "| ---: | --- |" + " ---: |" * len(shown)]
        for row in rows:
            cells = [row.refused] if row.refused else [cell(row.metrics.get(metric)) for metric in shown]
            lines.append(f"| {row.rank or ''} | {_name(row)} | {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"


def _name(row: Row) -> str:
    return row.model + (f" ({row.label})" if row.label else "") + (" RANDOM WEIGHTS" if row.weights == "random" else "")
