"""Mirror each finished (data set, model) result to MLflow, once. Last in the DAG; a tracker that fails is a warning, never a failed stage.

Reads metrics/, models/*/history.json and the manifests; writes metrics/track/mirrored.json, which names the results and their hashes
and says nothing of this machine's tracker, so that the same results give the same bytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages import io, tracking
from stages.errors import guarded
from stages.params import ENSEMBLE, Params, RecordRun, RunEntry, SeriesRun, load
from stages.tracking import Point, Result

AnyRun = RunEntry | SeriesRun | RecordRun
MIRRORED = Path("metrics/track/mirrored.json")


def main() -> None:
    params = load()
    tasks = [task for task in (params, params.series, params.records) if task]
    runs = [run for task in tasks for run in task.runs.values()]
    results = [result for run in runs for result in results_of(params, run)]
    results += [result for dataset in dict.fromkeys(run.dataset for run in params.runs.values()) for result in ensemble_of(params, dataset)]
    if params.tracking.enabled:
        uri = tracking.absolute_uri(params.tracking.uri, tracking.project_root(Path.cwd()))
        try:
            logged = tracking.mirror(results, uri, params.tracking.experiment)
            print(f"MLflow has {len(results)} results, {logged} of them new: {uri}")
        except Exception as error:  # of any kind: the results are written, and a broken mirror takes nothing from them
            print(tracking.warning(error, uri), file=sys.stderr)
    listed = [{"dataset": result.tags["dataset"], "model": result.tags["model"], "result": result.hash} for result in results]
    io.write_json(MIRRORED, listed)


def results_of(params: Params, run: AnyRun) -> Iterator[Result]:
    """The results of one run that are on disk: one, or one for each row of a group of models."""
    path = Path("metrics", run.dataset, f"{run.model}.json")
    if path.is_file():
        content = io.read_json(path)
        for row in _task(params, run).rows(run.model):
            yield result(params, run, row, path, content.get("rows", {}).get(row, content))


def result(params: Params, run: AnyRun, row: str, path: Path, content: dict[str, Any]) -> Result:
    """One model on one data set as a run; `content` is what evaluate wrote about it, or {"refused": reason}."""
    asked = _asked(params, run, row)
    manifest = io.read_json(Path("data", run.dataset, "manifest.json"))
    hashes = {"data_hash": io.content_hash(manifest), "parameter_hash": io.content_hash(asked)}
    tags = {"dataset": run.dataset, "model": row, **_kind(run, content), **hashes, **origin()}
    if "refused" in content:
        tags["refused"] = content["refused"]
    group = [row] if row != run.model else []
    return Result(
        name=f"{run.dataset}/{row}",
        hash=io.content_hash({"content": content, **hashes}),
        tags=tags,
        params=dict(flat(asked)),
        metrics=dict(figures(content)),
        history=list(history(Path("models", run.dataset, run.model, *group))),
        files=[(path, ""), *pictures(path.with_suffix("").joinpath(*group))],
    )


def _task(params: Params, run: AnyRun) -> Any:
    """The part of params.yaml that a run stands in."""
    return params.signals if isinstance(run, SeriesRun) else params.record_task if isinstance(run, RecordRun) else params


def _kind(run: AnyRun, content: dict[str, Any]) -> dict[str, str]:
    """What tells two results of one model apart: what it sees images with, what it may know of anomalies, or what of a record is there to see."""
    if isinstance(run, RunEntry):
        return {"encoder": run.encoder}
    return {"regime": content["regime"]} if isinstance(run, SeriesRun) else {"modalities": "+".join(content.get("modalities", ()))}


def _asked(params: Params, run: AnyRun, row: str) -> dict[str, Any]:
    """Everything of params.yaml that a result depends on."""
    task = _task(params, run)
    asked = {"model": task.rows(run.model)[row].model_dump(mode="json"), "protocol": task.protocol.model_dump(mode="json")}
    if isinstance(run, RunEntry):
        asked["encoder"] = params.entry("encoders", run.encoder).model_dump(mode="json")
    if isinstance(run, RecordRun):
        asked["encoders"] = {
            one.modality: task.entry("encoders", one.encoder).model_dump(mode="json") for one in task.extracts.values() if one.dataset == run.dataset
        }
    return asked


def ensemble_of(params: Params, dataset: str) -> Iterator[Result]:
    """The ensemble of one data set, where it has one."""
    path = Path("metrics", ENSEMBLE, f"{dataset}.json")
    if path.is_file():
        content, manifest = io.read_json(path), io.read_json(Path("data", dataset, "manifest.json"))
        about = {"members": content.get("members", []), "protocol": params.protocol.model_dump(mode="json")}
        hashes = {"data_hash": io.content_hash(manifest), "parameter_hash": io.content_hash(about)}
        tags = {"dataset": dataset, "model": ENSEMBLE, **hashes, **origin(), **({"refused": content["refused"]} if "refused" in content else {})}
        hashed = io.content_hash({"content": content, **hashes})
        yield Result(f"{dataset}/{ENSEMBLE}", hashed, tags, dict(flat(about)), dict(figures(content)), [], [(path, "")])


def origin() -> dict[str, str]:
    """The commit and the DVC experiment that this process runs for, as far as there are any."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    found = {"mlflow.source.git.commit": git.stdout.strip(), "dvc_experiment": os.environ.get("DVC_EXP_NAME", "")}
    return {name: value for name, value in found.items() if value}


def flat(content: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """("model.coreset_ratio", "0.01"), ...: tables are unfolded, lists are one JSON value."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from flat(value, f"{at}.{key}" if at else key)
    else:
        yield at, content if isinstance(content, str) else json.dumps(content)


def figures(content: dict[str, Any], at: str = "") -> Iterator[tuple[str, float]]:
    """("mean.image_auroc", .957), ("mean.image_auroc.low", .941), ("<category>.image_auroc", ...); what has no value is left out."""
    if "value" in content:
        for part, suffix in (("value", ""), ("low", ".low"), ("high", ".high")):
            if content.get(part) is not None:
                yield at + suffix, content[part]
        return
    for key, inner in content.items():
        if isinstance(inner, dict):
            yield from figures(inner, at if not at and key == "categories" else f"{at}.{key}".removeprefix("."))


def history(folder: Path) -> Iterator[Point]:
    """The numbers in the histories of a model, named history/<category>/seed<k>/<quantity> (of records without category); rows without a step are counted."""
    for path in sorted([*folder.glob("seed*/history.json"), *folder.glob("*/seed*/history.json")]):
        for place, row in enumerate(io.read_json(path)):
            name = "/".join(["history", *path.parent.relative_to(folder).parts, *([row["training"]] if "training" in row else [])])
            for quantity, value in row.items():
                if quantity != "step" and type(value) in (int, float):
                    yield Point(f"{name}/{quantity}", row.get("step", place), value)


def pictures(folder: Path) -> list[tuple[Path, str]]:
    """Every picture with the folder that it gets among the artifacts."""
    return [(path, path.parent.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*.png"))]


if __name__ == "__main__":
    sys.exit(guarded(main))
