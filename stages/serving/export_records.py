"""A fitted deep model of records as files for other runtimes: ONNX, ONNX with 8-bit weights, and the program of torch.export.

Every file is proven before it is kept: the validation records (those of training where there are none), and each of them again without each of its
modalities, are scored by it and by the model. A file that turns a verdict around at the model's threshold, or whose scores differ by more than rounding
explains, is removed, and the export fails (E601). What was compared, and all that a user of the file needs to know of it, is in export.json and in the ONNX
files' own metadata.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages import engine, errors, io
from stages.params import Params
from stages.serving import export_pruned
from stages.serving.export_proof import Score, Shown, compared_on, figures, latency, refused, session
from stages.serving.record_model import RecordModel, threshold_of
from stages.types import Refusal

if TYPE_CHECKING:
    from stages.fusion.deep.maths.graph import Scorer
    from stages.fusion.detector import RecordDetector

FOLDER = Path("outputs/export")
FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx", "pt2": "model.pt2"}
SHOWN = "padded tokens, float32: <modality>.values (B, L, D), .time (B, L) in 0..1, .mask (B, L) bool, True = a token; a missing modality is all masked"


class ParityFailed(errors.UserError, ValueError):
    """E601: an exported file does not judge as its model does. What was measured is in `found`."""

    def __init__(self, message: str, found: dict[str, Any]) -> None:
        super().__init__(message)
        self.found = found


def export(
    params: Params, model: RecordModel, out: Path | None = None, formats: Sequence[str] = ("onnx", "int8"), allow_flips: bool = False,
    exporter: str = "tracing", prune: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Write the files of `formats` into `out`, and export.json, whose content is returned.

    out: outputs/export/<dataset>/<model> by default, with "-pruned-<percent>" behind where heads go. formats: of FILES. allow_flips: keep a file whose
    verdicts differ; the report says so. exporter: "tracing", or "dynamo", which needs onnxscript. prune: the share of the heads of attention that is taken out.
    Raises ParityFailed after all that passed has been written, UserError for a model that has no form as a graph.
    """
    _check(formats, exporter, prune)
    pruned_name = f"{model.name}-pruned-{round(100 * prune)}" if prune else model.name
    folder = model.project / FOLDER / model.dataset / pruned_name if out is None else out
    with engine.thread_limit(params.compute.threads):
        detector = loaded(params, model)
        shown, made = compared_on(model, detector)
        about = described(model, detector, made) | {"exporter": exporter}
        found = {"about": about, "compared_on": shown.split, "files": {}, "model": _model(params, model, detector, shown)}
        if prune:
            found["before"] = {
                name: _size(params, content, score, made, shown)
                for name, content, score in _written(formats, made, about, params.compute.threads)
            }
            made, about["pruned"] = export_pruned.less(made, export_pruned.worth(model, detector, made), prune)
            shown = shown._replace(own=export_pruned.scores(made, shown.records))
        for name, content, score in _written(formats, made, about, params.compute.threads):
            found["files"][name] = _proven(
                params, folder, name, content, score, made, shown, found["model"]["auroc"], threshold_of(model).value, allow_flips
            )
    io.write_json(folder / "export.json", found)
    if failed := [name for name, one in found["files"].items() if one["refused"]]:
        raise ParityFailed(_told(failed, found, folder), found)
    return found


def loaded(params: Params, model: RecordModel) -> RecordDetector:
    """The fitted detector. Raises Refusal, with the rows of the data set that can be exported, where it has no form as a graph."""
    from stages import fusion
    from stages.fusion import forms

    try:
        forms.check(detector := model.detector())
    except Refusal as refusal:
        task = params.record_task
        rows = {row: entry for run in task.runs.values() if run.dataset == model.dataset for row, entry in task.rows(run.model).items()}
        able = [row for row, entry in rows.items() if fusion.load(entry.detector) in forms.FORMS and row != model.name]
        rest = f" Rows of {model.dataset} that have: {', '.join(able)}" if able else ""
        raise Refusal(f"{model.name} cannot be exported: {refusal}.{rest}") from None
    return detector


def described(model: RecordModel, detector: RecordDetector, made: Scorer) -> dict[str, Any]:
    """What a user of the files has to know. The same model gives the same description."""
    config, threshold = io.read_json(io.require(model.place / "config.json")), threshold_of(model)
    return {
        "dataset": model.dataset,
        "model": model.name,
        "seed": model.seed,
        "detector": config["detector"],
        "data": config["data"],
        "sha256": io.file_hash(model.place / "model.safetensors"),
        "classes": detector.classes,
        "score": made.meaning,
        "threshold": threshold.to_dict(),
        "temperature": model.temperature(),
        "rule": "a score above the threshold is anomalous; with a temperature T the probability is 1 / (1 + exp(-score / T))",
        "input": SHOWN,
        "modalities": {
            name: {"width": width, "length": made.lengths[name], **_encoder(model, name)} for name, width in made.widths.items()
        },
        "libraries": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime")},
    }


def render(found: dict[str, Any]) -> str:
    """A few lines for a terminal."""
    model, about = found["model"], found["about"]
    lines = [
        f"{about['model']} on {about['dataset']}: AUROC {_number(model['auroc'])}, {model['bytes']:,} bytes, {_laps(model['latency_ms'])}"
    ]
    lines += ["  there is no validation record: compared on training records"] if found["compared_on"] == "train" else []
    if "pruned" in about:
        lines += [f"  {export_pruned.told(about['pruned'])}"]
    for name, one in found["files"].items():
        lines += (
            [f"  {name} before: {before['bytes']:,} bytes, {_laps(before['latency_ms'])}"]
            if (before := found.get("before", {}).get(name))
            else []
        )
        kept = f"removed: {one['refused']}" if one["refused"] else f"kept as {one['file']}"
        lines.append(
            f"  {name}: {one['bytes']:,} bytes, {_laps(one['latency_ms'])}, greatest difference {one['max_difference']:.3g} ({one['worst_record']}), "
            f"AUROC {_number(one['auroc'])}, {one['flips']} of {one['compared']} verdicts and {one['other_class']} classes differ; {kept}"
        )
    return "\n".join(lines)


def _check(formats: Sequence[str], exporter: str, prune: float) -> None:
    if unknown := [name for name in formats if name not in FILES]:
        raise errors.UserError(f"no format {unknown[0]!r}; known: {', '.join(FILES)}")
    if not formats:
        raise errors.UserError(f"--formats names none; known: {', '.join(FILES)}")
    if exporter == "dynamo" and find_spec("onnxscript") is None:
        raise errors.UserError("--dynamo needs the package onnxscript, which is not installed. Install it, or leave --dynamo out")
    export_pruned.check(prune)


def _model(params: Params, model: RecordModel, detector: RecordDetector, shown: Shown) -> dict[str, Any]:
    """The figures of the model itself."""
    return {
        "auroc": figures(shown, shown.score, shown.kind, None)["auroc"],
        "latency_ms": latency(params, shown, lambda one: detector.score(one)),
        "bytes": (model.place / "model.safetensors").stat().st_size,
    }


def _written(formats: Sequence[str], made: Scorer, about: dict[str, Any], threads: int) -> Iterator[tuple[str, bytes, Score]]:
    """Of each format its name, the file and what scores by it."""
    from stages.fusion.deep.maths import graph

    exact = graph.onnx_bytes(made, about, about["exporter"]) if {"onnx", "int8"} & set(formats) else b""
    for name in (one for one in FILES if one in formats):
        if name == "pt2":
            yield (name, *_program(made, about))
        else:
            content = exact if name == "onnx" else graph.int8_bytes(exact, about | {"weights": "int8"})
            yield name, content, session(content, threads)


def _size(params: Params, content: bytes, score: Score, made: Scorer, shown: Shown) -> dict[str, Any]:
    from stages.fusion.deep.maths import graph

    return {"bytes": len(content), "latency_ms": latency(params, shown, lambda one: score(graph.feed(one, made.widths, made.lengths)))}


def _proven(
    params: Params, folder: Path, name: str, content: bytes, score: Score, made: Scorer, shown: Shown, auroc: float | None, threshold: float | None,
    allow_flips: bool,
) -> dict[str, Any]:  # fmt: skip
    """Score everything by the file, write it where it passes, and say what was found."""
    from stages.fusion.deep.maths import graph

    values, logits, _ = score(graph.feed(shown.records, made.widths, made.lengths))
    kind = None if shown.kind is None else np.asarray(logits).argmax(1)
    found = figures(shown, np.asarray(values, dtype=np.float64), kind, threshold)
    found |= {
        **_size(params, content, score, made, shown),
        "sha256": hashlib.sha256(content).hexdigest(),
        "auroc_change": None if auroc is None or found["auroc"] is None else found["auroc"] - auroc,
    }
    found["refused"] = refused(name, found, allow_flips)
    path = folder / FILES[name]
    path.unlink(missing_ok=True)  # of an earlier export
    if not found["refused"]:
        io.write_bytes(path, content)
    return {"file": None if found["refused"] else FILES[name], **found}


def _told(failed: Sequence[str], found: dict[str, Any], folder: Path) -> str:
    parts = []
    for name in failed:
        one = found["files"][name]
        parts.append(
            f"{FILES[name]}: {one['refused']} (greatest difference of a score {one['max_difference']:.4g}, of {one['worst_record']}; "
            f"{one['flips']} of {one['compared']} verdicts differ)"
        )
    kept = [one["file"] for one in found["files"].values() if one["file"]]
    rest = f"Kept: {', '.join(kept)}. " if kept else ""
    return (
        f"E601 parity failed, not written: {'; '.join(parts)}. {rest}{(folder / 'export.json').as_posix()} has the figures; "
        "--allow-flips keeps a file whose verdicts differ"
    )


def _program(made: Scorer, about: dict[str, Any]) -> tuple[bytes, Score]:
    import torch

    from stages.fusion.deep.maths import graph

    program, file = graph.program(made), BytesIO()
    torch.export.save(program, file, extra_files={"assay.json": json.dumps(about, sort_keys=True)})
    module = program.module()

    def score(feed: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with torch.no_grad():
            return tuple(one.numpy() for one in module(*(torch.from_numpy(feed[name]) for name in made.inputs)))

    return file.getvalue(), score


def _encoder(model: RecordModel, modality: str) -> dict[str, Any]:
    """Which encoder made the tokens, as its store says."""
    about = model.project / "features" / model.dataset / modality / "records.json"
    content = io.read_json(about) if about.is_file() else {}
    return {"encoder": content.get("entry"), "weights": content.get("weights")}


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _laps(latency: dict[str, float]) -> str:
    return f"{latency['p50']:.2f} ms (p95 {latency['p95']:.2f})"
