"""The trees that scripts of old look for, copied from what the pipeline wrote: nothing in them is computed here but the mean of a summary.

outputs/<dataset>/<category>/<model>/          model_<dataset>_<category>_<model>_epochs-<n>.pth, results_..._thresholds.txt,
                                               histogram_..._scores.png, image_..._*.png
results/<dataset>/<model>/<experiment>/        summary_metrics.csv, summary_metrics_pretty.csv, summary_metrics_pretty.md,
                                               <category>/metrics.csv, <category>/overlays/
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

from stages import io, params
from stages.detectors import artefact
from stages.metrics import tables
from stages.metrics.result import result_folder
from stages.metrics.tables import Cells
from stages.params import ModelEntry, RunEntry


def folders(output_dir: Path) -> tuple[Path, Path]:
    """The roots of both trees; a folder that is called `outputs` is the first root itself, and `results` lies beside it."""
    outputs = output_dir if output_dir.name == "outputs" else output_dir / "outputs"
    return outputs, outputs.parent / "results"


def write_trees(project: Path, name: str, output_dir: Path) -> list[Path]:
    """Both trees for the run `name` of a project, once it is evaluated. Returns the folders of its models below outputs/; refused ones have none."""
    settings = params.load(project / params.PATH)
    run, (outputs, results) = settings.entry("runs", name), folders(output_dir)
    written = []
    for row, entry in settings.rows(run.model).items():
        judged = project / result_folder(run.dataset, run.model, row)
        for category in _categories(judged):
            place = artefact.fitted(project / artefact.folder(run.dataset, run.model, row, category, settings.seeds(run)[0]))
            about = f"{run.dataset}_{category}_{row}_epochs-{_epochs(entry, place)}"
            written.append(_write_outputs(outputs / run.dataset / category / row, about, place, judged / category))
        if _categories(judged):
            _write_results(results / run.dataset / row / settings.tracking.experiment, judged, _result(project, run, row))
    return written


def _categories(judged: Path) -> list[str]:
    path = judged / "thresholds.json"
    return list(io.read_json(path)) if path.is_file() else []


def _result(project: Path, run: RunEntry, row: str) -> dict[str, Any]:
    content = io.read_json(project / "metrics" / run.dataset / f"{run.model}.json")
    return content.get("rows", {}).get(row, content)


def _write_outputs(folder: Path, about: str, place: Path, judged: Path) -> Path:
    """about: what stands in every file's name. place: of the fitted model. judged: metrics/<dataset>/<model>/<category>."""
    for stale in folder.glob(f"image_{about}_*.png"):
        stale.unlink()
    io.write_tensors(folder / f"model_{about}.pth", io.read_model(place / "model.safetensors"))
    _copy(judged / "thresholds.txt", folder / f"results_{about}_thresholds.txt")
    _copy(judged / "histogram_scores.png", folder / f"histogram_{about}_scores.png")
    for picture in sorted((judged / "overlays").glob("*.png")):
        _copy(picture, folder / f"image_{about}_{picture.name}")
    return folder


def _epochs(entry: ModelEntry, place: Path) -> int:
    """Those asked for; where params.yaml names none or cuts them short by steps, those trained; 1 for what is fitted in one pass."""
    if entry.options.get("epochs") and not entry.options.get("steps"):
        return entry.options["epochs"]
    return max((row["epoch"] + 1 for row in io.read_json(place / "history.json") if "epoch" in row), default=1)


def _write_results(folder: Path, judged: Path, result: dict[str, Any]) -> None:
    """A summary is of every category that lies in the folder, those of earlier calls too."""
    own = result["categories"]
    for category, cells in own.items():
        write_category(folder / category, judged / category, cells)
    found = sorted(path.parent.name for path in folder.glob("*/metrics.csv"))
    cells = {category: own.get(category) or _read_cells(folder / category / "metrics.csv") for category in found}
    write_summaries(folder, cells, result["mean"] if set(found) == set(own) else _plain_mean(cells))


def write_category(folder: Path, judged: Path, cells: Cells, pictures: bool = True) -> None:
    """Table and pictures of one category, in place of what lay there. judged: metrics/<dataset>/<model>/<category>."""
    shutil.rmtree(folder, ignore_errors=True)
    io.write_text(folder / "metrics.csv", tables.metrics_csv(cells))
    for path in sorted((judged / "overlays").glob("*")) if pictures else ():
        _copy(path, folder / "overlays" / path.name)


def write_summaries(folder: Path, cells: dict[str, Cells], mean: Cells) -> None:
    for name, text in (
        ("summary_metrics.csv", tables.summary_csv(cells, mean)),
        ("summary_metrics_pretty.csv", tables.pretty_csv(cells, mean)),
        ("summary_metrics_pretty.md", tables.pretty_markdown(cells, mean)),
    ):
        io.write_text(folder / name, text)


def _read_cells(path: Path) -> Cells:
    """What `tables.metrics_csv` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("value", "low", "high")
    return {row["metric"]: {key: float(row[key]) if row[key] else None for key in numbers} | {"reason": row["reason"]} for row in rows}


def _plain_mean(cells: dict[str, Cells]) -> Cells:
    """Over categories that were judged in different calls; their bootstrap draws are not kept, so there is no interval."""
    mean: Cells = {}
    for name in next(iter(cells.values())):
        values = [own[name]["value"] for own in cells.values() if own.get(name, {}).get("value") is not None]
        mean[name] = {"value": sum(values) / len(values) if values else None}
    return mean


def _copy(source: Path, target: Path) -> None:
    io.write_bytes(target, source.read_bytes())
